"""The allow-list and the signature check of `_target_`."""

import functools
from pathlib import Path

import pytest
from conftest import ROOT

from hfexp.commands import api, cli
from hfexp.core.errors import ConfigError
from hfexp.core.targets import ALLOWED_TARGETS, check, check_hydra, instantiate, locate

KEYS = sorted(ALLOWED_TARGETS)
DANGEROUS = (
    "os.system subprocess.run builtins.eval torch.os.system torch.load torch.hub.load torch._utils._rebuild_tensor "
    "mlflow.pyfunc.load_model torch.serialization.load shutil.rmtree transformers.utils.os.system pandas.read_pickle "
    "datasets.load.importlib.import_module torch.sys.path.append torch.utils.collect_env.run fractions.Fraction "
    "transformers.utils.import_utils.direct_transformers_import mlflow.sklearn.load_model "
    "torch.nn.modules.module.torch "
    "timm.models.helpers.load_checkpoint hfexp.commands.cli.main hfexp.core.targets.locate "
    "torchvision.datasets.os.system "
    "sklearn.datasets.warnings.warn torchvision.transforms.transforms.torch.load torch.nn.modules.module.torch.load "
    # Of known packages: they run code, load pickles, write or fetch.
    "datasets.load.import_main_class datasets.Dataset.from_generator datasets.Dataset.from_sql "
    "datasets.Dataset.from_spark "
    "datasets.load_dataset_builder evaluate.loading.import_main_class evaluate.loading.evaluation_module_factory "
    "torchvision.io.write_png torchvision.io.write_jpeg torchvision.io.read_file torchvision.datasets.DatasetFolder "
    "sklearn.datasets.dump_svmlight_file sklearn.datasets.clear_data_home sklearn.datasets.fetch_openml "
    "sklearn.preprocessing.FunctionTransformer transformers.AutoModel.from_pretrained transformers.pipeline "
    "transformers.AutoTokenizer.from_pretrained transformers.ViTImageProcessor.from_pretrained optuna.delete_study "
    "optuna.load_study optuna.storages.RDBStorage peft.PeftModel.from_pretrained hfexp.tasks.images.open_image "
    "timm.create_model accelerate.notebook_launcher torch.utils.data.DataLoader transformers.TrainingArguments "
    "hydra.utils.get_method hydra.utils.instantiate hydra.experimental.callbacks.PickleJobInfoCallback"
)


@pytest.mark.parametrize("path", DANGEROUS.split())
def test_dangerous_targets_are_refused_everywhere(path: str) -> None:
    for key in KEYS:
        with pytest.raises(ConfigError, match="not allowed|has no|leads from|is a module"):
            locate(path, f"{key}.x._target_")


USEFUL = {
    "task": "hfexp.tasks.image_classification.ImageClassification",
    "model.head": "torch.nn.Linear",
    "model.processor": "transformers.ViTImageProcessor transformers.PreTrainedTokenizerFast "
    "hfexp.tasks.text.byte_tokenizer",
    "model.peft": "peft.LoraConfig peft.IA3Config",
    "dataset.source": "datasets.load_dataset datasets.Dataset.from_csv hfexp.data.sources.table "
    "hfexp.data.sources.hub",
    "transform.prepare.0": "torchvision.transforms.v2.Resize torchvision.transforms.Compose hfexp.tasks.images.ToRGB",
    "transform.augment.1.transforms.0": "torch.nn.Identity torchvision.transforms.v2.functional.hflip",
    "trainer": "hfexp.training.trainer.Trainer",
    "trainer.callbacks.own": "transformers.integrations.MLflowCallback transformers.EarlyStoppingCallback",
    "metrics.accuracy": "hfexp.tasks.metrics.Accuracy evaluate.load",
    "search.sampler": "optuna.samplers.TPESampler",
    "hydra.callbacks.log": "hydra.experimental.callbacks.LogJobReturnCallback",
}


@pytest.mark.parametrize("key", USEFUL)
def test_useful_targets_are_allowed_where_they_belong(key: str) -> None:
    for path in USEFUL[key].split():
        assert callable(locate(path, f"{key}._target_"))


def test_what_hydra_builds_is_checked_too() -> None:
    own = {"handlers": {"file": {"class": "logging.FileHandler", "filename": "x.log"}}, "root": {"handlers": ["file"]}}
    console = {"handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}}
    launcher = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}
    check_hydra({"callbacks": None, "launcher": launcher, "job_logging": own, "hydra_logging": console})
    wrong: list[dict[str, object]] = [
        {"callbacks": {"a": {"_target_": "pandas.read_pickle"}}},
        {
            "callbacks": {
                "a": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback", "x": [{"_target_": "a.b"}]}
            }
        },
        {"launcher": {**launcher, "verbose": {"_target_": "pandas.read_pickle"}}},
        {"launcher": {**launcher, "verbose": {"_target_": "hydra_plugins.hydra_joblib_launcher._core.Path.mkdir"}}},
        {"sweeper": {"_target_": "tempfile.mkdtemp"}},
        {"job_logging": {"formatters": {"a": {"()": "logging.config.fileConfig", "fname": "x"}}}},
        {"hydra_logging": {"handlers": {"a": {"class": "logging.handlers.SMTPHandler"}}}},
        {"job_logging": {"handlers": {"a": {"class": "logging.StreamHandler", "stream": "ext://os.environ"}}}},
        {"job_logging": {"filters": [{"()": "tempfile.mkdtemp"}]}},
        {"job_logging": {"handlers": {"a": {"class": "logging.FileHandler", "filename": "/home/me/.bashrc"}}}},
    ]
    for sections in wrong:
        with pytest.raises(ConfigError, match=r"hydra\..* is not allowed"):
            check_hydra(sections)


