"""Composition: every file of conf/, the default experiment, the notebook's recipe."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hfexp.commands import api, cli
from hfexp.core.compose import compose, conf_dir, prepare_overrides
from hfexp.core.config import flatten, to_config
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.core.targets import check, locate, parameters
from hfexp.experiment.choices import check_choices

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}" for path in conf_dir().glob("*/*.yaml") if path.parent.name not in ("hydra",)
)
NEEDED = {
    "dataset=table": ["dataset.source.data_files=rows.csv"],
    "dataset=imagefolder": ["dataset.source.data_dir=x"],
    "dataset=hub": ["dataset.source.path=x"],
    "dataset=disk": ["dataset.source.path=x"],
    "dataset=conll": ["dataset.source.data_files=x"],
    "dataset=squad": ["dataset.source.data_files=x"],
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


def test_every_shipped_model_says_what_it_is_for() -> None:
    silent = {option for option in OPTIONS if option.startswith("model=") and _kind(option) is None}
    assert silent == {"model=local"}
    assert {o for o in OPTIONS if o.startswith("dataset=") and _kind(o) is None} == {
        "dataset=table", "dataset=hub", "dataset=disk",
    }  # fmt: skip


def _kind(option: str) -> str | None:
    config = api.compose(option, *NEEDED.get(option, []))
    return config.model.kind if option.startswith("model=") else config.dataset.kind


TEXT = ("task=text_classification", "dataset=table", "dataset.source.data_files=rows.csv")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=imagefolder", "dataset.source.data_dir=photos"], ["no model is chosen", "resnet50", "vit_base"]),
        (["model=vit_base"], ["no dataset is chosen for task=image_classification", "imagefolder"]),
        (["task=chat"], ["no model is chosen for task=chat", "qwen3_0_6b", "no dataset is chosen"]),
        ([*TEXT], ["no model is chosen for task=text_classification", "distilbert", "smollm2_135m"]),
        ([*TEXT, "model=vit_digits"], ["model=vit_digits reads images", "text_classification reads text"]),
        ([*TEXT[:1], "model=bert_base", "dataset=digits"], ["dataset=digits holds images", "docstrings"]),
        (["model=bert_base", "dataset=docstrings"], ["task=image_classification reads images", "text_regression"]),
        (["task=text_generation", "model=bert_base", "dataset=docstrings"], ["reads text", "generates text"]),
        (["model=vit_base", "model.kind=pictures", "dataset=digits"], ["model.kind=pictures", "image, seq2seq, text"]),
    ],
)
def test_what_is_chosen_must_be_there_and_fit(words: list[str], said: list[str]) -> None:
    cfg, choices = compose(*words)
    with pytest.raises(ConfigError) as caught:
        check_choices(to_config(cfg), choices)
    for part in said:
        assert part in str(caught.value)
    assert "vit_digits" not in str(caught.value) or "image" in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        [], ["seed=3"], ["debug=fast"], ["experiment=minilm_lora"], [*TEXT, "model=qwen3_0_6b"],
        [*TEXT, "model=local", "model.path=x"], ["dataset=digits", "model.path=owner/name"],
        ["task=image_classification", "dataset=hub", "dataset.source.path=x", "model=timm"],
    ],
)  # fmt: skip
def test_what_fits_passes(words: list[str]) -> None:
    cfg, choices = compose(*words)
    check_choices(to_config(cfg), choices)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=1E5", "name", "1E5"), ("name=007", "name", "007"), ("name=true", "name", "true"),
        ("name=1_000", "name", "1_000"), ("name=null", "name", None), ("name=plain", "name", "plain"),
        ("tracking.experiment=1E234", "tracking.experiment", "1E234"), ("search.name=2e3", "search.name", "2e3"),
        ("tracking.tags.a=+1.50", "tracking.tags.a", "+1.50"), ("model.revision=7e10123", "model.revision", "7e10123"),
        ("model.freeze=[1e5,vit]", "model.freeze", ["1e5", "vit"]),
        ("dataset.source.data_dir=/a/2024/1e5", "dataset.source.data_dir", "/a/2024/1e5"),
        ("dataset.source.data_dir=2024", "dataset.source.data_dir", "2024"),
        ("tracking.uri=http://h:5000", "tracking.uri", "http://h:5000"), ("seed=7", "seed", 7),
        ("launch.num_processes=2", "launch.num_processes", 2), ("name='1E5'", "name", "1E5"),
    ],
)  # fmt: skip
def test_words_stay_words(override: str, key: str, value: object) -> None:
    cfg, _ = compose(override)
    assert OmegaConf.to_container(OmegaConf.create({"found": OmegaConf.select(cfg, key)}))["found"] == value


def test_the_experiment_of_mlflows_variable_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert api.compose().tracking.experiment is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert api.compose().tracking.experiment == "mine"
    assert api.compose("tracking.experiment=other").tracking.experiment == "other"


def test_own_options_come_first_and_say_so(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "model" / "vit_base.yaml").write_text("kind: image\npath: mine/vit\n")
    assert api.compose("model=vit_base", config_dir=own).model.path == "mine/vit"
    assert api.compose("model=vit_base", f"hydra.searchpath=[file://{own}]").model.path == "mine/vit"
    assert api.compose("model=vit_base").model.path == "google/vit-base-patch16-224-in21k"
    for flag in ("--config-dir", "--config-path"):
        assert cli.main([flag, "own", "model=vit_base", "--cfg", "job"]) == 0
        shown = capsys.readouterr()
        assert "path: mine/vit" in shown.out
        assert "own/model/vit_base.yaml replaces the shipped file" in shown.err
    (own / "model" / "vit_base.yaml").write_text("defaults: [vit_base]\n")
    with pytest.raises(ConfigError, match="includes itself.*vit_base.yaml"):
        api.compose("model=vit_base", config_dir=own)


@pytest.mark.parametrize(
    ("content", "words", "shown"),
    [
        ("seed: 7\n", [], ["seed: 7", "model_type: vit"]),
        (
            "model:\n  path: owner/name\ndataset:\n  source: {_target_: hfexp.data.sources.digits}\n",
            [],
            ["owner/name"],
        ),
        ("trainer:\n  args: {learning_rate: 0.25}\n", ["model=resnet50"], ["learning_rate: 0.25", "resnet-50"]),
    ],
)
@pytest.mark.parametrize("name", ["mine", "config"])
def test_an_own_primary_config_is_the_one(
    name: str, content: str, words: list[str], shown: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "own").mkdir()
    base = "config" if name == "mine" else "base"
    if name == "config":
        (place / "own" / "base.yaml").write_text((conf_dir() / "config.yaml").read_text())
    (place / "own" / f"{name}.yaml").write_text(f"defaults: [{base}, _self_]\n{content}")
    flags = ["--config-name", name] if name == "mine" else []
    cli.main(["--config-dir", "own", *flags, *words, "--cfg", "job"])
    out = capsys.readouterr().out
    for part in shown:
        assert part in out
    assert ("hidden_size: 64" in out) is (content == "seed: 7\n")  # the demo, only where nothing is chosen


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
