"""A saved model: read by MLflow and Transformers, in a process without hfexp, and behind HTTP."""

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import PIL.Image
import pytest
import torch
import transformers
import yaml
from conftest import SMALL_DIGITS, write_images
from servers import free_port
from test_models import Made, make

import hfexp
from hfexp.commands import api
from hfexp.core.errors import ConfigError, RunError
from hfexp.experiment import preflight
from hfexp.inference import mlflow_model
from hfexp.inference import predictor as inference
from hfexp.tasks import images
from hfexp.tasks.image_classification import ImageClassification
from hfexp.training.model import build_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


def test_the_saved_directory_is_read_by_everything(made: Made) -> None:
    root, weights = made.saved.path, made.saved.weights
    assert made.saved.flavors == ("python_function", "transformers")
    expected = made.predictor.probabilities(made.images)
    mlflow_model.verify_model(made.saved, made.predictor, made.images)

    model = transformers.AutoModelForImageClassification.from_pretrained(weights)
    assert model.config.id2label == made.inputs.id2label
    assert type(transformers.AutoImageProcessor.from_pretrained(weights)) is type(made.inputs.processor)
    assert np.array_equal(inference.load_predictor(weights).probabilities(made.images), expected)

    loaded = mlflow.pyfunc.load_model(str(root))
    texts = [base64.b64encode(data).decode() for data in made.images]
    for given in (
        pandas.DataFrame({"image": made.images}),
        pandas.DataFrame({"image": texts}),
        {"image": np.array(texts, np.dtype("bytes"))},  # what MLflow's server makes of {"inputs": {"image": [...]}}
        [{"image": data} for data in made.images],
    ):
        assert np.allclose(loaded.predict(given)["probabilities"].tolist(), expected, atol=1e-6)
    with pytest.raises(mlflow.exceptions.MlflowException, match="row 0: .*can't be read"):
        loaded.predict(pandas.DataFrame({"image": [b"\xff\xd8nothing"]}))

    pipeline = mlflow.transformers.load_model(str(root))
    (first, *_) = pipeline(PIL.Image.open(io.BytesIO(made.images[0])))
    assert first["label"] == made.predictor.predict(made.images[:1])["label"][0]


