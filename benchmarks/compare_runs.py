"""Time of `hfexp compare` on stores of 1,000 and 10,000 runs, beside MLflow's own search for the runs of the first.

Each run has about 150 params, 60 metrics with a history, and 30 tags. Whole processes are timed, imports included, in
turns; `search_runs` alone is timed once more inside a process that has MLflow imported already. On 10,000 runs, where
it would take minutes, it is left out.
"""

import math
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Ratio, Report, interleave, parser, publish, ratio, scratch, table, turns

NUM_RUNS, ROUNDS = 1000, 5
MANY_RUNS = 10_000
SECONDS = 3.0
"""What `hfexp compare` may take on `MANY_RUNS`."""
FILTERED_LIMIT = 1.5
"""What it may take with a filter, as a multiple of that."""
NUM_PARAMS, NUM_METRICS, NUM_POINTS, NUM_TAGS = 150, 60, 10, 30
START = "import sys; from hfexp.commands.compare import main; sys.exit(main(sys.argv[1:]))"
FILTER = ("--where", "metrics.test_accuracy > 0.95")
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
SEARCHED, SEARCHED_HERE = "MLflow `search_runs`, all pages", "MLflow `search_runs`, imported already"
COMPARED, READ_HERE = "`hfexp compare`", "`hfexp.tracking.runs.read_runs`, imported already"
FILTERED = "`hfexp compare --where` (a fifth of the runs)"


def run(rounds: int | None = None, quick: bool = False, keep: Path | None = None, count: int = NUM_RUNS) -> Report:
    """Make the store (at `keep`, to stay there) and time."""
    count = 20 if quick else count
    kept = keep.absolute() if keep else None
    with scratch() as place:
        path = kept or place / "mlflow.db"
        make_store(path, count)
        uri = f"sqlite:///{path}"
        search = ["-c", SEARCH, uri, str(count)]
        compare = ["-c", START, "--uri", uri]
        ways = {
            SEARCHED: lambda: process(search),
            COMPARED: lambda: process(compare),
            FILTERED: lambda: process([*compare, *FILTER]),
            "`hfexp compare --format csv`": lambda: process([*compare, "--format", "csv"]),
            SEARCHED_HERE: lambda: search_in_process(uri),
            READ_HERE: lambda: read_in_process(uri, count),
        }
        found = interleave(ways, 1 if quick else rounds or ROUNDS)
        report = describe(found, count, path.stat().st_size)
        if not keep and count == NUM_RUNS:
            add_many(report, place / "many.db", rounds or ROUNDS)
        return report


def add_many(report: Report, path: Path, rounds: int) -> None:
    """Time the command on ten times as many runs."""
    make_store(path, MANY_RUNS)
    compare = ["-c", START, "--uri", f"sqlite:///{path}"]
    ways = {COMPARED: lambda: process(compare), FILTERED: lambda: process([*compare, *FILTER])}
    found = interleave(ways, rounds)
    bound = Ratio(f"{COMPARED}, s", tuple(found[COMPARED]), SECONDS)
    report.section(
        f"{MANY_RUNS:,} runs, {turns(rounds)}", "s", found, [bound, ratio(found, FILTERED, COMPARED, FILTERED_LIMIT)]
    )


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
    from hfexp.tracking.runs import read_runs

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
    for name, rows in tables.items():
        places = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {name} ({columns[name]}) VALUES ({places})", rows)
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
    points: list[tuple] = []
    for step in range(NUM_POINTS):
        values = {key: accuracy * (1 - 0.5 ** (step + 1)) + generator.gauss(0, 0.003) for key in names}
        points = [(run_id, key, value, started + step, step * 10, 0) for key, value in values.items()]
        tables["metrics"] += points
    points += [] if failed else [(run_id, key, v, started + 99, 100, 0) for key, v in final.items()]
    tables["metrics"] += points[len(names) :]
    tables["latest_metrics"] += points


def describe(seconds: dict[str, list[float]], count: int, size: int) -> Report:
    """The table, and the numbers behind it."""
    report = Report("compare_runs", (__doc__ or "").splitlines()[0].rstrip("."))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        baseline = medians[SEARCHED_HERE if "already" in name else SEARCHED]
        rows.append([name, f"{medians[name]:.2f}", f"{max(values):.2f}", f"{baseline / medians[name]:.1f}"])
    report.blocks = [
        f"{count:,} runs, {NUM_PARAMS} params, {NUM_METRICS} metrics of {NUM_POINTS} points and {NUM_TAGS} tags each; "
        f"SQLite, {size / 1e6:.0f} MB.",
        table(["", "seconds (median)", "worst", "times faster than `search_runs`"], rows),
        f"Whole processes unless imported already; {turns(len(seconds[SEARCHED]))}, interleaved.",
    ]
    report.ratios = [ratio(seconds, SEARCHED, COMPARED), ratio(seconds, SEARCHED_HERE, READ_HERE)]
    ratios = {found.label: found.facts() for found in report.ratios}
    report.data = {"runs": count, "bytes": size, "seconds": seconds, "ratios": ratios}
    return report


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=NUM_RUNS)
    options.add_argument("--keep", type=Path, help="make the store here and leave it")
    args = options.parse_args(argv)
    publish(run(args.rounds, args.quick, args.keep, args.runs), keep=not args.quick and args.runs == NUM_RUNS)


if __name__ == "__main__":
    main()
