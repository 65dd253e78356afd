"""Other trackers beside MLflow: `tracking.also`."""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS

from hfexp.commands import cli
from hfexp.core.errors import ConfigError
from hfexp.tracking.mirrors import Mirrors, Place, check_mirrors
from hfexp.tracking.run_directory import RunDirectory, RunState
from hfexp.tracking.tracker import MlflowTracker

SECRET = "hf_" + "q" * 34


class Run:
    """A run of a tracker that exists in this test only."""

    def __init__(self, **words: Any) -> None:
        self.words, self.params, self.points, self.ended = words, dict(words.get("config") or {}), [], None
        self.config = self
        self.offline, self.url = False, "https://wandb.test/run"

    def update(self, params: dict[str, Any], **words: Any) -> None:
        self.params |= params

    def define_metric(self, *names: str, **words: Any) -> None: ...

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        rest = dict(metrics)
        self.points.append((rest.pop("step", step), rest))

    def finish(self, **words: Any) -> None:
        self.ended = words


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Modules that stand for W&B and Trackio, and the runs that they begin."""
    runs: list[Run] = []

    def init(*words: str, **more: Any) -> Run:
        runs.append(Run(words=words, **more))
        return runs[-1]

    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name, origin="here")  # pyright: ignore
        settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
        content = {"init": init, "login": lambda prompt: True, "Settings": lambda **settings: settings}
        vars(module).update(content, setup=lambda kept=settings: kept)
        monkeypatch.setitem(sys.modules, name, module)
    return runs


def test_another_tracker_gets_what_mlflow_gets(
    place: Path, others: list[Run], all_runs: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL_DIGITS, "tracking.also=[wandb,trackio,tensorboard]", f"tracking.tags.token={SECRET}"]
    assert cli.main(words) == 0
    assert "also at https://wandb.test/run" in capsys.readouterr().out
    (run,), client = all_runs(), mlflow.MlflowClient("sqlite:///outputs/mlflow.db")
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    history = {
        (name, point.step): point.value for name in names for point in client.get_metric_history(run.info.run_id, name)
    }
    assert {"train_loss", "eval_accuracy", "test_accuracy"} <= set(names)
    for other in others:
        points = [((name, step), value) for step, metrics in other.points for name, value in metrics.items()]
        assert len(points) == len(history)
        assert dict(points) == pytest.approx(history)
        assert {name: str(value) for name, value in other.params.items()} == run.data.params
        assert SECRET not in str(other.params)
    wandb, trackio = sorted(others, key=lambda one: "dir" not in one.words)
    directory = next(Path("outputs/digits").glob("vit*"))
    assert wandb.ended == {"exit_code": 0}
    assert trackio.ended == {}
    assert wandb.words["project"] == trackio.words["words"][0] == "digits"
    assert wandb.words["id"].startswith(directory.name)
    assert written(directory / "tensorboard") == pytest.approx(history)


def written(directory: Path) -> dict[tuple[str, int], float]:
    """The values in TensorBoard's event files, which hold float32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {(name, one.step): one.value for name in events.Tags()["scalars"] for one in events.Scalars(name)}


def test_a_continued_run_gives_no_value_twice(tmp_path: Path, others: list[Run], uri: str) -> None:
    for until in (3, 5):
        directory = RunDirectory(tmp_path / "run", RunState("identity"), False, None)
        directory.path.mkdir(exist_ok=True)
        tracker = MlflowTracker(directory, uri, tmp_path)
        tracker.mirrors.open(["wandb"], Place("project", "name", "key", tmp_path, tmp_path))
        for step in range(2, until):  # the second start repeats the step after its checkpoint
            tracker.log_metrics({"loss": float(step)}, step)
    assert [run.words["id"] for run in others] == ["key", "key"]
    assert [step for run in others for step, _ in run.points] == [2, 3, 4]


def test_a_tracker_that_fails_does_not_stop_the_training(
    place: Path, others: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Run, metrics: dict[str, float], step: int | None = None) -> None:
        raise ConnectionError("quota exceeded")

    monkeypatch.setattr(Run, "log", fail)
    assert cli.main([*SMALL_DIGITS, "tracking.also=[wandb]", "tracking=none"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("wandb records nothing more of this run (quota exceeded)") == 1


def test_the_end_of_a_run_is_told(others: list[Run], tmp_path: Path) -> None:
    mirrors = Mirrors()
    mirrors.open(["wandb"], Place("project", "name", "key", tmp_path, tmp_path))
    mirrors.log_metrics({"system/cpu_utilization_percentage": 1.0}, 30)
    mirrors.finish(succeeded=False)
    mirrors.log_metrics({"loss": 1.0}, 1)
    assert others[0].points == []
    assert others[0].ended == {"exit_code": 1}


def test_wrong_names_and_missing_packages_are_told_before_the_start(
    place: Path, others: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "login", lambda prompt: False)
    assert check_mirrors(["wandb"]) == [
        "tracking.also=wandb: there is no API key; type `wandb login`, or set WANDB_MODE=offline"
    ]
    sys.modules["wandb"].setup().settings.mode = "offline"
    assert check_mirrors(["wandb"]) == []
    assert check_mirrors(["wandb", "wandb"]) == ["tracking.also names wandb twice"]
    assert cli.main([*SMALL_DIGITS, "tracking.also=[wandbb]"]) == 2
    assert "tracking.also=wandbb; allowed: tensorboard, trackio, wandb" in capsys.readouterr().err
    assert not Path("outputs").exists()
    monkeypatch.delitem(sys.modules, "trackio")
    Path("trackio").mkdir()  # a directory is no package, although Python can import it
    monkeypatch.syspath_prepend(place)
    assert check_mirrors(["trackio"]) == ["tracking.also=trackio needs the package trackio: pip install trackio"]


def test_report_to_names_the_key() -> None:
    from hfexp import compose

    with pytest.raises(ConfigError, match=r"tracking\.also=\[NAME\]"):
        compose("trainer.args.report_to=wandb")


@pytest.mark.slow
def test_wandb_itself_continues_a_run_offline_and_gets_no_secret(place: Path) -> None:
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "MY_TOKEN": SECRET}
    words = ["tracking.also=[wandb]", "tracking.tags.token=${oc.env:MY_TOKEN}"]
    (place / "stop.py").write_text(STOP)
    stopped = [*SMALL_DIGITS, *words, "trainer.callbacks.stop._target_=stop.Stop"]
    first = subprocess.run([sys.executable, "-m", "hfexp", *stopped], env=environment, capture_output=True, text=True)
    assert first.returncode == 143, first.stderr
    (place / "stop.py").write_text(STOP.replace("SIGTERM", "SIGCONT"))
    again = subprocess.run([sys.executable, "-m", "hfexp", *stopped], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stderr
    files = [path for path in Path("outputs/wandb").rglob("*.wandb") if not path.is_symlink()]
    assert len(files) == 2, "one of each start"
    assert len({path.stem for path in files}) == 1, "both of the same run"
    content = b"".join(path.read_bytes() for path in files)
    assert b"eval_accuracy" in content
    assert b"trainer.args.learning_rate" in content
    for path in Path("outputs/wandb").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


STOP = """
import os, signal
from transformers import TrainerCallback


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
"""