def test_what_the_saved_directory_holds(made: Made, place: Path) -> None:
    root, weights = made.saved.path, made.saved.weights
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix in (".safetensors", ".bin", ".pt")] == ["model.safetensors"]
    assert (weights / "model.safetensors").stat().st_nlink == 2
    assert (weights / "README.md").read_text() == "# A card"
    assert not any("__pycache__" in path.parts for path in files)
    code, package = root / "code", Path(hfexp.__file__).parent
    shipped = {path.relative_to(code) for path in code.rglob("*") if path.is_file()}
    own = [path for path in package.rglob("*.py") if not path.is_relative_to(package / "commands" / "project")]
    assert shipped == {path.relative_to(package.parent) for path in (*own, package / "py.typed")}
    spec = yaml.safe_load((root / "MLmodel").read_text())
    assert json.loads(spec["signature"]["inputs"]) == [{"type": "binary", "name": "image", "required": True}]
    assert [(c["name"], c["type"]) for c in json.loads(spec["signature"]["outputs"])] == [
        ("label", "string"), ("score", "double"), ("probabilities", "array")
    ]  # fmt: skip
    (example,) = json.loads((root / "input_example.json").read_text())["data"]
    assert base64.b64decode(example[0]) == made.images[0]
    required = (root / "requirements.txt").read_text().split()
    assert f"transformers=={transformers.__version__}" in required
    assert all("==" in line and "+" not in line for line in required)
    assert "python: 3." in (root / "python_env.yaml").read_text()
    # Files of a project that is the current directory stay out.
    (place / "uv.lock").write_text("version = 1\n")
    (place / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    again = made.save(place / "again")
    assert not (again.path / "uv.lock").exists()
    assert not (again.path / "pyproject.toml").exists()


def test_a_model_that_was_saved_wrong_is_noticed(made: Made, tmp_path: Path) -> None:
    saved = made.save(tmp_path / "saved")
    other = transformers.AutoModelForImageClassification.from_config(made.predictor.model.config)
    parts = (made.inputs.processor, made.inputs.task, made.inputs.transforms, made.inputs.id2label)
    before = list(sys.path)
    with pytest.raises(RunError, match="differ by 0"):
        mlflow_model.verify_model(saved, inference.Predictor(other, *parts), made.images)
    (saved.weights / "model.safetensors").unlink()
    with pytest.raises(RunError, match="can't be used: .* has no weights"):
        mlflow_model.verify_model(saved, made.predictor, made.images)
    assert sys.path == before


def test_a_recipe_builds_only_what_is_trusted(made: Made, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "my_ops.py").write_text("def brighten(image):\n    return image\ndef make():\n    return brighten\n")
    monkeypatch.syspath_prepend(str(place))
    made.config.transform.evaluate.append({"_target_": "my_ops.make"})
    try:
        saved = made.save(place / "saved")
    finally:
        made.config.transform.evaluate.pop()
    with pytest.raises(ConfigError, match="builds my_ops.make; if you trust .* set HFEXP_ALLOWED_TARGETS=my_ops"):
        inference.load_predictor(saved.weights)
    assert len(inference.load_predictor(saved.weights, allowed=["my_ops"]).predict(made.images)) == 8
    mlflow_model.verify_model(saved, made.predictor, made.images)
    monkeypatch.setenv("HFEXP_ALLOWED_TARGETS", "other,my_ops")
    assert len(inference.load_predictor(saved.weights).predict(made.images)) == 8

    recipe = json.loads((saved.weights / "hfexp.json").read_text())
    for evil in (
        "os.system",
        "transformers.AutoModel.from_pretrained",
        "torchvision.transforms.transforms.torch.load",
    ):
        changed = {**recipe, "transform": {"prepare": [{"_target_": evil, "command": "true"}], "evaluate": []}}
        (saved.weights / "hfexp.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="builds|refused"):
            inference.load_predictor(saved.weights)
    for broken in ("[]", "{", '{"task": {}}', '{"id2label": 3, "transform": {}}'):
        (saved.weights / "hfexp.json").write_text(broken)
        with pytest.raises(ConfigError, match="hfexp.json is damaged"):
            inference.load_predictor(saved.weights)
    with pytest.raises(ConfigError, match=r"has no hfexp\.json"):
        inference.load_predictor(place)


class NoPipeline(ImageClassification):
    model_class = "AutoModelForNothing"


def test_models_without_a_pipeline_or_without_transformers(made: Made, tmp_path: Path) -> None:
    saved = made.save(tmp_path / "saved", task=NoPipeline())
    assert saved.flavors == ("python_function",)
    mlflow_model.verify_model(saved, made.predictor, made.images)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(192, 10)

        def forward(self, pixel_values: torch.Tensor, labels: Any = None) -> dict[str, Any]:
            return {"loss": None, "logits": self.head(pixel_values.flatten(1))}

    net = Net()
    own = made.save(tmp_path / "own", model=net)
    assert own.flavors == ()
    assert {path.name for path in own.weights.iterdir()} == {
        "hfexp.json", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    parts = (made.inputs.processor, made.inputs.task, made.inputs.transforms)
    assert set(inference.Predictor(net, *parts).predict(made.images)["label"]) <= set(map(str, range(10)))


def test_the_sizes_of_a_timm_model_survive(place: Path) -> None:
    settings = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.95, "num_classes": 10}
    settings |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    model = transformers.AutoModelForImageClassification.from_config(
        transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=10, pretrained_cfg=settings)
    )
    model.save_pretrained("timm")
    config = api.compose(*SMALL_DIGITS[:1], "model=local", f"model.path={place / 'timm'}", "metrics=accuracy")
    inputs = preflight.load_inputs(config)
    model, _ = build_model(config.model, inputs.task, inputs.id2label, [])
    predictor = inference.Predictor(model, inputs.processor, inputs.task, inputs.transforms, inputs.id2label)
    image = images.image_bytes(inputs.dataset["validation"][0])
    recipe = inference.recipe_of(config, inputs.id2label)
    saved = mlflow_model.save_mlflow_model(
        model, inputs.processor, inputs.task, recipe, place / "saved", example=image
    )
    mlflow_model.verify_model(saved, predictor, [image])
    assert "timm==" in (saved.path / "requirements.txt").read_text()
    pipeline = mlflow.transformers.load_model(str(saved.path))
    assert len(pipeline(PIL.Image.open(io.BytesIO(image)).convert("RGB"))) == 5


@pytest.mark.slow
def test_it_loads_where_hfexp_is_not_installed(made: Made, tmp_path: Path) -> None:
    root, image = made.saved.path, made.images[0]
    expected = made.predictor.predict([image]).to_dict("records")[0]
    script = textwrap.dedent(
        f"""
        import sys
        root = {str(root)!r}
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name == "hfexp" and root + "/code" not in sys.path:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Hide())
        try:
            import hfexp
        except ModuleNotFoundError:
            import mlflow, pandas
        table = mlflow.pyfunc.load_model(root).predict(pandas.DataFrame({{"image": [{image!r}]}}))
        import hfexp
        print(hfexp.__file__)
        print(table["label"][0], float(table["score"][0]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    where, answer = done.stdout.strip().splitlines()[-2:]
    assert where == str(root / "code" / "hfexp" / "__init__.py")
    assert answer.split()[0] == expected["label"]
    assert float(answer.split()[1]) == pytest.approx(expected["score"], abs=1e-6)


@contextlib.contextmanager
def served(model_uri: str, cwd: Path, **variables: str) -> Iterator[str]:
    """The address of `mlflow models serve`, in a process group of its own that is ended afterwards."""
    port = free_port()
    log = cwd / "server.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local"]
    # MLflow starts uvicorn by name through a shell.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)], cwd=cwd, env=environment, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_up(f"http://127.0.0.1:{port}/ping", server, log)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=60)


@pytest.fixture
def url(made: Made, tmp_path: Path) -> Iterator[str]:
    with served(str(made.saved.path), tmp_path) as address:
        yield address


@pytest.mark.slow
def test_a_finished_run_answers_a_real_image_over_http(place: Path) -> None:
    root = write_images(place / "photos", count=30)
    words = [w for w in SMALL_DIGITS if w.startswith("model")]
    words += ["dataset=imagefolder", "dataset.source.data_dir=photos", "trainer=scratch", "transform=augment"]
    words += ["trainer.args.per_device_train_batch_size=8", "trainer.args.num_train_epochs=3"]
    result = api.train(*words, "tracking.register=pets")
    image = (root / "dog" / "3.jpg").read_bytes()
    body = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}}
    store = {"MLFLOW_TRACKING_URI": str(result.tracking_uri)}
    for uri in (f"runs:/{result.run_id}/model", "models:/pets@best"):
        with served(uri, place, **store) as address:
            (answer,) = ask(address, body)
        table = mlflow.pyfunc.load_model(str(result.run_dir / "mlflow_model")).predict(
            pandas.DataFrame({"image": [image]})
        )
        assert answer["label"] == table["label"][0] in ("cat", "dog")
        assert answer["score"] == pytest.approx(table["score"][0], abs=1e-6)


def wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def ask(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"]


@pytest.mark.slow
def test_it_is_served_over_http(made: Made, url: str, tmp_path: Path) -> None:
    image = made.images[0]
    expected = made.predictor.predict([image]).to_dict("records")[0]
    text = base64.b64encode(image).decode()
    for body, count in (
        ({"dataframe_split": {"columns": ["image"], "data": [[text], [text]]}}, 2),
        ({"dataframe_records": [{"image": text}]}, 1),
        ({"inputs": {"image": [text]}}, 1),
        ({"inputs": [text, text, text]}, 3),
        ({"instances": [{"image": text}]}, 1),
    ):
        answers = ask(url, body)
        assert len(answers) == count, body
        for answer in answers:
            assert answer["label"] == expected["label"]
            assert answer["score"] == pytest.approx(expected["score"], abs=1e-6)
            assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    secret = tmp_path / "secret.png"
    secret.write_bytes(image)
    for wrong in (str(secret), f"file://{secret}", "", base64.b64encode(image[:40]).decode()):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(url, {"dataframe_split": {"columns": ["image"], "data": [[wrong]]}})
        with caught.value as error:
            assert error.code == 400
            answer = json.loads(error.read())
        assert "row 0" in answer["message"] or "type" in answer["message"]
