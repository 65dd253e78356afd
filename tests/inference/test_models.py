"""Trained models: predictions on raw inputs, the record in the store, the card."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas
import PIL.Image
import pytest
import torch
import yaml
from conftest import SMALL_DIGITS

from hfexp.commands import api
from hfexp.core.errors import DataError
from hfexp.data import dataset
from hfexp.experiment import preflight
from hfexp.inference import mlflow_model
from hfexp.inference import predictor as inference
from hfexp.inference.model_card import CardFacts, model_card
from hfexp.tasks import images as raw_images
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tracking.models import CheckpointLinks, deliver_model
from hfexp.training.model import build_model


@dataclass
class Made:
    config: Any
    inputs: Any
    predictor: inference.Predictor
    images: list[bytes]
    """Encoded validation images."""
    saved: mlflow_model.SavedModel

    def save(self, directory: Path, **options: Any) -> mlflow_model.SavedModel:
        """Save it once more."""
        given = {"model": self.predictor.model, "processor": self.inputs.processor, "task": self.inputs.task}
        given |= {"recipe": inference.recipe_of(self.config, self.inputs.id2label), "example": self.images[0]}
        return mlflow_model.save_mlflow_model(directory=directory, **(given | options))


def make(place: Path) -> Made:
    """A tiny ViT that is trained on nothing, saved in `place`."""
    config = api.compose(*SMALL_DIGITS)
    inputs = preflight.load_inputs(config)
    torch.manual_seed(0)
    model, _ = build_model(config.model, inputs.task, inputs.id2label, [])
    predictor = inference.Predictor(model, inputs.processor, inputs.task, inputs.transforms, inputs.id2label)
    images = [raw_images.image_bytes(row) for row in inputs.dataset["validation"].select(range(8))]
    (place / "weights").mkdir()
    mlflow_model.save_weights(model, inputs.processor, place / "weights")
    result = Made(config, inputs, predictor, images, mlflow_model.SavedModel(place, ()))
    result.saved = result.save(place / "saved", weights=place / "weights", card="# A card")
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@dataclass
class Store:
    client: mlflow.MlflowClient
    experiment_id: str
    uri: str

    def run(self) -> str:
        return self.client.create_run(self.experiment_id, run_name="r").info.run_id

    def models(self, run_id: str) -> dict[str, Any]:
        found = self.client.search_logged_models([self.experiment_id], f"source_run_id = '{run_id}'")
        assert len({model.name for model in found}) == len(found)
        return {model.name: model for model in found}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{place}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    return Store(client, client.create_experiment("e", (place / "artifacts").as_uri()), uri)


def encode(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_raw_inputs_are_predicted_as_in_the_evaluation(made: Made) -> None:
    inputs, model = made.inputs, made.predictor.model
    split = dataset.process(inputs.dataset, inputs.task, inputs.processor, inputs.transforms, 0)["validation"]
    batch = dataset.Collator(inputs.task, inputs.processor, None, 0)([split[i] for i in range(8)])
    table = made.predictor.predict(made.images)
    model.eval()
    with torch.no_grad():
        scores = model(pixel_values=batch["pixel_values"]).logits.softmax(-1).numpy()
    assert np.array_equal(np.array(table["probabilities"].tolist(), np.float32), scores)
    assert list(table.columns) == ["label", "score", "probabilities"]
    assert table["label"].tolist() == [inputs.id2label[i] for i in scores.argmax(-1)]
    assert table["score"].tolist() == [float(value) for value in scores.max(-1)]
    small = inference.Predictor(model, inputs.processor, inputs.task, inputs.transforms, inputs.id2label, batch_size=3)
    assert np.allclose(small.probabilities(made.images), scores, atol=1e-6)
    assert len(made.predictor.predict([])) == 0


def test_every_documented_kind_of_input_gives_the_same(made: Made) -> None:
    grey = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    array = np.asarray(grey)
    text = base64.encodebytes(encode(grey)).decode()
    same = [encode(grey), bytearray(encode(grey)), text, text.encode(), grey, array, array[..., None],
            np.stack([array] * 3, -1), encode(grey, "TIFF"), encode(grey, "BMP")]  # fmt: skip
    scores = made.predictor.probabilities(same)
    assert np.allclose(scores, scores[:1], atol=1e-6)
    assert len(made.predictor.probabilities([grey.convert("RGBA"), np.zeros((5, 9, 4), np.uint8)])) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("/etc/passwd", "can't be read as an image|file names"),
        ("https://example.org/cat.png", "file names are not accepted"),
        (b"", "0 bytes can't be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "can't be read as an image"),
        (None, "got NoneType"),
        (0.5, "got float"),
        (np.zeros((8, 8)), "must be uint8, not float64"),
        (np.zeros((8, 8, 7), np.uint8), r"not \(8, 8, 7\)"),
        (np.zeros((0, 8), np.uint8), r"not \(0, 8\)"),
    ],
)
def test_an_unreadable_input_is_named_by_its_row(made: Made, wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"row 1: .*({message})"):
        made.predictor.predict([made.images[0], wrong])
    with pytest.raises(DataError, match="row 0: .*can't be read as an image"):
        made.predictor.predict([encode(PIL.Image.new("L", (64, 64), 9), "JPEG")[:200]])


def deliver(store: Store, made: Made, run_id: str, client: Any = None, name: str = "digits") -> str:
    return deliver_model(
        client or store.client, run_id=run_id, experiment_id=store.experiment_id, directory=made.saved.path,
        name="model", key="final", step=6, metrics={"test_accuracy": 0.5, "test_loss": float("nan"), "test_f1": 0.25},
        params={"model.model_type": "vit"}, tags={"hfexp.config_hash": "abc"}, register=name,
    )  # fmt: skip


def require_delivered(store: Store, run_id: str, model_id: str, name: str) -> None:
    """One model, one version, one point of each metric."""
    (model,) = store.models(run_id).values()
    assert (model.model_id, str(model.status), model.params) == (model_id, "READY", {"model.model_type": "vit"})
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics} == {
        "test_accuracy": (0.5, 6), "test_f1": (0.25, 6)
    }  # fmt: skip
    for key in ("test_accuracy", "test_f1"):
        assert len(store.client.get_metric_history(run_id, key)) == 1
    outputs = store.client.get_run(run_id).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(model_id, 6)]
    (version,) = store.client.search_model_versions(f"name = '{name}'")
    assert version.run_id == run_id
    assert store.client.get_model_version_by_alias(name, "best").version == version.version


def test_a_model_has_the_values_that_its_run_has_recorded(store: Store, made: Made) -> None:
    """A run that was killed while it recorded its end has measured its times again."""
    run_id = store.run()
    store.client.log_metric(run_id, "test_f1", 0.75, step=6)
    store.client.log_metric(run_id, "test_f1", 0.875, step=3)
    deliver(store, made, run_id, name="measured-again")
    (model,) = store.models(run_id).values()
    assert {metric.key: metric.value for metric in model.metrics} == {"test_accuracy": 0.5, "test_f1": 0.75}
    points = store.client.get_metric_history(run_id, "test_f1")
    assert sorted((point.step, point.value) for point in points) == [(3, 0.875), (6, 0.75)]


def test_a_delivered_model_is_found_by_every_name(
    store: Store, made: Made, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.run()
    store.client.log_metric(run_id, "test_accuracy", 0.5, step=6)
    before = mlflow.get_tracking_uri()
    model_id = deliver(store, made, run_id)
    assert deliver(store, made, run_id) == model_id
    require_delivered(store, run_id, model_id, "digits")
    assert (mlflow.active_run(), mlflow.get_tracking_uri()) == (None, before)
    assert list(place.iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    expected = made.predictor.probabilities(made.images)
    for uri in (f"models:/{model_id}", f"runs:/{run_id}/model", "models:/digits/1", "models:/digits@best"):
        loaded = mlflow.pyfunc.load_model(uri)
        assert loaded.metadata.model_id == model_id
        table = loaded.predict(pandas.DataFrame({"image": made.images}))
        assert np.allclose(table["probabilities"].tolist(), expected, atol=1e-6)


CHANGES = ("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "log_batch",
           "create_registered_model", "create_model_version", "set_registered_model_alias",
           "set_logged_model_tags")  # fmt: skip


@pytest.mark.parametrize("answer_lost", [True, False])
@pytest.mark.parametrize("at", CHANGES)
def test_an_interrupted_delivery_is_completed(store: Store, made: Made, at: str, answer_lost: bool) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        if answer_lost:
            getattr(store.client, at)(*args, **kwargs)
        raise ConnectionError("the line is dead")

    names = (
        *CHANGES,
        "search_logged_models",
        "get_run",
        "get_metric_history",
        "search_model_versions",
        "tracking_uri",
    )
    flaky = SimpleNamespace(**{name: getattr(store.client, name) for name in names} | {at: fail})
    run_id, name = store.run(), f"digits-{at}-{answer_lost}"
    with pytest.raises(ConnectionError):
        deliver(store, made, run_id, flaky, name)
    model_id = deliver(store, made, run_id, name=name)
    require_delivered(store, run_id, model_id, name)


def test_checkpoints_are_linked_as_they_come_and_go(store: Store, tmp_path: Path) -> None:
    run_id = store.run()
    paths = {step: tmp_path / f"checkpoint-{step}" for step in (3, 6, 9)}
    scores = {step: {"eval_accuracy": step / 10} for step in paths}
    for step, values in scores.items():
        store.client.log_metric(run_id, "eval_accuracy", values["eval_accuracy"], step=step)
    links = CheckpointLinks(store.client, run_id, store.experiment_id)
    links.update({3: paths[3]}, scores, 3)
    links.update({3: paths[3], 6: paths[6]}, scores, 3)
    first = store.models(run_id)
    assert {name: model.tags["hfexp.checkpoint_dir"] for name, model in first.items()} == {
        f"checkpoint-{step}": str(paths[step]) for step in (3, 6)
    }
    assert [model.name for model in first.values() if model.tags.get("hfexp.best") == "true"] == ["checkpoint-3"]
    # A new object is what a resumed run has; the best one has moved, and the first one was rotated away.
    links = CheckpointLinks(store.client, run_id, store.experiment_id)
    now = {step: paths[step] for step in (6, 9)}
    for _ in range(2):
        links.update(now, scores, 9)
    models = store.models(run_id)
    assert models["checkpoint-6"].model_id == first["checkpoint-6"].model_id
    assert {name: model.tags.get("hfexp.best") for name, model in models.items()} == {
        "checkpoint-6": None, "checkpoint-9": "true"
    }  # fmt: skip
    assert [(m.key, m.value, m.step) for m in models["checkpoint-9"].metrics] == [("eval_accuracy", 0.9, 9)]
    assert [point.step for point in store.client.get_metric_history(run_id, "eval_accuracy")] == [3, 6, 9]
    assert models["checkpoint-9"].tags["mlflow.model.isExternal"] == "true"
    links.client = None  # nothing is asked when nothing has changed
    links.update(now, scores, 9)


def facts(**changes: Any) -> CardFacts:
    values: dict[str, Any] = {
        "name": "vit_digits", "architecture": "ViTForImageClassification", "num_parameters": 2394,
        "model_class": "AutoModelForImageClassification", "processor_class": "AutoImageProcessor",
        "pipeline": mlflow_model.pipeline_name(ImageClassification()), "base_model": None, "dataset": "digits",
        "hub_dataset": None, "rows": {"train": 96, "validation": 40}, "labels": ["zero", "o|ne"],
        "metrics": {"final_eval_accuracy": 0.5, "final_eval_runtime": 1.0, "test_accuracy": 0.25,
                    "test_loss": float("nan")},
        "params": {"trainer.args.learning_rate": 0.001, "seed": 42, "tracking.uri": "http://me:hunter22@host"},
        "versions": {"transformers": "5.23.0"}, "command": "hfexp seed=42 note=hf_abcdefgh12345678",
    }  # fmt: skip
    return CardFacts(**(values | changes))


def metadata(card: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    parsed = yaml.safe_load(card.split("---\n")[1])
    assert ModelCard(card).data.to_dict() == parsed
    return parsed


def test_the_card_says_what_was_measured_and_no_secret() -> None:
    card = model_card(facts())
    parsed = metadata(card)
    assert (parsed["library_name"], parsed["pipeline_tag"]) == ("transformers", "image-classification")
    assert parsed["metrics"] == ["accuracy"]
    assert not {"base_model", "datasets"} & parsed.keys()
    results = {r["dataset"]["split"]: r["metrics"][0]["value"] for r in parsed["model-index"][0]["results"]}
    assert results == {"validation": 0.5, "test": 0.25}
    for text in ("| accuracy | 0.5000 | 0.2500 |", "| train | 96 |", "trained from random weights", "note=***",
                 "`trainer.args.learning_rate` | 0.001", "AutoImageProcessor.from_pretrained"):  # fmt: skip
        assert text in card
    for text in ("hunter22", "hf_abcdefgh12345678", "runtime", "nan"):
        assert text not in card


def test_the_card_of_a_fine_tuned_model(tmp_path: Path) -> None:
    card = model_card(facts(base_model="google/vit-base", hub_dataset="ethz/food101", metrics={}, run_id="abc"))
    parsed = metadata(card)
    assert (parsed["base_model"], parsed["datasets"]) == ("google/vit-base", ["ethz/food101"])
    assert "model-index" not in parsed
    for text in ("None were recorded", "There was no test split", 'load_model("runs:/abc/model")'):
        assert text in card
    assert "base_model" not in metadata(model_card(facts(base_model=str(tmp_path))))


def test_an_example_is_small(made: Made, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 400, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "large.png")
    data = raw_images.image_bytes({"image": {"bytes": None, "path": str(tmp_path / "large.png")}})
    assert len(data) < 100_000
    assert PIL.Image.open(io.BytesIO(data)).size == (171, 256)
    assert (
        made.predictor.predict([data, made.images[0]])["label"][1] == made.predictor.predict(made.images)["label"][0]
    )
