"""Time of `hfexp compare` on a store of 1,000 runs, beside MLflow's own search for the same runs.

Each run has about 150 params, 60 metrics with a history, and 30 tags. Whole processes are timed, imports included, in
turns; `search_runs` alone is timed once more inside a process that has MLflow imported already.
"""

import argparse
import math
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NUM_PARAMS, NUM_METRICS, NUM_POINTS, NUM_TAGS = 150, 60, 10, 30
START = "import sys; from hfexp.compare import main; sys.exit(main(sys.argv[1:]))"
SEARCH = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
ids = [e.experiment_id for e in client.search_experiments()]
page = client.search_runs(ids)
count = len(page)
while page.token:
    page = client.search_runs(ids, page_token=page.token)
    count += len(page)
assert count == int(sys.argv[2]), count
"""


def main() -> None:
    """Make the store, time, print a table and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the store here and leave it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = (args.keep or Path(scratch) / "mlflow.db").absolute()
        make_store(path, args.runs)
        uri = f"sqlite:///{path}"
        search = ["-c", SEARCH, uri, str(args.runs)]
        compare = ["-c", START, "--uri", uri]
        ways = {
            "MLflow `search_runs`, all pages": lambda: process(search),
            "`hfexp compare`": lambda: process(compare),
            "`hfexp compare --where` (a fifth of the runs)": lambda: process(
                [*compare, "--where", "metrics.test_accuracy > 0.95"]
            ),
            "`hfexp compare --format csv`": lambda: process([*compare, "--format", "csv"]),
            "MLflow `search_runs`, imported already": lambda: search_in_process(uri),
            "`hfexp.records.read_runs`, imported already": lambda: read_in_process(uri, args.runs),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                seconds[name].append(way())
        write(seconds, args.runs, path.stat().st_size)


def process(words: list[str]) -> float:
    """Seconds of a Python process from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def search_in_process(uri: str) -> float:
    """Seconds of the search alone."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]

    def search() -> None:
        page = client.search_runs(ids)
        while page.token:
            page = client.search_runs(ids, page_token=page.token)

    return timed(search)


def read_in_process(uri: str, count: int) -> float:
    """Seconds of reading alone."""
    from hfexp.records import read_runs

    def read() -> None:
        assert len(read_runs(uri)) == count

    return timed(read)


def timed(function: Callable[[], None]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def make_store(path: Path, count: int) -> None:
    """A store as a sweep over learning rate, width and seed leaves it."""
    from mlflow import MlflowClient

    path.unlink(missing_ok=True)
    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment("digits_vit", artifact_location=(path.parent / "artifacts").as_uri())
    generator = random.Random(0)
    tables: dict[str, list[tuple]] = {name: [] for name in ("runs", "params", "tags", "metrics", "latest_metrics")}
    for number in range(count):
        add_run(tables, generator, experiment, number)
    columns = {
        "runs": "run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, user_id, source_type",
        "params": "run_uuid, key, value",
        "tags": "run_uuid, key, value",
        "metrics": "run_uuid, key, value, timestamp, step, is_nan",
        "latest_metrics": "run_uuid, key, value, timestamp, step, is_nan",
    }
    connection = sqlite3.connect(path)
    for table, rows in tables.items():
        places = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} ({columns[table]}) VALUES ({places})", rows)
    connection.commit()
    connection.close()


def add_run(tables: dict[str, list[tuple]], generator: random.Random, experiment: str, number: int) -> None:
    """One run's rows; the accuracy follows from the params, with noise, and a few runs have failed."""
    run_id = f"{generator.getrandbits(128):032x}"
    rate, width, seed = 10 ** generator.uniform(-5, -2), generator.choice([16, 32, 64, 128]), number % 5
    failed = number % 50 == 49
    accuracy = 0.97 - 0.05 * abs(math.log10(rate) + 3.3) + 0.01 * math.log2(width / 64) + generator.gauss(0, 0.01)
    started = 1_760_000_000_000 + number * 60_000
    name = f"digits_vit-lr{rate:.1e}-w{width}-s{seed}-{run_id[:4]}"
    status = "FAILED" if failed else "FINISHED"
    tables["runs"].append(
        (run_id, name, status, started, started + 40_000 + number, "active", experiment, "me", "LOCAL")
    )
    params = {f"section_{i // 15}.part.option_{i}": f"value {i}" for i in range(NUM_PARAMS - 5)}
    params |= {"seed": seed, "name": name, "model.path": "vit", "model.config.hidden_size": width}
    params |= {"trainer.args.learning_rate": f"{rate:.3e}"}
    tables["params"] += [(run_id, key, str(value)) for key, value in params.items()]
    tags = {f"hfexp.tag_{i}": f"value {i}" for i in range(NUM_TAGS - 3)}
    tags |= {"mlflow.runName": name, "hfexp.metric": "test_accuracy", "hfexp.metric_direction": "max"}
    tables["tags"] += [(run_id, key, value) for key, value in tags.items()]
    final = {"final_eval_accuracy": accuracy, "final_eval_loss": 1.3 - accuracy, "test_runtime": 0.3}
    final |= {"test_accuracy": accuracy + generator.gauss(0, 0.005), "test_loss": 1.31 - accuracy}
    names = ["loss", "eval_accuracy", "eval_loss", *(f"system/metric_{i}" for i in range(NUM_METRICS - 8))]
    for step in range(NUM_POINTS):
        values = {key: accuracy * (1 - 0.5 ** (step + 1)) + generator.gauss(0, 0.003) for key in names}
        points = [(run_id, key, value, started + step, step * 10, 0) for key, value in values.items()]
        tables["metrics"] += points
    points += [] if failed else [(run_id, key, v, started + 99, 100, 0) for key, v in final.items()]
    tables["metrics"] += points[len(names) :]
    tables["latest_metrics"] += points


def write(seconds: dict[str, list[float]], count: int, size: int) -> None:
    """Print the table and keep it."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    own_baseline = medians["MLflow `search_runs`, imported already"]
    process_baseline = medians["MLflow `search_runs`, all pages"]
    lines = [
        f"{count:,} runs, {NUM_PARAMS} params, {NUM_METRICS} metrics of {NUM_POINTS} points and {NUM_TAGS} tags each"
    ]
    lines[0] += f"; SQLite, {size / 1e6:.0f} MB."
    lines += ["", "| | seconds (median) | worst | times faster than `search_runs` |", "|---|---|---|---|"]
    for name, values in seconds.items():
        baseline = own_baseline if "already" in name else process_baseline
        lines.append(f"| {name} | {medians[name]:.2f} | {max(values):.2f} | {baseline / medians[name]:.1f} |")
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    lines += ["", f"Whole processes unless imported already; {len(values)} repeats in turns on {machine}."]
    text = "\n".join(lines)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compare_runs.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
