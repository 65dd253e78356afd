"""Every ending in every store: nothing is FINISHED that did not finish, and nothing that was reported is lost.

The tests make the table in docs/endings.md: `HFEXP_WRITE_DOCS=1 pytest tests/chaos/test_stores.py` writes it anew.
"""

import math
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS, TESTS
from documents import write_section
from faults import fault_at
from servers import FIRST_USE, MlflowServer, Postgres
from test_faults import finish, start

from hfexp.commands import api
from hfexp.tracking.journal import Journal

pytestmark = pytest.mark.slow
STORES = ["SQLite", "PostgreSQL", "server on SQLite", "server on PostgreSQL"]
SERVERS = STORES[2:]
OBSERVED: dict[str, dict[str, str]] = {}
MORE = """\
**A closed terminal** (SIGHUP) ends a run as SIGTERM does: a checkpoint, KILLED with the reason
`stopped by SIGHUP (hangup: its terminal was closed)`, exit code 129; the same command continues it. Under `nohup` the
run goes on.

**A full disk** ends a run with one message, exit code 1 and FAILED. If the log can't be written any more, one line
says so. Checkpoints that were whole before stay whole; the same command continues from the newest of them.
"""
"""What is below the table."""


@dataclass
class Store:
    uri: str
    server: MlflowServer | None


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    cluster = Postgres().start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Store]]:
    made: dict[str, Store] = {}

    def get(kind: str) -> Store:
        if kind not in made:
            place = tmp_path_factory.mktemp("store")
            uri = f"sqlite:///{place / 'mlflow.db'}"
            if "PostgreSQL" in kind:
                uri = request.getfixturevalue("postgres").new_database()
            server = MlflowServer(place, uri) if kind.startswith("server") else None
            made[kind] = Store(server.uri if server else uri, server)
        store = made[kind]
        if store.server is not None and store.server.process is None:
            store.server.start()
        return store

    yield get
    for store in made.values():
        if store.server is not None:
            store.server.stop()
    write_table()


def write_table() -> None:
    """The table of what was observed, for the documentation."""
    lines = [f"| ending | {' | '.join(STORES)} |", "|---" * (1 + len(STORES)) + "|"]
    for ending, by_store in OBSERVED.items():
        lines.append(f"| {ending} | {' | '.join(by_store.get(store, '-') for store in STORES)} |")
    text = (
        "Observed by `tests/chaos/test_stores.py`: status after the next start, metrics in the store of those that "
        "the run had reported, and how many files it has there (a dash: does not apply, or not tried). Written by "
        "that test;\n`HFEXP_WRITE_DOCS=1 pytest tests/chaos/test_stores.py` writes it anew.\n\n"
    )
    write_section("endings.md", "# How runs end in the record", text + "\n".join(lines) + f"\n\n{MORE}")


class Case:
    """One run in a store of its own experiment, and what is in the record afterwards."""

    def __init__(self, place: Path, store: Store, ending: str, kind: str) -> None:
        self.place, self.store, self.ending, self.kind = place, store, ending, kind
        self.experiment = re.sub(r"\W+", "-", f"{ending} {kind}")
        self.words = [*SMALL_DIGITS, "trainer.args.logging_steps=1", f"tracking.uri={store.uri}",
                      f"tracking.experiment={self.experiment}", *fault_at(5)]  # fmt: skip
        self.client = mlflow.MlflowClient(store.uri)

    def run(self, fault: str = "") -> tuple[int, str]:
        if fault:
            (self.place / "fault").write_text(fault)
        return finish(self.words, self.place)

    def next_start(self) -> None:
        """Start another experiment below the same directory, which closes what it finds there."""
        api.train(
            *SMALL_DIGITS, f"tracking.uri={self.store.uri}", "debug=fast", f"output_dir={self.place / 'outputs'}"
        )

    def expect(self, status: str, reason: str) -> None:
        """Check the record, and note it for the table."""
        found = [path.parent.parent for path in self.place.glob("outputs/*/*/tracking/journal.jsonl")]
        (run_dir,) = (path for path in found if next(Journal(path).read())[0]["experiment"] == self.experiment)
        experiment = self.client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        (run,) = self.client.search_runs([experiment.experiment_id])
        reported = {
            (name, entry["step"], value)
            for entry, _ in Journal(run_dir).read()
            if entry["kind"] == "metrics"
            for name, value in entry["metrics"].items()
            if math.isfinite(value)
        }
        points = [p for name in run.data.metrics for p in self.client.get_metric_history(run.info.run_id, name)]
        kept = {(point.key, point.step, point.value) for point in points}
        files = {file.path for file in self.client.list_artifacts(run.info.run_id)}
        assert run.info.status == status
        assert reason in run.data.tags.get("hfexp.status_reason", "")
        assert reported <= kept, f"{len(reported - kept)} of {len(reported)} are missing"
        times = Counter((point.key, point.step) for point in points)
        twice = [point for point in points if times[point.key, point.step] > 1]
        assert not twice, f"recorded twice: {twice}"
        assert {"config.yaml", "environment.json", "requirements.txt", "hfexp.log"} <= files
        if status == "FINISHED":
            assert {"results.json"} <= files
        if status == "FAILED":
            assert "traceback.txt" in files
        text = f"{status}, {len(reported & kept)} of {len(reported)} metrics, {len(files)} files"
        OBSERVED.setdefault(self.ending, {})[self.kind] = text


