"""Endings that are easily recorded wrongly, and starts after them."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_DIGITS
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hfexp.commands import api, cli
from hfexp.core.checkpoint import list_checkpoints, set_aside_newer
from hfexp.core.errors import RunError
from hfexp.core.process import uninterrupted


def crash_after_training(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until training has ended, and fail in the evaluation that follows."""
    with monkeypatch.context() as patched:
        patched.setattr("hfexp.experiment.fit.evaluate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            api.train(*words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["trainer.args.max_steps=5", "trainer.args.save_strategy=steps", "trainer.args.eval_strategy=steps",
         "trainer.args.eval_steps=5", "trainer.args.save_steps=5"],
        ["trainer.early_stopping_patience=1", "trainer.args.num_train_epochs=9", "trainer.args.learning_rate=0.5"],
    ],
    ids=["max_steps in mid-epoch", "early stopping"],
)  # fmt: skip
def test_training_that_had_ended_is_not_continued(
    more: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL_DIGITS, "tracking=none", *more]
    whole = api.train(*words, "output_dir=whole")
    crash_after_training(words, monkeypatch)
    resumed = api.train(*words)
    assert resumed.run_dir.name == whole.run_dir.name
    names = [[p.name for p in list_checkpoints(r.run_dir / "checkpoints")] for r in (whole, resumed)]
    assert names[0] == names[1]
    assert (resumed.best_step, resumed.best_metric) == (whole.best_step, whole.best_metric)
    assert resumed.metrics["test_loss"] == whole.metrics["test_loss"]


@pytest.mark.slow
def test_the_metric_that_is_asked_for_is_sought_in_its_own_direction(place: Path) -> None:
    words = [w for w in SMALL_DIGITS if w != "metrics=accuracy"] + ["tracking=none", "trainer.args.learning_rate=0.01"]
    words += ["trainer.args.num_train_epochs=4"]
    for metric, best in (("accuracy", max), ("brier", min), ("eval_loss", min)):
        result = api.train(*words, f"trainer.args.metric_for_best_model={metric}")
        name = f"eval_{metric.removeprefix('eval_')}"
        newest = list_checkpoints(result.run_dir / "checkpoints")[-1]
        history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
        assert result.best_metric == best(entry[name] for entry in history if name in entry)


@pytest.mark.slow
def test_what_a_broken_artifact_store_does_not_take_is_delivered_later(
    place: Path, all_runs: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    api.train(*SMALL_DIGITS)
    shutil.rmtree("outputs/artifacts")
    Path("outputs/artifacts").write_text("in the way")
    second = api.train(*SMALL_DIGITS)
    assert "is incomplete" in (shown := capsys.readouterr().err)
    assert "`hfexp sync` delivers it" in shown
    assert [run.info.status for run in all_runs()] == ["FINISHED", "FINISHED"]
    assert cli.main(["sync"]) == 1
    Path("outputs/artifacts").unlink()
    assert cli.main(["sync"]) == 0
    assert "1 delivered, 1 already complete" in capsys.readouterr().out
    assert Path(f"outputs/artifacts/digits/{second.run_id}/artifacts/config.yaml").is_file()
    assert cli.main(["sync"]) == 0
    assert "0 delivered, 2 already complete" in capsys.readouterr().out


def test_a_run_that_fails_while_it_is_opened_is_failed(
    place: Path, all_runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfexp.tracking.tracker.MlflowTracker.log_params", lambda self, params: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        api.train(*SMALL_DIGITS)
    (run,) = all_runs()
    assert (run.info.status, run.data.tags["hfexp.status_reason"]) == ("FAILED", "ZeroDivisionError: division by zero")


def test_signals_wait_until_a_run_is_closed() -> None:
    done: list[str] = []

    def close() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("closed")
        done.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        close()
    assert done == ["closed"]


def first_use(uri: str, number: int) -> None:
    api.train(*SMALL_DIGITS, f"seed={number}", f"tracking.uri={uri}", f"output_dir=own{number}", "debug=fast")


@pytest.mark.slow
def test_several_processes_make_a_fresh_store_at_once(place: Path) -> None:
    uri = f"sqlite:///{place / 'shared.db'}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=first_use, args=(uri, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0, 0, 0]


@pytest.mark.slow
def test_a_store_whose_making_was_killed_is_made_anew(place: Path) -> None:
    script = (
        "import os\n"
        "from alembic.runtime.migration import MigrationContext\n"
        "from hfexp.commands import api\n"
        "MigrationContext.run_migrations = lambda *args, **kwargs: os._exit(9)\n"
        f"api.train(*{SMALL_DIGITS!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, check=False, timeout=120)
    assert killed.returncode == 9
    assert not (place / "outputs" / "mlflow.db").exists()
    assert api.train(*SMALL_DIGITS).run_id


def test_a_directory_without_its_state_is_left_alone(place: Path) -> None:
    first = api.train(*SMALL_DIGITS, "tracking=none")
    (first.run_dir / "run.json").unlink()
    assert api.train(*SMALL_DIGITS, "tracking=none").run_dir.name == f"{first.run_dir.name}-2"


def test_damaged_checkpoints_are_set_aside(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    set_aside_newer(tmp_path, tmp_path / "checkpoint-3")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-3",
        "damaged-checkpoint-100",
        "damaged-checkpoint-20",
    ]
    set_aside_newer(tmp_path, None)
    assert list_checkpoints(tmp_path) == []


def test_a_diverged_training_is_no_result(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    # The first step warms up, at a rate of 0.
    words = [*SMALL_DIGITS, "trainer.args.learning_rate=1e30", "trainer.args.max_grad_norm=0"]
    with pytest.raises(RunError, match="training diverged: the loss has been NaN since step 3"):
        api.train(*words)
    (run,) = all_runs()
    assert run.info.status == "FAILED"


def test_each_split_is_read_by_its_own_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfexp.core.config import DatasetConfig
    from hfexp.data import splits
    from hfexp.tasks.image_classification import ImageClassification

    def rows(names: list[str], words: list[str]) -> Dataset:
        features = Features({"image": Value("int64"), "label": ClassLabel(names=names)})
        return Dataset.from_dict({"image": [0] * len(words), "label": [names.index(w) for w in words]}, features)

    source = DatasetDict(
        {"train": rows(["cat", "dog"], ["cat", "dog"]), "validation": rows(["dog", "cat"], ["dog", "cat"])}
    )
    monkeypatch.setattr(splits, "instantiate", lambda *args: source)
    config = DatasetConfig(source={"_target_": "x"}, labels=["dog", "cat"])
    loaded = splits.load_dataset(config, ImageClassification())
    assert loaded["train"]["label"][:] == [1, 0]
    assert loaded["validation"]["label"][:] == [0, 1]