def test_a_callback_of_hydra_is_refused_before_it_is_built(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["debug=fast", "+hydra.callbacks.a._target_=tempfile.mkdtemp", f"+hydra.callbacks.a.dir={place}"]
    assert cli.main(words) == 2
    assert "hydra.callbacks.a._target_: tempfile.mkdtemp is not allowed here" in capsys.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("hydra: {hydra_logging: {version: 1, root: {handlers: [x]}, handlers: {x: {(): os.mkdir, path: MADE}}}}",
         "hydra.hydra_logging.handlers.x.()"),
        ("name: ext://this.x\nhydra: {job_logging: {version: 1, root: {handlers: [x]},"
         " handlers: {x: {class: logging.StreamHandler, stream: '${name}'}}}}", "hydra.job_logging.handlers.x.stream"),
        ("hydra: {job: {env_set: {PATH: bin}}}", "hydra.job.env_set.PATH"),
        ("hydra: {run: {dir: MADE}}", "hydra.run.dir=MADE"),
        ("security: {allowed_targets: [os]}\ntransform: {augment: [{_target_: os.mkdir, path: MADE}]}",
         "security.allowed_targets=[os]"),
        ("model: {trust_remote_code: true}", "model.trust_remote_code=true"),
        ("hydra: {launcher: {runtime_env: {pip: [other]}}}", "hydra.launcher.runtime_env.pip=[other]"),
        ("hydra: {launcher: {address: 'ray://elsewhere:1'}}", "hydra.launcher.address=ray://elsewhere:1"),
    ],
)  # fmt: skip
def test_a_file_of_options_runs_nothing(
    setting: str, key: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "conf" / "experiment").mkdir(parents=True)
    (place / "conf" / "experiment" / "sent.yaml").write_text(f"# @package _global_\n{setting}\n")
    words = ["experiment=sent", "dataset=digits", "model=vit_digits", "hydra/launcher=ray"]
    assert cli.main(["--config-dir", "conf", *words]) == 2
    assert key in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["conf"]


def test_own_module_in_the_project_is_allowed_and_others_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "my_own_module.py").write_text("def build(width=1):\n    return {'width': width}\n")
    monkeypatch.syspath_prepend(str(place))
    assert instantiate({"_target_": "my_own_module.build", "width": 3}, "model") == {"width": 3}
    with pytest.raises(ConfigError, match="security.allowed_targets"):
        locate("fractions.Fraction", "x")
    assert instantiate({"_target_": "fractions.Fraction", "numerator": 3}, "x", ["fractions"]) == 3
    (place / "my_loot.py").write_text("from pandas import read_pickle\n")  # what it only passes on is not its own
    with pytest.raises(ConfigError, match="not allowed"):
        locate("my_loot.read_pickle", "dataset.source")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "hfexp.tasks.metrics.TopKAccuracy", "kk": 1}, "unknown key 'metrics.kk'.*Did you mean 'k'"),
        ({"_target_": "hfexp.tasks.metrics.Acuracy"}, "has no 'Acuracy'.*Did you mean 'Accuracy'"),
        ({"_target_": "hfexp.tasks.metrics.Nothing.X"}, "hfexp.tasks.metrics has no 'Nothing'"),
        ([{"_target_": "os.system"}], r"metrics\.0\._target_"),
        (
            {"_target_": "hfexp.tasks.metrics.TopKAccuracy", "k": "${oc.create:{_target_:pandas.read_pickle}}"},
            r"metrics\.k=.* is not resolved here",
        ),
    ],
)
def test_wrong_nodes_name_their_key(node: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(node, "metrics")


def test_runtime_objects_may_not_be_config_keys() -> None:
    with pytest.raises(ConfigError, match="metrics.k is set by hfexp"):
        instantiate({"_target_": "hfexp.tasks.metrics.TopKAccuracy", "k": 1}, "metrics", k=2)


def test_containers_are_plain_and_partial_works() -> None:
    built = instantiate({"_target_": "transformers.ViTImageProcessor", "own": {"b": [1, 2]}}, "model.processor")
    assert type(built.own) is dict
    assert type(built.own["b"]) is list
    assert isinstance(
        instantiate({"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 2}, "model"), functools.partial
    )


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_shipped_experiments_name_only_what_is_allowed(experiment: str, place: Path) -> None:
    """A tokenizer that learns from the dataset names its source below `model.processor`."""
    config = api.compose(f"experiment={experiment}")
    sections = {"model.processor": config.model.processor, "dataset.source": config.dataset.source}
    for key, node in (sections | {"metrics": config.metrics, "task": config.task}).items():
        check(node, key, [], frozenset({"processor", "id2label", "task"}))
