"""Commands killed in every phase: the same command ends with the same numbers, in the same run, and leaves nothing.

`HFEXP_KILLS=8 pytest tests/chaos/test_kills.py` kills eight times in each phase instead of once. With
`HFEXP_WRITE_DOCS=1` the table of docs/endings.md is written anew.
"""

import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
from conftest import SMALL_DIGITS, SMALL_GPT, encoded_digits
from disks import SlowDisk
from documents import read_section, write_section
from programs import OUTPUT, Fork, Program, kill, suspend
from servers import MlflowServer, Postgres

HEADING = "## Killed in every phase"
ABOUT = """\
{total} kills by `tests/chaos/test_kills.py`, at random moments of each phase (`HFEXP_KILLS=7 HFEXP_WRITE_DOCS=1 pytest
tests/chaos/test_kills.py` writes the table anew): SIGKILL of everything that the command had started, or of the named
part.
A kill counts only if the phase was still on. After up to eight kills the same command runs to its end and is
compared with one that was not disturbed: the weights, answers, scores and trials byte for byte, every metric of every
step to the last digit, the runs in MLflow, and which files there are. Columns after the first two count what differs:
metrics that are missing; metrics and runs that are there twice; other values; runs that are not FINISHED; files that
the undisturbed command does not leave.

The slow disk is a file behind a loop device that takes 20 writes a second (a limit of a cgroup): an `fsync` takes a
fifth of a second. What a killed command has put into the system's directory for temporary files stays there, and the
`traceback.txt` that a failed start has recorded stays with the run.

"""
KILLS = int(os.environ.get("HFEXP_KILLS", "1"))
"""In each phase."""
IN_A_ROW = 8
"""Kills before a command is let alone."""
PATIENCE = 300.0
ONE_THREAD = "launch.num_threads=1"
DIGITS = (*SMALL_DIGITS, "trainer.args.num_train_epochs=12", "trainer.args.logging_steps=1", ONE_THREAD)
LONG = (*DIGITS, "trainer.args.num_train_epochs=60", "trainer.args.save_total_limit=2")
TEXTS = (*SMALL_GPT, "task=text_generation", "dataset.source.data_files=texts.csv", "task.block_size=64", ONE_THREAD)
SWEEP = ("-m", *SMALL_DIGITS, "trainer.args.learning_rate=1e-4,2e-4,3e-4,4e-4", "search.name=kills", ONE_THREAD)
DDP = (*DIGITS, "launch=ddp", "launch.num_processes=2", "trainer.args.per_device_train_batch_size=16")
EVALUATE = ("evaluate", "run=TRAINED", "by=label", "output=scores.json", "batch_size=1")
PREDICT = ("predict", "run=TRAINED", "photos", "output=answers.csv", "batch_size=1")
IDENTITY = re.compile(r"-[0-9a-f]{8}(?=(-\d+)?$)")
"""In names of run directories; MLflow's names of runs lack it."""
TIMED = re.compile(r"runtime|per_second|preparation_time|^time/|data_time|memory_mb|_seconds$")
"""Metrics whose values are measured times, or kept by the time."""
CLOCKED = re.compile(r"^system/|^trials_|^hours$")
"""Metrics whose steps are seconds."""
OWN_NAMES = re.compile(r"[0-9a-f]{32}|[0-9a-f]{16}-[0-9a-f]{8}|kills-\d+|digits(?=/)")
"""In paths: ids, locks of points of sweeps, and experiments."""
RESULTS = re.compile(r"^outputs/[^/]+/[^/]+/model/model\.safetensors$|^(scores\.json|answers\.csv)$")
UNSEEN = re.compile(r"\.db-(wal|shm)$|lost\+found|/traceback\.txt$")
"""SQLite's own files, and what a start has recorded of its failure."""

Command = Program | Fork
Begun = Callable[[Path, float], bool]
Members = Callable[[Command], list[psutil.Process]]


def always(place: Path, since: float) -> bool:
    """From the first moment on."""
    return True


def made(pattern: str) -> Begun:
    """A file that this start of the command has made is there."""

    def begun(place: Path, since: float) -> bool:
        times = []
        for path in place.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times, default=0.0) > since

    return begun


def said(text: str, until: str = "best eval_") -> Begun:
    """The command has said this, and not yet that."""

    def begun(place: Path, since: float) -> bool:
        output = (place / OUTPUT).read_text() if (place / OUTPUT).exists() else ""
        return text in output and until not in output and not ending(place, since)

    return begun


