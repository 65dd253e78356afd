"""Most memory of an evaluation with 50 classes for each token, on 2,000 and on 20,000 sequences of 512 tokens.

One process per size and way: a run that trains one step and then evaluates its test split, and `hfexp evaluate` on the
same rows. Both tokenize the rows first. The scores of all tokens would take 2.0 GB in single precision.
"""

import json
import os
import random
import sys
import threading
from pathlib import Path

from benchmarks.harness import Report, child, parser, publish, ratio, scratch, silence, table

SIZES = {"2,000": 2_000, "20,000": 20_000}
QUICK = {"4": 4, "8": 8}
TOKENS, CLASSES = 512, 50
LIMIT = 1.3
TRAINED, ASKED = "the test split of a run", "hfexp evaluate"
MOMENTS = {
    "anonymous": "Most resident memory, without pages of mapped files",
    "whole": "Most resident memory, with them",
}
CHILD = "import sys; from benchmarks import memory_evaluation; memory_evaluation.measure(*sys.argv[1:])"
MODEL = (
    "task=token_classification", "model=tiny_bert_subwords", "model.processor.column=words", "trainer=scratch",
    "model.config.hidden_size=16", "model.config.num_attention_heads=1", "model.config.intermediate_size=16",
    "model.config.vocab_size=400", f"model.config.max_position_embeddings={TOKENS}", "trainer.args.max_steps=1",
    "trainer.args.per_device_train_batch_size=2", "trainer.args.per_device_eval_batch_size=16", "dataset=table",
    "tracking.pictures=false",
)  # fmt: skip
INTERVAL = 0.02
"""Seconds between two looks at the memory."""


class Watch(threading.Thread):
    """Notes the most anonymous memory of this process, in MB, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.done = 0.0, threading.Event()

    def run(self) -> None:
        from benchmarks.steps import anonymous_memory

        while not self.done.wait(INTERVAL):
            self.most = max(self.most, anonymous_memory())


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure both sizes in both ways."""
    report = Report("memory_evaluation", (__doc__ or "").splitlines()[0].rstrip("."))
    sizes = QUICK if quick else SIZES
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        way: {size: [] for size in sizes} for way in (TRAINED, ASKED)
    }
    with scratch() as place:
        write_rows(place / "train.parquet", 20)
        for count in sizes.values():
            write_rows(place / f"{count}.parquet", count)
        for number in range(1 if quick else rounds or 1):
            for size, count in sizes.items():
                os.environ["HFEXP_CACHE"] = str(place / f"cache-{count}-{number}")
                for way, facts in found.items():
                    facts[size].append(json.loads(child(["-c", CHILD, way, str(place), str(count), str(number)])))
                    print(f"  {way}, {size}: {facts[size][-1]}", file=sys.stderr, flush=True)
    show(report, found)
    return report


def show(report: Report, found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Memory by size, and how much the larger has more than the smaller."""
    for moment, title in MOMENTS.items():
        rows, report.data[moment] = [], {}
        for way, by_size in found.items():
            values = {size: [one[moment] for one in facts] for size, facts in by_size.items()}
            first, last = values
            growth = ratio(values, last, first, LIMIT if moment == "anonymous" else None)
            report.ratios.append(growth)
            report.data[moment][way] = {"mb": values, "growth": growth.facts()}
            rows.append(
                [way, *(f"{facts[0]:.0f}" for facts in values.values()), f"{growth.median:.2f}", growth.verdict()]
            )
        head = ["", *(f"{size} sequences, MB" for size in values), "ratio", "bound"]
        report.blocks += [f"## {title}", table(head, rows)]
    report.blocks.append("The system takes pages of mapped files back when it needs room.")


def write_rows(path: Path, count: int) -> None:
    """Write rows of random words of a letter each, all of whose tokens have a tag; two tokens are special ones."""
    import pyarrow
    import pyarrow.parquet

    draw, letters = random.Random(count), "abcdefghijklmnopqrstuvwxyz"
    texts = pyarrow.list_(pyarrow.string())
    schema = pyarrow.schema([("words", texts), ("tags", texts)])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 500):
            size = min(500, count - start)
            words = [draw.choices(letters, k=TOKENS - 2) for _ in range(size)]
            tags = [[f"class_{number}" for number in draw.choices(range(CLASSES), k=TOKENS - 2)] for _ in range(size)]
            writer.write_table(pyarrow.table([words, tags], schema=schema))


def measure(way: str, place: str, count: str, number: str) -> None:
    """In the child: run or evaluate; print the most memory."""
    from benchmarks.steps import peak_memory

    watch, outputs = Watch(), f"output_dir={place}/outputs-{count}-{number}"
    with silence():
        import hfexp

        watch.start()
        files = f"{{train: {place}/train.parquet, validation: {place}/train.parquet, test: {place}/{count}.parquet}}"
        if way == TRAINED:
            hfexp.train(*MODEL, f"dataset.source.data_files={files}", outputs)
        else:
            hfexp.evaluate("run=last", outputs, "split=test")
        watch.done.set()
    print(json.dumps({"anonymous": watch.most, "whole": peak_memory()}))


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
