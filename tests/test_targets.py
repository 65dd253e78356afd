"""The allow-list and the signature check of `_target_`."""

import functools
from pathlib import Path

import pytest

from hfexp.errors import ConfigError
from hfexp.targets import check, instantiate, locate


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch._utils._rebuild_tensor",
        "mlflow.pyfunc.load_model",
        "torch.serialization.load",
        "shutil.rmtree",
        "transformers.utils.os.system",
        "datasets.load.importlib.import_module",
        "torch.sys.path.append",
        "torch.utils.collect_env.run",
        "transformers.utils.import_utils.direct_transformers_import",
        "mlflow.sklearn.load_model",
        "timm.models.helpers.load_checkpoint",
        "hfexp.cli.main",
        "hfexp.targets.locate",
        "torchvision.datasets.os.system",
        "sklearn.datasets.warnings.warn",
    ],
)
def test_dangerous_targets_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="refused|not allowed|has no"):
        locate(path, "task._target_")


USEFUL = (
    "torch.nn.Linear torch.optim.AdamW torchvision.transforms.v2.Resize transformers.ViTImageProcessor "
    "datasets.load_dataset evaluate.load sklearn.svm.SVC"
)


@pytest.mark.parametrize("path", USEFUL.split())
def test_useful_targets_are_allowed(path: str) -> None:
    assert callable(locate(path, "x"))


def test_own_module_in_the_project_is_allowed_and_others_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "my_own_module.py").write_text("def build(width=1):\n    return {'width': width}\n")
    monkeypatch.syspath_prepend(str(place))
    assert instantiate({"_target_": "my_own_module.build", "width": 3}, "model") == {"width": 3}
    with pytest.raises(ConfigError, match="security.allowed_targets"):
        locate("fractions.Fraction", "x")
    assert instantiate({"_target_": "fractions.Fraction", "numerator": 3}, "x", ["fractions"]) == 3


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "hfexp.metrics.TopKAccuracy", "kk": 1}, "unknown key 'm.kk'.*Did you mean 'k'"),
        ({"_target_": "hfexp.sources.image_folder"}, "m.data_dir is required"),
        ({"_target_": "hfexp.metrics.Acuracy"}, "has no 'Acuracy'.*Did you mean 'Accuracy'"),
        ({"_target_": "hfexp.tasks.nothing.X"}, "hfexp.tasks has no 'nothing'"),
        ([{"_target_": "os.system"}], r"m\.0\._target_"),
        (
            {"_target_": "hfexp.metrics.TopKAccuracy", "k": "${oc.create:{_target_:pandas.read_pickle}}"},
            r"m\.k=.* is not resolved here",
        ),
    ],
)
def test_wrong_nodes_name_their_key(node: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(node, "m")


def test_runtime_objects_may_not_be_config_keys() -> None:
    with pytest.raises(ConfigError, match="m.k is set by hfexp"):
        instantiate({"_target_": "hfexp.metrics.TopKAccuracy", "k": 1}, "m", k=2)


def test_containers_are_plain_and_partial_works() -> None:
    built = instantiate({"_target_": "transformers.BatchEncoding", "data": {"a": {"b": [1, 2]}}}, "m")
    assert type(built["a"]) is dict
    assert type(built["a"]["b"]) is list
    assert isinstance(
        instantiate({"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 2}, "m"), functools.partial
    )
