"""Which sweep a command continues, and which it begins."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import DECAY, RATE, sweep

METRIC = "trainer.args.metric_for_best_model"
ONE_FILE = "# @package _global_\ndefaults: [/experiment/digits_vit]\nseed: {seed}\n"


class Seen:
    """A job that notes what it was given."""

    def __init__(self, what: Callable[[Any], Any]) -> None:
        self.what = what
        self.values: list[Any] = []

    def __call__(self, cfg: Any) -> float:
        self.values.append(self.what(cfg))
        return float(len(self.values))


def write_experiment(name: str, seed: int) -> None:
    file = Path("conf/experiment") / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(ONE_FILE.format(seed=seed))


def test_a_name_that_ends_in_a_number(place: Path) -> None:
    seen = Seen(lambda cfg: cfg.seed)
    for seed, words in (
        (1, ["search.name=lr"]),
        (1, ["search.name=lr", "on_existing=rerun"]),
        (2, ["search.name=lr-2"]),
    ):
        assert sweep(seen, f"seed={seed}", f"{RATE}=0.1", *words) == 0
    assert sorted(path.name for path in Path("outputs/sweeps").glob("[!.]*")) == ["lr", "lr-2", "lr-2-2"]
    assert sweep(seen, "seed=2", f"{RATE}=0.1", "search.name=lr-2") == 0
    assert sweep(seen, "seed=1", f"{RATE}=0.1", "search.name=lr") == 0
    assert seen.values == [1, 1, 2]


@pytest.mark.slow
def test_another_option_for_a_glob_is_another_sweep(place: Path) -> None:
    seen = Seen(lambda cfg: cfg.seed)
    words = ["--config-dir", "conf", "experiment=glob(mine*)"]
    for name, seed in (("mine_b", 2), ("mine_a", 1)):
        write_experiment(name, seed)
        assert sweep(seen, *words) == 0
    assert seen.values == [2, 1, 2]


@pytest.mark.slow
def test_an_edited_option_that_is_not_the_first_one(place: Path) -> None:
    seen = Seen(lambda cfg: cfg.seed)
    for seed in (2, 2, 3):
        write_experiment("mine_a", 1)
        write_experiment("mine_b", seed)
        assert sweep(seen, "--config-dir", "conf", "experiment=mine_a,mine_b") == 0
    assert seen.values == [1, 2, 1, 3]


@pytest.mark.slow
def test_changed_files_of_data_make_another_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen, words = Seen(lambda cfg: cfg.seed), ["dataset.source.data_dir=pictures", f"{RATE}=0.1"]
    Path("pictures").mkdir()
    Path("pictures/a.txt").write_text("one")
    assert sweep(seen, *words) == 0
    assert sweep(seen, *words, "search.name=mine") == 0
    Path("pictures/b.txt").write_text("two")
    assert sweep(seen, *words) == 0
    assert len(seen.values) == 3
    assert sweep(seen, *words, "search.name=mine") == 2
    assert "data: its files have changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    "space",
    [
        ["dataset.source.data_files=a.csv,b.csv"],
        pytest.param(["search.space={dataset.source.data_files: [a.csv, b.csv]}"], marks=pytest.mark.slow),
        pytest.param(
            ["seed=1,2", "search.space={dataset.source.data_files: {values: [a.csv, b.csv], when: {seed: 2}}}"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["dataset.source.data_files.train='${oc.env:HERE}/a.csv','${oc.env:HERE}/b.csv'"], marks=pytest.mark.slow
        ),
        pytest.param(["--config-dir", "conf", "dataset=own_a,own_b", "model=vit_digits"], marks=pytest.mark.slow),
    ],
)
def test_a_changed_file_that_is_not_of_the_first_point(
    place: Path, monkeypatch: pytest.MonkeyPatch, space: list[str]
) -> None:
    monkeypatch.setenv("HERE", str(place))
    Path("conf/dataset").mkdir(parents=True)
    for name in "ab":
        Path(f"{name}.csv").write_text("text,label\n")
        file = Path(f"conf/dataset/own_{name}.yaml")
        file.write_text(f"defaults: [csv]\nsource: {{data_files: '${{oc.env:HERE}}/{name}.csv'}}\n")
    seen = Seen(lambda cfg: 0)
    counts = []
    for content in ("text,label\n", "text,label\nx,0\n"):
        Path("b.csv").write_text(content) if content not in Path("b.csv").read_text() else None
        for _ in range(2):
            assert sweep(seen, *space) == 0
            counts.append(len(seen.values))
    first, again, changed, changed_again = counts
    assert first == again
    assert changed == changed_again == 2 * first


@pytest.mark.slow
def test_an_edited_option_of_a_group_that_is_added(place: Path) -> None:
    seen = Seen(lambda cfg: cfg.seed)
    Path("own/recipe").mkdir(parents=True)
    for seed in (2, 2, 3):
        for name, value in (("a", 1), ("b", seed)):
            Path(f"own/recipe/{name}.yaml").write_text(f"# @package _global_\nseed: {value}\n")
        assert sweep(seen, f"hydra.searchpath=[file://{place}/own]", "+recipe=a,b") == 0
    assert seen.values == [1, 2, 1, 3]


@pytest.mark.slow
def test_a_condition_on_what_options_of_a_group_set(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = Seen(lambda cfg: (cfg.seed, cfg.trainer.args.get("weight_decay")))
    for name, seed in (("mine_a", 1), ("mine_b", 2)):
        write_experiment(name, seed)
    words = ["--config-dir", "conf", "experiment=mine_a,mine_b"]
    for key, value, found in (("seed", 7, "1, 2"), ("seed", 1, "1, 2")):
        assert sweep(seen, *words, f"search.space={{{DECAY}: {{values: [0.1, 0.2], when: {{{key}: {value}}}}}}}") == 2
        assert f"a `when` names seed, which is not swept but differs between points ({found})" in (
            capsys.readouterr().err
        )
    assert sweep(seen, *words, "seed=7", f"search.space={{{DECAY}: {{values: [0.1, 0.2], when: {{seed: 7}}}}}}") == 0
    assert seen.values == [(7, 0.1), (7, 0.2)] * 2


@pytest.mark.slow
def test_a_condition_on_what_all_options_of_a_group_set(place: Path) -> None:
    seen = Seen(lambda cfg: cfg.trainer.args.get("weight_decay"))
    for name in ("mine_a", "mine_b"):
        write_experiment(name, 1234)
    words = ["--config-dir", "conf", "experiment=mine_a,mine_b"]
    assert sweep(seen, *words, f"search.space={{{DECAY}: {{values: [0.1, 0.2], when: {{seed: 1234}}}}}}") == 0
    assert seen.values == [0.1, 0.2] * 2


@pytest.mark.slow
def test_a_condition_on_what_is_not_swept(place: Path) -> None:
    seen = Seen(lambda cfg: (cfg.trainer.args.get("optim"), cfg.trainer.args.get("weight_decay")))
    decay = f"search.space={{{DECAY}: {{values: 'choice(0.1,0.2)', when: {{trainer.args.optim: sgd}}}}}}"
    assert sweep(seen, decay, "trainer.args.optim=sgd", "seed=1") == 0
    assert seen.values == [("sgd", 0.1), ("sgd", 0.2)]
    assert sweep(seen, decay, "trainer.args.optim=adamw_torch", "seed=1,2") == 0
    assert [optim for optim, _ in seen.values[2:]] == ["adamw_torch"] * 2
    assert not {0.1, 0.2} & {decay for _, decay in seen.values[2:]}


@pytest.mark.slow
def test_points_that_choose_their_best_models_differently(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = Seen(lambda cfg: 0)
    assert sweep(seen, f"{METRIC}=accuracy,loss") == 2
    error = capsys.readouterr().err
    assert "(maximize eval_accuracy, minimize eval_loss)" in error
    assert "set search.metrics" in error
    words = ["search.metrics=[accuracy]", "search.directions=[maximize]"]
    assert sweep(seen, f"{METRIC}=accuracy,loss", *words) == 0


@pytest.mark.slow
def test_jobs_have_numbers_of_their_own(place: Path) -> None:
    from hydra.core.hydra_config import HydraConfig

    seen = Seen(lambda cfg: HydraConfig.get().job.num)
    assert sweep(seen, f"{RATE}=0.1,0.2", "seed=1", "search.replicates=2") == 0
    assert seen.values == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_command_to_run_a_point_again_names_its_configuration(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment("mine", 3)
    assert sweep(Seen(lambda cfg: 0), "--config-dir", "conf", "experiment=mine", f"{RATE}=0.1", "++seed=4") == 0
    assert f"hfexp --config-dir conf tracking=none experiment=mine {RATE}=0.1 ++seed=4" in capsys.readouterr().out


def test_a_definition_keeps_its_name(place: Path) -> None:
    assert sweep(Seen(lambda cfg: 0), f"{RATE}=0.1", "search.name=a b") == 0
    assert json.loads(Path("outputs/sweeps/a_b/definition.json").read_text())["name"] == "a_b"
