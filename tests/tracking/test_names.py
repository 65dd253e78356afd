"""Names of runs and experiments: what they tell."""

from pathlib import Path
from typing import Any

import pytest
from recorded import Store

from hfexp.core.compose import compose
from hfexp.core.config import to_config
from hfexp.core.provenance import Origin
from hfexp.tracking.names import data_name, experiment_name, run_name
from hfexp.tracking.run_directory import open_run_directory
from hfexp.tracking.runs import find_run


def named(*overrides: str, config_dir: str | None = None) -> tuple[str, str]:
    """The names of the experiment and of the run."""
    cfg, choices = compose(*overrides, config_dir=config_dir)
    origin = Origin(choices, list(overrides), "hfexp")
    return experiment_name(to_config(cfg), origin), run_name(to_config(cfg), origin)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["experiment=digits_vit"], "vit_digits-digits"),
        (["trainer.args.learning_rate=3e-4", "seed=1"], "vit_digits-digits-lr3e-4"),
        (["trainer.args.learning_rate=0.00012345678", "+trainer.args.optim=sgd"],
         "vit_digits-digits-lr0.000123-optim_sgd"),
        (["trainer=fast", "transform=jitter", "debug=fast", "tracking.experiment=digits"],
         "vit_digits-digits-fast-jitter-debug_fast"),
        (["trainer.args.bf16=true", "trainer.args.fp16=false"], "vit_digits-digits-bf16-no_fp16"),
        (["model.config.hidden_size=16", "model.config.hidden_size=32"], "vit_digits-digits-hidden_size32"),
        (["tracking.pictures=false", "output_dir=x", "launch.num_threads=1", "metrics=accuracy",
          "trainer.args.dataloader_num_workers=2", "transform.cache.enabled=false"], "vit_digits-digits"),
        (["trainer.args.max_steps=1", "trainer.args.weight_decay=0.1", "trainer.args.warmup_steps=2",
          "trainer.args.per_device_train_batch_size=8", "trainer.args.num_train_epochs=2"],
         "vit_digits-digits-wd0.1-warmup_steps2-bs8-ep2"),
        (["model.config.hidden_act=quick_gelu_new_x", "+dataset.columns={label: label}"], "vit_digits-digits"),
        (["name=mine", "trainer.args.max_steps=1"], "mine"),
    ],
)  # fmt: skip
def test_a_run_is_named_by_what_was_changed(overrides: list[str], name: str) -> None:
    assert named(*overrides) == ("digits", name)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["dataset=imagefolder", "dataset.source.data_dir=/data/photos/"], "photos"),
        (["dataset=imagefolder", "dataset.source.data_dir=flowers/images/train"], "flowers"),
        (["dataset=imagefolder", "dataset.source.data_dir=../data"], "data"),
        (["dataset=table", "dataset.source.data_files=reviews.csv"], "reviews"),
        (["dataset=table", "dataset.source.data_files='reviews/*.csv.gz'"], "reviews"),
        (["dataset=table", "dataset.source.data_files={train: a/b/x.csv, test: a/b/y.csv}"], "b"),
        (["dataset=table", "dataset.source.data_files={train: [a/b/x.csv]}"], "x"),
        (["dataset=hub", "dataset.source.path=ylecun/mnist"], "mnist"),
        (["dataset=disk", "dataset.source.path=saved/mnist"], "mnist"),
        (["dataset=parquet", "dataset.source.data_files='s3://bucket/mnist/train-0.parquet?x=1'"], "train-0"),
        (["dataset=imagefolder", "dataset.source.data_dir=."], "imagefolder"),
        (["dataset=imagefolder", "dataset.source.data_dir=photos", "tracking.experiment=mine"], "mine"),
    ],
)
def test_an_experiment_is_named_by_its_data(overrides: list[str], name: str) -> None:
    model = "model=tiny_bert" if "dataset=table" in overrides else "model=vit_tiny"
    assert named(model, *overrides)[0] == name


def test_an_own_option_names_its_data(place: Path) -> None:
    (place / "mine" / "dataset").mkdir(parents=True)
    text = "defaults: [imagefolder]\nsource:\n  data_dir: /data/set-7\n"
    (place / "mine" / "dataset" / "flowers.yaml").write_text(text)
    assert named("dataset=flowers", "model=vit_tiny", config_dir="mine")[0] == "flowers"
    cfg, choices = compose("experiment=digits_vit")
    assert data_name(to_config(cfg), Origin({**choices, "dataset": "gone"}, [], "hfexp")) == "gone"


def test_the_directory_has_the_identity_as_well(place: Path) -> None:
    cfg, choices = compose("experiment=digits_vit", "trainer.args.learning_rate=3e-4")
    origin = Origin(choices, ["trainer.args.learning_rate=3e-4"], "hfexp")
    with open_run_directory(to_config(cfg), origin) as directory:
        identity = directory.state.config_hash[:8]
        assert directory.name == f"vit_digits-digits-lr3e-4-s42-{identity}"
        assert directory.title == "vit_digits-digits-lr3e-4-s42"
        directory.end("finished")
        directory.save_state()
    with open_run_directory(to_config(cfg), origin) as again:
        assert (again.name, again.title) == (f"{directory.name}-2", "vit_digits-digits-lr3e-4-s42-2")


def test_other_overrides_continue_the_same_experiment(place: Path) -> None:
    def open_it(*overrides: str) -> Any:
        cfg, choices = compose(*overrides)
        return open_run_directory(to_config(cfg), Origin(choices, list(overrides), "hfexp"))

    with open_it("trainer.args.learning_rate=0.001") as first:  # the default of this experiment
        first.end("killed")
        first.save_state()
    with open_it() as second:
        assert (second.path, second.resumed) == (first.path, True)
        second.end("finished")
        second.save_state()
    with open_it() as third:
        assert third.name == second.name.replace("-lr0.001", "") + "-2"
    third.path.rename(third.path.with_name(f".removing-{third.name}"))
    with open_it() as fourth:
        assert (fourth.name, fourth.resumed) == (third.name, False)
    with open_it("name=mine") as named:
        assert not named.resumed
        assert named.title == "mine-s42"


def test_a_run_is_found_by_the_name_of_its_directory(place: Path) -> None:
    store = Store(place / "mlflow.db")
    experiment = store.experiment("digits")
    ids = {}
    for identity in ("0123abcd", "4567abcd"):
        name = f"vit-digits-s1-{identity}-2"
        ids[name] = store.run(experiment, "vit-digits-s1-2", tags={"hfexp.run_dir": f"/x/{name}"})
    for name, run_id in ids.items():
        assert find_run(store.uri, name).run_id == run_id
