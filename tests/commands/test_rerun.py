"""`hfexp rerun`: the command that is repeated, with changes, and what is refused."""

import shlex
from pathlib import Path

import pytest
from recorded import Store

from hfexp.commands.rerun import command_of
from hfexp.core.errors import ConfigError


@pytest.fixture
def store(place: Path) -> Store:
    (place / "outputs").mkdir()
    return Store(place / "outputs" / "mlflow.db")


def record(store: Store, command: str, name: str = "vit-a", kind: str = "run") -> Path:
    experiment = store.client.get_experiment_by_name("photos")
    experiment_id = experiment.experiment_id if experiment else store.experiment("photos")
    tags = {"hfexp.command": command, **({"hfexp.kind": "sweep"} if kind == "sweep" else {})}
    home = store.place(store.run(experiment_id, name, tags=tags), kind=kind)
    (home / "artifacts" / "command.txt").write_text(f"{command}\n")
    return home


def test_a_command_is_repeated_with_changes(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, "hfexp --config-dir 'my conf' model=vit_tiny seed=1 'name=a b'")
    assert command_of(["last"]) == ["--config-dir", "my conf", "model=vit_tiny", "seed=1", "name=a b"]
    assert command_of(["vit-a", "seed=2", "+trainer.args.tf32=true"]) == [
        "--config-dir", "my conf", "model=vit_tiny", "name=a b", "seed=2", "+trainer.args.tf32=true",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[0] == "hfexp --config-dir 'my conf' model=vit_tiny seed=1 'name=a b'"


def test_a_change_of_the_model_keeps_the_default_experiment(store: Store) -> None:
    record(store, "hfexp seed=1")
    assert command_of(["last", "seed=2"]) == ["seed=2"]
    assert command_of(["last", "model=local", "model.path=run:last"]) == [
        "seed=1", "experiment=digits_vit", "model=local", "model.path=run:last",
    ]  # fmt: skip
    assert command_of(["last", "experiment=minilm_lora"]) == ["seed=1", "experiment=minilm_lora"]


@pytest.mark.parametrize("flags", [["--config-dir", "conf", "--config-name", "mine"], ["-cn=mine"], ["-cd=conf"]])
def test_a_config_of_ones_own_chooses_for_itself(flags: list[str], store: Store) -> None:
    Path("conf").mkdir()
    for name in ("config", "mine"):
        text = "defaults: [hfexp_schema, _self_, {model: vit_tiny}, {dataset: food101}, {task: image_classification}]"
        Path(f"conf/{name}.yaml").write_text(text)
    record(store, shlex.join(["hfexp", *flags, "seed=1"]))
    assert command_of(["last", "model=local"]) == [*flags, "seed=1", "model=local"]


@pytest.mark.parametrize("name", ["sweep=lr", "lr"])
def test_a_sweep_is_repeated(store: Store, name: str) -> None:
    record(store, "hfexp -m model=vit_tiny seed=1,2", "lr", "sweep")
    assert command_of([name, "search.name=again"]) == ["-m", "model=vit_tiny", "seed=1,2", "search.name=again"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("hfexp.train('seed=1')", "was not started by the command hfexp but by hfexp.train"),
        ("hfexp dataset.source.password=***", "held a secret, which is not recorded"),
        ("hfexp 'seed=1", "can't be read: No closing quotation"),
    ],
)
def test_what_can_not_be_repeated(store: Store, command: str, message: str) -> None:
    record(store, command)
    with pytest.raises(ConfigError, match=message):
        command_of(["last"])


def test_a_store_can_not_say_what_is_run(store: Store) -> None:
    home = record(store, "hfexp seed=1")
    home.rename(home.parent.parent.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"not trained in outputs on this machine.*it was: hfexp seed=1"):
        command_of(["last"])


def test_an_unknown_sweep(store: Store) -> None:
    record(store, "hfexp seed=1")
    with pytest.raises(ConfigError, match="there is no such sweep"):
        command_of(["sweep=lr"])
