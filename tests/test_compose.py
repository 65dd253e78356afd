"""Composition: every file of conf/, the default experiment, the notebook's recipe."""

from pathlib import Path

import pytest

from hfexp import api
from hfexp.composition import compose, conf_dir, prepare_overrides
from hfexp.config import flatten, to_config
from hfexp.errors import ConfigError
from hfexp.identity import config_hash
from hfexp.targets import check, locate, parameters

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}" for path in conf_dir().glob("*/*.yaml") if path.parent.name not in ("hydra",)
)
NEEDED = {
    "dataset=table": ["dataset.source.data_files=rows.csv"],
    "dataset=imagefolder": ["dataset.source.data_dir=x"],
    "dataset=hub": ["dataset.source.path=x"],
    "dataset=disk": ["dataset.source.path=x"],
    "dataset=csv": ["dataset.source.data_files=x"],
    "dataset=parquet": ["dataset.source.data_files=x"],
    "model=local": ["model.path=x"],
}


def test_every_option_is_seen() -> None:
    files = [p for p in conf_dir().rglob("*.yaml") if p.name != "config.yaml"]
    assert len(OPTIONS) == len(files) > 30


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_its_targets_bind(option: str) -> None:
    config = api.compose(option, *NEEDED.get(option, []))
    check(config.task, "task")
    check(config.dataset.source, "dataset.source")
    check(config.metrics, "metrics")
    check(config.trainer.callbacks, "trainer.callbacks")
    transform = config.transform
    for node in (*transform.prepare, *transform.augment, *transform.evaluate, *transform.batch_augment):
        takes = parameters(locate(node["_target_"], "transform"))
        given = {"geometry", "size", "num_classes", "mean", "std", "processor"} & takes.keys() - node.keys()
        check(node, "transform", runtime=frozenset(given))


def test_hfexp_alone_is_the_default_experiment() -> None:
    assert config_hash(api.compose()) == config_hash(api.compose("experiment=digits_vit"))
    assert "experiment=digits_vit" in prepare_overrides(["seed=1"])
    assert "experiment=digits_vit" not in prepare_overrides(["model=vit_tiny"])
    assert api.compose("model=vit_tiny").trainer.args["learning_rate"] == 5e-5


def test_food101_vit_is_the_notebooks_recipe() -> None:
    config = api.compose("experiment=food101_vit")
    args = config.trainer.args
    notebook = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
        "logging_steps": 10,
        "load_best_model_at_end": True,
    }
    assert {name: args[name] for name in notebook} == notebook
    ours = {"metric_for_best_model", "greater_is_better", "logging_nan_inf_filter", "save_total_limit",
            "restore_callback_states_from_checkpoint"}  # fmt: skip
    assert set(args) == set(notebook) | ours
    assert config.model.path == "google/vit-base-patch16-224-in21k"
    assert config.dataset.source["path"] == "ethz/food101"
    assert config.dataset.source["split"] == "train[:5000]"
    assert config.dataset.validation_size == 0.2
    names = [node["_target_"].rpartition(".")[2] for node in config.transform.prepare]
    assert names == ["ConvertRGB", "Resize", "ToTensor", "Normalize"]
    assert list(config.metrics) == ["accuracy"]


def test_any_training_argument_needs_no_plus() -> None:
    assert api.compose("trainer.args.label_smoothing_factor=0.1").trainer.args["label_smoothing_factor"] == 0.1


def test_yaml_no_is_the_word_no(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text(
        "defaults: [default, _self_]\nargs: {eval_strategy: no, save_strategy: no, load_best_model_at_end: false}\n"
    )
    args = api.compose("trainer=mine", config_dir=tmp_path).trainer.args
    assert (args["eval_strategy"], args["save_strategy"]) == ("no", "no")


def test_an_own_config_directory_adds_options(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my_models.build\nwidth: 8\n")
    config = api.compose("model=mine", config_dir=tmp_path)
    assert config.model.build == {"_target_": "my_models.build", "width": 8}


def test_misspelt_key_in_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("path: x\nrevison: main\n")
    with pytest.raises(ConfigError, match="model.revison.*Did you mean 'revision'"):
        api.compose("model=mine", config_dir=tmp_path)


def test_identity_is_what_decides_the_result() -> None:
    base = config_hash(api.compose())
    same = ("name=x", "tracking=none", "output_dir=y", "trainer.args.logging_steps=3", "on_existing=rerun")
    other = (
        "seed=1",
        "trainer.args.learning_rate=1e-4",
        "dataset.max_train_samples=9",
        "transform=eval",
        "metrics=accuracy",
    )
    assert {config_hash(api.compose(word)) for word in same} == {base}
    assert len({config_hash(api.compose(word)) for word in other} | {base}) == len(other) + 1


def test_logging_steps_count_where_they_decide_when_to_evaluate() -> None:
    steps = ["trainer.args.eval_strategy=steps", "trainer.args.save_strategy=steps"]
    assert config_hash(api.compose(*steps)) != config_hash(api.compose(*steps, "trainer.args.logging_steps=3"))


def test_flatten_keeps_every_leaf() -> None:
    tree = {"a": {"b": 1, "c": []}, "d": [{"e": 2}, {"f": None}], "g": [1, 2], "h": {}}
    assert flatten(tree) == {"a.b": 1, "a.c": [], "d.0.e": 2, "d.1.f": None, "g": [1, 2], "h": {}}


def test_missing_value_is_named() -> None:
    cfg, _ = compose("dataset=imagefolder")
    with pytest.raises(ConfigError, match="dataset.source.data_dir"):
        to_config(cfg)
