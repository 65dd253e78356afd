"""Accuracy of the main job on an untouched test split, over five seeds and splits, beside classical models.

The model is chosen on the validation split; the classical ones are fitted on exactly the same training rows (their
settings are scikit-learn's defaults, on pixels scaled to 0..1), and all are tested on the same test rows.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run, print a table and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    rows: dict[str, list[float]] = {"hfexp (ViT)": [], "logistic regression": [], "SVM (RBF)": []}
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.seeds):
            words = ["experiment=digits_vit", f"seed={seed}", f"dataset.split_seed={seed}", "tracking=none"]
            accuracy, duration, peers = measure([*words, f"output_dir={scratch}"])
            rows["hfexp (ViT)"].append(accuracy)
            seconds.append(duration)
            for name, value in peers.items():
                rows[name].append(value)
    write(rows, seconds)


def measure(words: list[str]) -> tuple[float, float, dict[str, float]]:
    """Test accuracy and seconds of training of one run, and the test accuracy of the peers."""
    from hfexp import train
    from hfexp.api import compose
    from hfexp.preflight import prepare

    result = train(*words)
    dataset = prepare(compose(*words)).dataset
    return result.metrics["test_accuracy"], result.train_seconds, classical(dataset)


def classical(dataset: Any) -> dict[str, float]:
    """Test accuracy of scikit-learn's models on the pixels of the same splits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    from hfexp.images import open_image

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


def write(rows: dict[str, list[float]], seconds: list[float]) -> None:
    """Print the table; keep it as Markdown and JSON."""
    lines = ["| model | test accuracy (mean, 95 % interval) | each seed and split |", "|---|---|---|"]
    for name, values in rows.items():
        each = ", ".join(f"{v:.4f}" for v in values)
        lines.append(f"| {name} | {np.mean(values):.4f} ± {interval(values):.4f} | {each} |")
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    lines += ["", f"Training: {np.median(seconds):.0f} s (median; {max(seconds):.0f} s at most) on {machine}."]
    text = "\n".join(lines)
    print("\n" + text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "digits_accuracy.md").write_text(text + "\n")
    content = {"test_accuracy": rows, "train_seconds": seconds, "machine": machine}
    (RESULTS / "digits_accuracy.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
