"""Adapting a model to texts without labels before it is fine-tuned on few labelled rows, beside fine-tuning it alone.

    python -m benchmarks.adapting [--rounds SEEDS] [--model DIR]

A small BERT learns the roles of names in lines of Python's standard library from a few tagged lines: after it has
learnt to fill in masked words of lines without tags (`task=fill_mask`), and without. Both have the same tokenizer, the
same rows and the same settings of fine-tuning, which were tried with another seed on validation. No package of the
test split is in the lines without tags. The model is adapted once; the seeds are those of fine-tuning.
"""

import sys
from pathlib import Path

from benchmarks.harness import Report, parser, publish, scratch, silence, table, train, with_interval

FIRST_SEED, SEEDS = 1, 5
LABELLED = 100
SOURCE = "{_target_: hfexp.data.sources.python_questions, most: 6000}"
MODEL = (
    "model=tiny_bert_subwords", "model.model_type=roformer", "model.config.num_hidden_layers=2",
    "model.config.vocab_size=2048", f"model.processor.source={SOURCE}", "model.processor.column=context",
)  # fmt: skip
ADAPT = (
    "task=fill_mask", "task.block_size=64", "dataset=python_questions", "dataset.source.most=6000",
    "dataset.columns.text=context", *MODEL, "trainer=scratch", "trainer.args.num_train_epochs=6",
    "trainer.args.learning_rate=4e-3", "trainer.args.per_device_train_batch_size=16",
    "trainer.args.lr_scheduler_type=linear",
)  # fmt: skip
TUNE = (
    "task=token_classification", "dataset=python_names", f"dataset.max_train_samples={LABELLED}", "trainer=scratch",
    "trainer.args.per_device_train_batch_size=8", "trainer.args.num_train_epochs=20",
)  # fmt: skip
ADAPTED, ALONE = "adapted first", "not adapted"


def run(rounds: int | None = None, quick: bool = False, model: Path | None = None) -> Report:
    """Fine-tune with each seed in both ways; without a model that was adapted before, adapt one."""
    report = Report("adapting", (__doc__ or "").splitlines()[0].rstrip("."))
    few = ["trainer.args.max_steps=2"] if quick else []
    found: dict[str, list[float]] = {ADAPTED: [], ALONE: []}
    with scratch() as place:
        start = model or adapt(few, place / "adapting")
        for seed in range(FIRST_SEED, FIRST_SEED + (rounds or (2 if quick else SEEDS))):
            for way, own in {ADAPTED: ("model=local", f"model.path={start}"), ALONE: MODEL}.items():
                found[way].append(tune([*TUNE, *own, f"seed={seed}", *few]))
                print(f"  seed {seed}, {way}: {found[way][-1]:.3f}", file=sys.stderr, flush=True)
    summarise(report, found)
    return report


def adapt(words: list[str], place: Path) -> Path:
    """Train by `task=fill_mask`; return the folder of the model."""
    train([*ADAPT, *words], place)
    (model,) = place.glob("outputs/*/*/model")
    return model


def tune(words: list[str]) -> float:
    """Fine-tune in this process; return the F1 of the test split."""
    import hfexp

    with silence():
        return hfexp.train(*words, "tracking=none").metrics["test_f1"]


def summarise(report: Report, found: dict[str, list[float]]) -> None:
    """Means with 95 % intervals over the seeds, and the difference seed by seed."""
    rows = [
        [way, with_interval(scores), ", ".join(f"{score:.3f}" for score in scores)] for way, scores in found.items()
    ]
    report.blocks.append(table(["", "F1 on the test split", "by seed"], rows))
    differences = [adapted - alone for adapted, alone in zip(found[ADAPTED], found[ALONE], strict=True)]
    report.blocks.append(f"{ADAPTED} - {ALONE}, same seeds: {with_interval(differences)}")
    report.data |= {"f1": found, "differences": differences}


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="folder of a model that was adapted before")
    args = options.parse_args(argv)
    model = args.model and args.model.absolute()
    publish(run(args.rounds, args.quick, model), keep=not args.quick)


if __name__ == "__main__":
    main()
