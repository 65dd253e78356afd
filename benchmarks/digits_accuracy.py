"""Accuracy of the main job on an untouched test split, over five seeds and splits, beside classical models.

The model is chosen on the validation split; the classical ones are fitted on exactly the same training rows (their
settings are scikit-learn's defaults, on pixels scaled to 0..1), and all are tested on the same test rows.
"""

from typing import Any

import numpy as np

from benchmarks.harness import Report, parser, publish, scratch, silence, table

SEEDS = 5


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """One training per round, each with its own seed and split."""
    rows: dict[str, list[float]] = {"hfexp (ViT)": [], "logistic regression": [], "SVM (RBF)": []}
    seconds = []
    with scratch():
        for seed in range(2 if quick else rounds or SEEDS):
            words = ["experiment=digits_vit", f"seed={seed}", f"dataset.split_seed={seed}", "tracking=none"]
            accuracy, duration, peers = measure([*words, "trainer.args.num_train_epochs=1"] if quick else words)
            rows["hfexp (ViT)"].append(accuracy)
            seconds.append(duration)
            for name, value in peers.items():
                rows[name].append(value)
    return describe(rows, seconds)


def measure(words: list[str]) -> tuple[float, float, dict[str, float]]:
    """Test accuracy and seconds of training of one run, and the test accuracy of the peers."""
    from hfexp import train
    from hfexp.commands.api import compose
    from hfexp.experiment.preflight import load_inputs

    with silence():
        result = train(*words)
        dataset = load_inputs(compose(*words)).dataset
    return result.metrics["test_accuracy"], result.train_seconds, classical(dataset)


def classical(dataset: Any) -> dict[str, float]:
    """Test accuracy of scikit-learn's models on the pixels of the same splits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    from hfexp.tasks.images import open_image

    def table(split: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = [np.asarray(open_image(row["image"]), dtype=np.float64).ravel() / 255 for row in dataset[split]]
        return np.stack(pixels), np.asarray(dataset[split]["label"][:])

    train, test = table("train"), table("test")
    models = {"logistic regression": LogisticRegression(max_iter=5000), "SVM (RBF)": SVC()}
    return {name: float(model.fit(*train).score(*test)) for name, model in models.items()}


def interval(values: list[float]) -> float:
    """Half width of the 95 % confidence interval of the mean (Student's t)."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def describe(rows: dict[str, list[float]], seconds: list[float]) -> Report:
    """The table, and the numbers behind it."""
    report = Report("digits_accuracy", (__doc__ or "").splitlines()[0].rstrip("."))
    cells = [
        [name, f"{np.mean(values):.4f} ± {interval(values):.4f}", ", ".join(f"{v:.4f}" for v in values)]
        for name, values in rows.items()
    ]
    report.blocks = [
        table(["model", "test accuracy (mean, 95 % interval)", "each seed and split"], cells),
        f"Training: {np.median(seconds):.0f} s (median; {max(seconds):.0f} s at most).",
    ]
    report.data = {"test_accuracy": rows, "train_seconds": seconds}
    return report


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
