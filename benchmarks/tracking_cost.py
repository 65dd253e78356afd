"""What tracking costs: the same training recorded by hfexp, not recorded, and recorded by Transformers' own callback.

    python -m benchmarks.tracking_cost [--rounds 5] [--only toy|digits]

Each run has a process of its own; the variants take turns, so that a slow minute of the machine hits all of them.
Compared is the time of the training loop. The whole process is shown beside it: there tracking includes opening the
store, the pictures, and the model that is saved, loaded again, compared and uploaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "tracking_cost.md"
LIMIT = 0.02

RUN = """
import json, sys, time
start = time.perf_counter()
from hfexp import api
result = api.train(*json.loads(sys.argv[1]))
print("RESULT", json.dumps([result.train_seconds, result.seconds]))
"""

JOBS = {
    "toy": ["experiment=digits_vit", "metrics=accuracy", "dataset.max_train_samples=512",
            "model.config.hidden_size=64", "model.config.intermediate_size=128", "trainer.args.num_train_epochs=32",
            "trainer.args.max_steps=500", "trainer.args.logging_steps=10"],
    "digits": ["experiment=digits_vit"],
}  # fmt: skip
HF_CALLBACK = "trainer.callbacks.hf={_target_: transformers.integrations.MLflowCallback}"
VARIANTS = {
    "off": ["tracking=none"],
    "hfexp": [],
    "HF callback": ["tracking=none", HF_CALLBACK, "security.allowed_targets=[transformers.integrations]"],
}


def measure(words: list[str]) -> tuple[float, float]:
    """Seconds of the training loop and of the whole process, in a fresh directory with a store that exists."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}
        script = "import sys, mlflow; mlflow.MlflowClient().search_experiments()"
        subprocess.run([sys.executable, "-c", script], env=environment, cwd=place, check=True, capture_output=True)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(words)], env=environment, cwd=place, capture_output=True, text=True
        )
        whole = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))[0], whole


def compare(job: str, rounds: int) -> list[str]:
    """Rows of the table for one job."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        order = list(VARIANTS.items())
        for name, more in order[number % 3 :] + order[: number % 3]:
            times[name].append(measure([*JOBS[job], *more]))
            print(
                f"{job} {name}: {times[name][-1][0]:.2f} s of training, {times[name][-1][1]:.2f} s in all", flush=True
            )
    rows = []
    for name in VARIANTS:
        ratios = [own[0] / off[0] - 1 for own, off in zip(times[name], times["off"], strict=True)]
        cost = "" if name == "off" else f"{100 * statistics.median(ratios):+.1f} %"
        train, whole = (statistics.median(column) for column in zip(*times[name], strict=True))
        rows.append(f"| {job} | {name} | {train:.2f} | {cost} | {whole:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=JOBS)
    args = parser.parse_args()
    jobs = [args.only] if args.only else list(JOBS)
    rows = [row for job in jobs for row in compare(job, args.rounds)]
    text = "\n".join(
        [
            f"Medians of {args.rounds} interleaved rounds on {os.cpu_count()} cores; cost: median of the ratios to",
            f"the run without tracking in the same round (limit: {100 * LIMIT:.0f} %).",
            "",
            "| job | tracking | training, s | cost | whole process, s |",
            "|---|---|--:|--:|--:|",
            *rows,
        ]
    )
    print(text)
    if not args.only:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
