"""One run from the shell's words to the record: what is logged, and that the record is true."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS, write_images
from faults import fault_at
from filelock import FileLock

from hfexp.commands import api, cli
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.experiment.result import _wrapped


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")


def artifacts(run_id: str, path: str | None = None) -> set[str]:
    return {info.path for info in client().list_artifacts(run_id, path)}


class SoughtModules:
    """Stands before the finders of modules, and finds none."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, *args: object) -> None:
        self.names.append(name)


def test_steps_do_not_search_the_disk_for_a_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sought = SoughtModules()
    monkeypatch.setattr("sys.meta_path", [sought, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "lomo_optim", raising=False)
    api.train(*SMALL_DIGITS, "tracking=none")
    assert sought.names.count("lomo_optim") == 1


def test_the_record_of_a_run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345678")
    words = [
        *SMALL_DIGITS,
        "tracking.tags.note=hf_abcdefgh12345678",
        "metrics=classification",
        "tracking.pictures=true",
    ]
    monkeypatch.setattr("sys.argv", ["hfexp", *words])
    assert cli.main() == 0
    shown = capsys.readouterr().out
    assert "no test split" not in shown
    for text in ("model vit_digits, dataset digits", "data: 96 train, 40 test, 40 validation, 10 classes",
                 "baseline accuracy", "lowest recall", "hfexp ui", "epoch 2/2"):  # fmt: skip
        assert text in shown

    (run,) = client().search_runs([client().get_experiment_by_name("digits").experiment_id])  # pyright: ignore
    run_id, run_dir = run.info.run_id, next(place.glob("outputs/digits/vit_digits-*"))
    title = "vit_digits-digits-num_attention_heads2-intermediate_size16-n96-ep2-s42"
    assert (run.info.status, run.info.run_name) == ("FINISHED", title)
    assert run_dir.name.rpartition("-")[0] == title
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags

    config = api.compose(*words)
    assert params["trainer.args.learning_rate"] == "0.001"
    assert params["model.config.hidden_size"] == "16"
    assert params["seed"] == "42"
    assert params["model.num_parameters"] == "2394"
    assert params["dataset.num_train_samples"] == "96"
    assert {
        "model.path",
        "dataset.source._target_",
        "transform.augment.0._target_",
        "tracking.backend",
    } <= params.keys()

    for name in ("loss", "accuracy", "top5_accuracy", "f1_macro", "roc_auc", "brier", "ece"):
        (final,) = client().get_metric_history(run_id, f"final_eval_{name}")
        evaluated = {m.step: m.value for m in client().get_metric_history(run_id, f"eval_{name}")}
        assert evaluated[final.step] == final.value, "the saved model is that of the best evaluation"
        assert f"best_eval_{name}" not in metrics, "it would stand before the curves"
        assert f"test_{name}" in metrics
    assert [m.step for m in client().get_metric_history(run_id, "eval_accuracy")] == [3, 6]

    assert tags["hfexp.config_hash"] == config_hash(config)
    assert tags["hfexp.command"].startswith("hfexp experiment=digits_vit model=vit_digits")
    assert tags["hfexp.run_dir"] == str(run_dir)
    assert "hf_abcdefgh12345678" not in json.dumps([params, tags])
    assert not any(
        b"hf_abcdefgh12345678" in p.read_bytes() for p in place.glob("outputs/artifacts/**/*") if p.is_file()
    )

    expected = {"config.yaml", "overrides.yaml", "command.txt", "results.json", "confusion_matrix_test.png",
                "confusion_matrix_validation.png", "confusion_matrix_test.csv", "per_class_test.json", "samples.png",
                "report.html", "report.md", "environment.json", "requirements.txt", "hfexp.log"}  # fmt: skip
    assert expected <= artifacts(run_id)
    assert tags["hfexp.model_verified"] == "true"
    models = {m.name: m for m in client().search_logged_models([run.info.experiment_id])}
    assert set(models) == {"model", "checkpoint-3", "checkpoint-6"}
    assert {m.source_run_id for m in models.values()} == {run_id}
    location = Path(models["model"].artifact_location.removeprefix("file://"))
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(
        os.listdir(location / "model")
    )
    measured = {metric.key for metric in models["model"].metrics}
    assert {"final_eval_accuracy", "test_accuracy"} <= measured
    assert run.info.artifact_uri.startswith(f"file://{place}/outputs/artifacts/")
    assert not (place / "mlruns").exists()
    wal = place / "outputs" / "mlflow.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0, "a copy of mlflow.db would be incomplete"
    assert sorted(p.name for p in place.iterdir()) == ["outputs"]


def test_training_numbers_are_recorded_at_their_steps(place: Path) -> None:
    result = api.train(*SMALL_DIGITS, "trainer.args.logging_steps=1")
    history = client().get_metric_history(result.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]
    run = client().get_run(str(result.run_id))
    assert {"learning_rate", "grad_norm", "epoch", "train_runtime"} <= run.data.metrics.keys()


def test_an_exception_is_recorded_as_failed_and_the_next_run_is_its_own(
    place: Path, all_runs: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL_DIGITS, *fault_at(2)]
    (place / "fault").write_text("error")
    assert cli.main(words) == 1
    assert "RuntimeError: the disk caught fire" in capsys.readouterr().err
    (failed,) = all_runs()
    assert failed.info.status == "FAILED"
    assert failed.data.tags["hfexp.status_reason"] == "RuntimeError: the disk caught fire"
    assert "traceback.txt" in artifacts(failed.info.run_id)
    assert cli.main(words) == 0  # there was no checkpoint yet: this is a new run
    runs = {run.info.run_id: run for run in all_runs()}
    assert sorted(run.info.status for run in runs.values()) == ["FAILED", "FINISHED"]
    assert not any(name.startswith("final_") for name in failed.data.metrics)
    assert "final_eval_accuracy" in next(r for r in runs.values() if r.info.status == "FINISHED").data.metrics
    assert {run.data.params["trainer.args.learning_rate"] for run in runs.values()} == {"0.001"}
    assert mlflow.active_run() is None


def test_the_same_command_makes_a_new_run_when_finished_unless_told_otherwise(
    place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    first, second = api.train(*SMALL_DIGITS), api.train(*SMALL_DIGITS)
    assert second.run_dir.name == f"{first.run_dir.name}-2"
    assert first.metrics["test_loss"] == second.metrics["test_loss"]
    with pytest.raises(ConfigError, match=r"on_existing=error: this experiment exists already \(finished\)"):
        api.train(*SMALL_DIGITS, "on_existing=error")
    assert len(all_runs()) == 2
    assert len({run.data.tags["hfexp.config_hash"] for run in all_runs()}) == 1


def test_the_same_experiment_does_not_run_twice_at_once(place: Path) -> None:
    identity = config_hash(api.compose(*SMALL_DIGITS))
    run_dir = place / "outputs" / "digits" / f"vit_digits-digits-s42-{identity[:8]}"
    run_dir.mkdir(parents=True)
    state = {"config_hash": identity, "status": "running", "host": "elsewhere", "pid": 4711}
    (run_dir / "run.json").write_text(json.dumps(state))
    (run_dir.parent / ".locks").mkdir()
    with (
        FileLock(run_dir.parent / ".locks" / f"{identity[:16]}.lock"),
        pytest.raises(ConfigError, match=r"already running \(pid 4711 on elsewhere\)"),
    ):
        api.train(*SMALL_DIGITS)


def test_own_images_with_bad_files(
    place: Path, capsys: pytest.CaptureFixture[str], all_runs: Callable[[], list[Any]]
) -> None:
    import PIL.Image

    root = write_images(place / "photos", count=30, size=20)
    PIL.Image.new("L", (20, 20), 60).save(root / "cat" / "grey.jpg")
    PIL.Image.new("RGBA", (20, 20), (0, 200, 0, 90)).save(root / "dog" / "clear.png")
    broken = root / "dog" / "7.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    words = [
        "dataset=imagefolder",
        "dataset.source.data_dir=photos",
        "model=vit_digits",
        "trainer=scratch",
        "metrics=accuracy",
        "trainer.args.num_train_epochs=1",
        "trainer.args.per_device_train_batch_size=8",
    ]
    assert cli.main(words) == 1
    assert "photos/dog/7.jpg can't be read as an image" in capsys.readouterr().err
    assert cli.main([*words, "dataset.on_bad_sample=skip"]) == 0
    shown = capsys.readouterr()
    assert "photos/dog/7.jpg can't be read" in shown.err
    assert "1 unreadable" in shown.err
    assert "no test split: dataset.test_size=0.1 holds out a tenth of the training rows" in shown.out
    run = next(run for run in all_runs() if run.info.status == "FINISHED")
    skipped = [int(v) for k, v in run.data.params.items() if k.startswith("dataset.num_") and k.endswith("_skipped")]
    assert sum(skipped) == 1
    assert "cat" in (next(place.glob("outputs/photos/*/artifacts/confusion_matrix_validation.csv"))).read_text()


def test_debug_fast(place: Path) -> None:
    fast = api.train("debug=fast", "tracking=none")
    assert (fast.run_dir / "checkpoints" / "checkpoint-2").is_dir()


@pytest.mark.slow
def test_debug_overfit_and_profile(place: Path) -> None:
    over = api.train("debug=overfit", "tracking=none")
    assert over.metrics["final_eval_loss"] < 0.01
    assert over.metrics["final_eval_accuracy"] == 1.0
    profile = api.train("debug=profile", "tracking=none", "dataset.max_train_samples=400")
    assert json.loads((profile.run_dir / "artifacts" / "profile" / "trace.json").read_text())["traceEvents"]


@pytest.mark.slow
def test_a_sweep_isolates_a_failing_job(
    place: Path, capsys: pytest.CaptureFixture[str], all_runs: Callable[[], list[Any]]
) -> None:
    words = [*SMALL_DIGITS, "-m", "seed=1,2", "trainer.args.per_device_train_batch_size=32,512"]
    assert cli.main(words) == 1
    shown = capsys.readouterr().err
    assert "per_device_train_batch_size=512 is more than the 96 training samples" in shown
    assert "2 of 4 jobs failed" in shown
    jobs = [run for run in all_runs() if run.data.tags.get("hfexp.kind") != "sweep"]
    assert sorted(run.data.params["seed"] for run in jobs) == ["1", "2"]


def test_own_model_and_trainer_by_target(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "my_parts.py").write_text(
        "import torch\n"
        "from hfexp import Trainer\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width, count):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, width), torch.nn.ReLU(),\n"
        "                                       torch.nn.Linear(width, count))\n"
        "    def forward(self, pixel_values, labels=None):\n"
        "        logits = self.net(pixel_values)\n"
        "        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)\n"
        "        return {'loss': loss, 'logits': logits}\n"
        "def build(width, id2label):\n"
        "    return Net(width, len(id2label))\n"
        "class MyTrainer(Trainer):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(place))
    (place / "conf" / "model").mkdir(parents=True)
    (place / "conf" / "model" / "mine.yaml").write_text(
        "_target_: my_parts.build\nwidth: 32\n"
        "processor: {_target_: transformers.ViTImageProcessor, size: {height: 8, width: 8}}\n"
    )
    words = [w for w in SMALL_DIGITS if not w.startswith("model")]
    result = api.train(
        *words, "model=mine", "trainer._target_=my_parts.MyTrainer", "tracking=none", config_dir=place / "conf"
    )
    assert type(result.model).__name__ == "Net"
    assert result.metrics["final_eval_loss"] == result.metrics["best_eval_loss"]


def test_importing_the_package_is_cheap() -> None:
    import hfexp

    assert hfexp.__all__ == [
        "ConfigError", "Result", "RunError", "Task", "Trainer", "__version__", "compose", "evaluate", "load_run",
        "predict", "train",
    ]  # fmt: skip
    assert all(getattr(hfexp, name).__name__ == name for name in hfexp.__all__ if name != "__version__")
    assert hfexp.train is api.train
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hfexp.nothing  # noqa: B018


def test_no_file_is_opened_for_others_to_write(place: Path) -> None:
    result = api.train(*SMALL_DIGITS, "tracking=none")
    assert not any(os.stat(p).st_mode & 0o002 for p in result.run_dir.rglob("*") if not p.is_symlink())


def test_choices_are_wrapped_between_items(monkeypatch: pytest.MonkeyPatch) -> None:
    items = ["model vit_digits", "transform jitter", "name='two words'", "path=a-b/c-d"]
    assert _wrapped(items) == "  model vit_digits, transform jitter, name='two words', path=a-b/c-d"
    monkeypatch.setattr("hfexp.experiment.result.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert _wrapped(items).splitlines() == [
        "  model vit_digits, transform jitter,", "    name='two words', path=a-b/c-d",
    ]  # fmt: skip
