"""Which models of a run are recorded, and what is left in its directory."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import pytest
from conftest import SMALL_DIGITS, SMALL_MODEL

from hfexp.commands import api
from hfexp.tracking.journal import RESERVE


def models(place: Path) -> dict[str, Any]:
    client = mlflow.MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    found: dict[str, Any] = {}
    for model in client.search_logged_models(["1"]):
        assert model.name not in found
        found[model.name] = model
    return found


def location(model: Any) -> Path:
    return Path(model.artifact_location.removeprefix("file://"))


@pytest.mark.slow
def test_every_checkpoint_as_a_model(place: Path) -> None:
    words = ["tracking.checkpoints=all", "trainer.args.num_train_epochs=4", "trainer.args.learning_rate=0.05"]
    result = api.train(*SMALL_DIGITS, *words)
    found = models(place)
    assert set(found) == {"model", "checkpoint-3", "checkpoint-6", "checkpoint-9", "checkpoint-12"}
    example = pandas.read_json(location(found["model"]) / "input_example.json", orient="split")
    first, last = (
        mlflow.pyfunc.load_model(str(location(found[name]))).predict(example)["probabilities"].tolist()
        for name in ("checkpoint-3", "checkpoint-12")
    )
    best = mlflow.pyfunc.load_model(str(location(found["model"]))).predict(example)["probabilities"].tolist()
    at_best = mlflow.pyfunc.load_model(str(location(found[f"checkpoint-{result.best_step}"]))).predict(example)
    assert not np.allclose(first, last)
    assert np.allclose(best, at_best["probabilities"].tolist(), atol=1e-6)
    assert not (result.run_dir / "tracking" / RESERVE).exists()


def test_no_models(place: Path) -> None:
    result = api.train(*SMALL_DIGITS, "tracking.checkpoints=none")
    assert models(place) == {}
    assert (result.run_dir / "model" / "model.safetensors").is_file()
    assert not (result.run_dir / "mlflow_model").exists()


def test_without_tracking_there_are_still_report_and_model(place: Path) -> None:
    result = api.train(*SMALL_DIGITS, "tracking=none")
    assert (result.run_id, result.tracking_uri) == (None, None)
    assert (result.run_dir / "artifacts" / "report.html").is_file()
    assert "library_name: transformers" in (result.run_dir / "model" / "README.md").read_text()
    assert not (result.run_dir / "tracking").exists()


OWN = """
import torch
from hfexp.tasks.image_classification import ImageClassification

class Quiet(ImageClassification):
    def inference_example(self, row):
        return None

class Net(torch.nn.Module):
    def __init__(self, count):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, count))
    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}

def build(id2label):
    return Net(len(id2label))
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task._target_=own_parts.Quiet"], "Quiet has no inference_example"),
        (["model=own"], "MLflow can't load a model that the user's own code builds"),
    ],
    ids=["own task", "own model"],
)
def test_what_mlflow_cannot_load_is_recorded_as_files(
    words: list[str],
    said: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    all_runs: Any,
) -> None:
    (place / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(place))
    (place / "conf" / "model").mkdir(parents=True)
    (place / "conf" / "model" / "own.yaml").write_text(
        "_target_: own_parts.build\n"
        "processor: {_target_: transformers.ViTImageProcessor, size: {height: 8, width: 8}}\n"
    )
    base = [w for w in SMALL_DIGITS if w not in SMALL_MODEL] if words == ["model=own"] else SMALL_DIGITS
    result = api.train(*base, *words, config_dir=place / "conf")
    assert said in capsys.readouterr().err
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    files = {path.name for path in Path("outputs/artifacts").rglob("model.safetensors")}
    assert files == {"model.safetensors"}
    assert "hfexp.model_verified" not in run.data.tags
    assert result.run_id == run.info.run_id