ENDINGS = {
    "success": ("", 0, "FINISHED", ""),
    "exception": ("error", 1, "FAILED", "RuntimeError: the disk caught fire"),
    "sys.exit(0)": ("leave 0", 1, "FAILED", "sys.exit(0) was called"),
    "sys.exit(3)": ("leave 3", 3, "FAILED", "sys.exit(3) was called"),
    "Ctrl-C": ("SIGINT", 130, "KILLED", "stopped by Ctrl-C"),
    "Ctrl-C twice": ("interrupt_twice", 130, "KILLED", "stopped by Ctrl-C"),
    "SIGTERM": ("SIGTERM", 143, "KILLED", "stopped by SIGTERM"),
    "SIGKILL": ("SIGKILL", -9, "KILLED", "its process is gone"),
}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_endings(ending: str, kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    fault, code, status, reason = ENDINGS[ending]
    case = Case(place, stores(kind), ending, kind)
    returned, output = case.run(fault)
    assert returned == code, output
    assert "Traceback" not in output
    if ending in ("SIGKILL", "Ctrl-C twice"):
        case.next_start()
    case.expect(status, reason)


@pytest.mark.parametrize("kind", STORES)
def test_the_machine_is_gone(kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    """Killed with everything else; the next start is after the machine's own."""
    case = Case(place, stores(kind), "machine gone", kind)
    (place / "fault").write_text("SIGKILL")
    script = (
        "import sys, hfexp.core.process as process\n"
        "machine = process._machine()\n"
        "process._machine = lambda: (machine[0], 'an-earlier-start', machine[2])\n"
        "from hfexp.commands.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, "-c", script, *case.words], cwd=place, env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    case.next_start()
    case.expect("KILLED", "its process is gone")


@pytest.mark.parametrize("kind", STORES)
def test_the_disk_is_full(kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    (place / "outputs").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place / "outputs")], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be made by root")
    try:
        case = Case(place, stores(kind), "disk full", kind)
        if kind == "SQLite":  # the default: the store is on the same disk
            case.words = [word for word in case.words if not word.startswith("tracking.uri")]
            case.client = mlflow.MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
        code, output = case.run("fill_disk")
        assert code == 1, output
        assert "No space left on device" in output
        (place / "outputs" / "filler").unlink()
        if kind == "SQLite":
            api.train(*SMALL_DIGITS, "debug=fast", "seed=7")
        case.expect("FAILED", "No space left on device")
    finally:
        subprocess.run(["umount", "-l", str(place / "outputs")], check=True)


@pytest.mark.parametrize("kind", SERVERS)
def test_the_server_is_away_at_the_start(kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    store = stores(kind)
    assert store.server is not None
    case = Case(place, store, "server away at the start", kind)
    store.server.stop()
    code, output = case.run()
    assert code == 0, output
    assert "no MLflow server answers" in output
    assert "`hfexp sync` delivers it" in output
    store.server.start()
    assert finish(["sync"], place)[0] == 0
    case.expect("FINISHED", "")


@pytest.mark.parametrize("kind", SERVERS)
def test_the_server_is_away_in_the_middle(kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    store = stores(kind)
    assert store.server is not None
    assert store.server.process is not None
    case = Case(place, store, "server away in the middle", kind)
    case.words += ["trainer.args.num_train_epochs=400", "trainer.args.logging_steps=10"]
    (place / "fault").write_text(f"kill_group {store.server.process.pid}")
    process = start(case.words, place)
    store.server.process.wait()
    store.server.stop()
    time.sleep(3)
    store.server.start()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "is incomplete" not in output
    case.expect("FINISHED", "")


@pytest.mark.parametrize("kind", SERVERS)
def test_the_server_is_away_at_the_end(kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    store = stores(kind)
    assert store.server is not None
    assert store.server.process is not None
    case = Case(place, store, "server away at the end", kind)
    code, output = case.run(f"kill_group {store.server.process.pid}")
    assert code == 0, output
    assert "`hfexp sync` delivers it" in output
    store.server.stop()
    store.server.start()
    code, output = finish(["sync"], place)
    assert (code, "1 delivered" in output) == (0, True), output
    case.expect("FINISHED", "")


@pytest.mark.parametrize("kind", ["SQLite", "server on SQLite"])
def test_killed_at_random_moments(kind: str, place: Path, stores: Callable[[str], Store]) -> None:
    """Whatever had been reported when it was killed is there after the next start; nothing is FINISHED."""
    generator = random.Random(0)
    ending = "SIGKILL at a random moment"
    for attempt in range(5):
        own = place / str(attempt)
        own.mkdir()
        case = Case(own, stores(kind), ending, kind)
        case.experiment += f"-{attempt}"
        case.words += ["trainer.args.num_train_epochs=3000", f"tracking.experiment={case.experiment}"]
        process = start(case.words, own)
        assert process.stdout is not None
        while "  epoch" not in (line := process.stdout.readline()):
            assert line, "it ended before its first epoch"
        time.sleep(generator.uniform(0, 3))
        process.kill()
        process.communicate()
        case.next_start()
        case.expect("KILLED", "its process is gone")


def test_twenty_processes_make_a_fresh_postgresql_store_at_once(place: Path, postgres: Postgres) -> None:
    uri = postgres.new_database()
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", FIRST_USE, uri, str(number)]) for number in range(20)
    ]
    assert [process.wait(300) for process in processes] == [0] * 20
    client: Any = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.metrics["loss"] for run in runs) == [float(n) for n in range(20)]
    assert experiment.artifact_location == (place / "out" / "artifacts" / "digits").as_uri()