def ending(place: Path, since: float) -> bool:
    """Training has finished, and its end is not yet delivered."""
    paths = [path for path in place.glob("outputs/*/*/run.json") if path.stat().st_mtime > since]
    states = [json.loads(path.read_text()) for path in paths]
    return any(state["status"] == "finished" and not state["closed"] for state in states)


def family(command: Command) -> list[psutil.Process]:
    return command.family()


def itself(command: Command) -> list[psutil.Process]:
    assert isinstance(command, Fork)
    return command.itself()


def fork_server(command: Command) -> list[psutil.Process]:
    return [member for member in command.family()[1:] if "forkserver" in " ".join(member.cmdline())]


def rank(number: int) -> Members:
    """One of the processes of a run; its output tells which."""

    def find(command: Command) -> list[psutil.Process]:
        outputs = [(member, Path(f"/proc/{member.pid}/fd/1")) for member in command.family()]
        return [member for member, path in outputs if os.path.realpath(path).endswith(f"/rank{number}.log")]

    return find


def nobody(command: Command) -> list[psutil.Process]:
    return []


@dataclass(frozen=True)
class Phase:
    """Where a command is killed."""

    words: tuple[str, ...]
    begun: Begun
    within: float = 0.1
    """Seconds from its beginning in which the kill comes at the latest."""
    victims: Members = family
    store: str = "SQLite"
    """Other ones are killed too."""
    first: tuple[str, ...] = ()
    """A command that ends before."""
    beside: tuple[str, ...] = ()
    """A command that runs at the same time, and must not be disturbed."""
    start: type[Program] | type[Fork] = Fork
    slow: bool = False
    """It is done on a slow disk."""

    @property
    def kills(self) -> int:
        """Starting servers, and commands from nothing, takes its time."""
        return -(-KILLS // 3) if self.store != "SQLite" or self.start is Program else KILLS


UNKEPT = "transform.cache.enabled=false"
PHASES = {
    "the prepared data being written": Phase(DIGITS, made("cache/.building-*")),
    "the same, with another process waiting for it": Phase(
        DIGITS, made("cache/.building-*"), victims=itself, beside=(*DIGITS, "trainer.args.learning_rate=0.01")
    ),
    "texts being packed": Phase(TEXTS, made("cache/.building-*")),
    "texts being packed in memory": Phase((*TEXTS, UNKEPT), said("model:", "  epoch"), 0.3),
    "training": Phase(DIGITS, said("  epoch"), 1.0),
    "a checkpoint being saved": Phase(DIGITS, made("outputs/*/*/checkpoints/.incomplete/*")),
    "the end being delivered": Phase(DIGITS, ending, 0.3),
    "evaluate by=label output=": Phase(EVALUATE, always, 2.0, first=DIGITS),
    "its scores being recorded": Phase(EVALUATE, made("scores.json"), 0.05, first=DIGITS),
    "predict output=": Phase(PREDICT, made(".answers.csv.*"), 0.4, first=DIGITS),
    "the fork server of a sweep": Phase(
        SWEEP, made("outputs/sweeps/*/points/*.json"), 2.0, fork_server, start=Program
    ),
    "rank 0 of launch=ddp": Phase(DDP, said("model:"), 2.0, rank(0)),
    "rank 1 of launch=ddp": Phase(DDP, said("model:"), 2.0, rank(1)),
    "the parent of launch=ddp": Phase(DDP, said("  epoch"), 1.0, itself),
    "MLflow's server": Phase(LONG, said("  epoch"), 2.0, nobody, "server"),
    "MLflow's server and training": Phase(LONG, said("  epoch"), 2.0, family, "server"),
    "PostgreSQL": Phase(LONG, said("  epoch"), 2.0, nobody, "PostgreSQL"),
    "PostgreSQL and training": Phase(LONG, said("  epoch"), 2.0, family, "PostgreSQL"),
    "any moment on a slow disk": Phase(DIGITS, said("model:"), 8.0, slow=True),
}


@dataclass
class Outcome:
    """What a person would look at when all has ended."""

    content: dict[str, Any] = field(default_factory=dict)
    points: dict[tuple[str, str, int], float] = field(default_factory=dict)
    times: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    runs: list[tuple[str, str]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


@dataclass
class Tally:
    """What was found wrong after kills."""

    kills: int = 0
    lost: list[Any] = field(default_factory=list)
    doubled: list[Any] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)
    running: list[Any] = field(default_factory=list)
    left: list[Any] = field(default_factory=list)

    def faults(self) -> dict[str, list[Any]]:
        return {name: found for name, found in vars(self).items() if name != "kills"}


TALLIES: dict[str, Tally] = {}
UNDISTURBED: dict[tuple[str, ...], Outcome] = {}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """The servers, each made once."""
    kept: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in kept:
            place = tmp_path_factory.mktemp("store")
            made = Postgres() if kind == "PostgreSQL" else MlflowServer(place, f"sqlite:///{place}/mlflow.db")
            kept[kind] = made.start(), made.new_database() if isinstance(made, Postgres) else made.uri
        return kept[kind]

    yield get
    for server, _ in kept.values():
        server.stop()
    write_table()


@pytest.fixture
def disk() -> Iterator[SlowDisk]:
    made = SlowDisk()
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_killed(name: str, tmp_path: Path, template: Path, stores: Callable[[str], Any], disk: SlowDisk) -> None:
    phase, moments, tally = PHASES[name], random.Random(name), Tally()
    for number in range(3 * KILLS):
        if tally.kills < phase.kills:
            place = Place(tmp_path / str(number), phase, template, stores, disk if phase.slow else None)
            most = min(1 if phase.beside else IN_A_ROW, phase.kills - tally.kills)
            place.kill_and_finish(most, moments, tally)
    TALLIES[name] = tally
    assert tally.kills == phase.kills, "the phase was missed"
    assert not any(tally.faults().values()), tally


class Place:
    """A directory in which commands are killed, and end at last."""

    def __init__(
        self, path: Path, phase: Phase, template: Path, stores: Callable[[str], Any],
        disk: SlowDisk | None = None,
    ) -> None:  # fmt: skip
        self.path, self.phase = path, phase
        path.mkdir()
        self.more: dict[str, Any] = {"cgroup": disk.mount(path / "outputs")} if disk else {}
        self.server, self.uri = None, f"sqlite:///{path / 'outputs/mlflow.db'}"
        self.experiment, self.tracking = f"kills-{random.randrange(10**9)}", tuple[str, ...]()
        if phase.store != "SQLite":
            self.server, self.uri = stores(phase.store)
            self.tracking = (f"tracking.uri={self.uri}", f"tracking.experiment={self.experiment}")
        else:
            (path / "outputs").mkdir(exist_ok=True)
            shutil.copy(template, path / "outputs/mlflow.db")
        with (path / "texts.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([f"{number} bottles of beer. " * 8] for number in range(400))])
        (path / "photos").mkdir()
        for number, content in enumerate(encoded_digits(100)):
            (path / "photos" / f"{number:03}.png").write_bytes(content)
        self.reported: set[tuple[str, str, int]] = set()
        self.template = template, stores

    def start(self, words: tuple[str, ...]) -> Command:
        self.since = time.time()
        trained = next((path.parent.name for path in self.path.glob("outputs/digits/*/run.json")), "")
        if words[0] not in ("evaluate", "predict", "sync"):
            words += self.tracking
        words = tuple(word.replace("TRAINED", trained) for word in words)
        return self.phase.start(self.path, words, {"HFEXP_CACHE": str(self.path / "cache")}, **self.more)

    def finish(self, words: tuple[str, ...]) -> None:
        code = self.start(words).exit_code(PATIENCE)
        assert code == 0, (self.path / OUTPUT).read_text()

    def undisturbed(self) -> Outcome:
        """The same commands in another place."""
        key = (*self.phase.first, *self.phase.beside, *self.phase.words)
        if key not in UNDISTURBED:
            phase = Phase(self.phase.words, always, start=self.phase.start)
            other = Place(self.path.with_name("undisturbed"), phase, *self.template)
            for words in (self.phase.first, self.phase.beside, self.phase.words):
                if words:
                    other.finish(words)
            UNDISTURBED[key] = other.outcome()
        return UNDISTURBED[key]

    def kill_and_finish(self, most: int, moments: random.Random, tally: Tally) -> None:
        want = self.undisturbed()
        if self.phase.first:
            self.finish(self.phase.first)
        ended = False
        while not ended and most:
            hit, ended = self.kill(moments)
            tally.kills, most = tally.kills + hit, most - hit
        if not ended:
            self.finish(self.phase.words)
        elif "`hfexp sync` delivers it" in (self.path / OUTPUT).read_text():  # the server was away at the end
            self.finish(("sync",))
        self.compare(want, tally)

    def kill(self, moments: random.Random) -> tuple[bool, bool]:
        """Kill once; say whether that was in the phase, and whether the command ended well all the same."""
        phase, others = self.phase, []
        if phase.beside:
            others = [self.start(phase.beside)]
        command = self.start(phase.words)
        while command.exit_code(0.003) is None and not phase.begun(self.path, self.since):
            assert time.time() < self.since + PATIENCE, "the phase does not begin"
        command.exit_code(moments.uniform(0, phase.within))
        found = suspend(lambda: phase.victims(command))
        alive = command.exit_code(0) is None
        hit = alive and phase.begun(self.path, self.since) and (bool(found) or phase.victims is nobody)
        self.note_reported()
        if hit:
            self.crash_server()
            kill(found)
            if self.server is not None:
                time.sleep(moments.uniform(0, 2))
                self.server.serve() if isinstance(self.server, Postgres) else self.server.start()
        else:
            for member in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.resume()
        code = command.exit_code(PATIENCE)
        assert code is not None, "it hangs"
        for other in others:
            assert other.exit_code(PATIENCE) == 0, (self.path / OUTPUT).read_text()
        return hit, code == 0

    def crash_server(self) -> None:
        if isinstance(self.server, Postgres):
            self.server.crash()
        elif self.server is not None:
            self.server.stop()

    def journals(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in self.path.glob("outputs/*/*/tracking/journal.jsonl"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    yield IDENTITY.sub("", path.parents[1].name), json.loads(line)

    def note_reported(self) -> None:
        """What must not be lost from here on."""
        for name, entry in self.journals():
            if entry["kind"] == "metrics":
                self.reported |= {(name, metric, entry["step"]) for metric in entry["metrics"]}

    def outcome(self) -> Outcome:
        found = Outcome()
        self.look_into_store(found)
        for path in [path for path in self.path.rglob("*") if path.is_file()]:
            name = OWN_NAMES.sub("*", str(path.relative_to(self.path)))
            if name.startswith(("outputs", "cache", ".")) and not UNSEEN.search(name):
                found.names.add(name)
            if RESULTS.search(name):
                found.content[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if (self.path / "outputs/sweeps").exists():
            storage = f"sqlite:///{self.path}/outputs/sweeps/kills/study.db"
            trials = optuna.load_study(study_name="kills", storage=storage).get_trials()
            found.content["trials"] = [(one.number, one.state.name, one.params, one.values) for one in trials]
        return found

    def look_into_store(self, found: Outcome) -> None:
        client = mlflow.MlflowClient(self.uri)
        experiments = client.search_experiments(filter_string=f"name = '{self.experiment}'" if self.tracking else None)
        for run in client.search_runs([experiment.experiment_id for experiment in experiments]):
            name = str(run.info.run_name)
            found.runs.append((name, run.info.status))
            for metric in run.data.metrics:
                for point in client.get_metric_history(run.info.run_id, metric):
                    found.times[name, metric, point.step] += 1
                    if not TIMED.search(metric) and not CLOCKED.search(metric):
                        found.points[name, metric, point.step] = point.value

    def compare(self, want: Outcome, tally: Tally) -> None:
        got = self.outcome()
        expected = {key for key in want.times if not CLOCKED.search(key[1])} | self.reported
        tally.lost += sorted(expected - got.times.keys())
        tally.doubled += [key for key, times in got.times.items() if times > 1]
        names = [Counter(name for name, _ in outcome.runs) for outcome in (got, want)]
        tally.doubled += (names[0] - names[1]).elements()
        tally.wrong += [key for key in want.points if key in got.points and got.points[key] != want.points[key]]
        tally.wrong += [name for name, content in want.content.items() if got.content.get(name) != content]
        tally.running += [name for name, status in got.runs if status != "FINISHED"]
        tally.left += sorted(got.names - want.names)


def write_table() -> None:
    """What was observed, for the documentation; rows of phases that were not run stay."""
    known = {
        line.split(" | ")[0][2:]: line for line in read_section("endings.md", HEADING).splitlines() if "|" in line
    }
    for name, tally in TALLIES.items():
        counts = [tally.kills, *map(len, tally.faults().values())]
        known[name] = f"| {name} | {' | '.join(map(str, counts))} |"
    rows = [known[name] for name in PHASES if name in known]
    total = sum(int(row.split(" | ")[1]) for row in rows)
    columns = ["killed", "kills", "lost", "doubled", "wrong", "left RUNNING", "files left over"]
    table = "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])
    write_section("endings.md", HEADING, ABOUT.format(total=total) + table)
