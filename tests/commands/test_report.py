"""`hfexp report`: the report of a run, drawn from its record after it has ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_DIGITS
from sweeps import make_sweep

from hfexp.commands import api, cli
from hfexp.core.outside import DamagedRecord
from hfexp.experiment import fit
from hfexp.tasks.base import Piece
from hfexp.tracking.membership import BEST, DEFINITION, TrialKey, is_best_so_far
from hfexp.tracking.report.facts import FACTS, SCORES, ItemScores, ReportFacts, SplitScores, read_stored, store


def pictures(artifacts: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in artifacts.glob("*.png")}


def test_a_report_drawn_later_is_the_report_of_the_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also after the run's directory has moved: it shows the same samples, scores and facts."""
    import mlflow

    drawn, plain = (api.train(*SMALL_DIGITS, f"tracking.pictures={choice}") for choice in ("true", "false"))
    assert not pictures(plain.run_dir / "artifacts")
    assert cli.main(["report", "last"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {plain.run_dir.absolute()}/artifacts/report.html"
    expected = pictures(drawn.run_dir / "artifacts")
    assert set(expected) >= {"samples.png", "learning_curves.png", "confusion_matrix_validation.png"}
    found = pictures(plain.run_dir / "artifacts")
    assert set(found) == set(expected)
    for name in set(expected) - {"learning_curves.png"}:  # its curves include the speed
        assert found[name] == expected[name]
    files = [{path.name for path in (run.run_dir / "artifacts").iterdir()} for run in (drawn, plain)]
    assert files[0] == files[1]
    recorded = mlflow.MlflowClient(str(plain.tracking_uri)).list_artifacts(str(plain.run_id))
    assert {entry.path for entry in recorded} >= set(expected)
    page = (plain.run_dir / "artifacts" / "report.html").read_text()
    assert page.count("<img") == (drawn.run_dir / "artifacts" / "report.html").read_text().count("<img") > 3


def test_what_can_not_be_drawn_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = api.train(*SMALL_DIGITS).run_dir

    def refused() -> str:
        assert cli.main(["report", "last"]) == 2
        return capsys.readouterr().err

    config = (run_dir / "config.yaml").read_text()
    assert "\n  test_size: 0.2" in config
    (run_dir / "config.yaml").write_text(config.replace("\n  test_size: 0.2", "\n  test_size: 0.3"))
    assert "has changed since (test: " in refused()
    (run_dir / "config.yaml").unlink()
    assert f"{run_dir.name}/config.yaml is not the config of a run of this version" in refused()
    (run_dir / SCORES).write_bytes(b"PK\x03\x04")
    assert f"{run_dir.name}/{SCORES} is damaged" in refused()
    (run_dir / FACTS).unlink()
    assert "has no final scores to draw: it is finished, or of an older version" in refused()


def test_stored_scores_keep_their_types(place: Path) -> None:
    run_dir = api.train(*SMALL_DIGITS, "tracking=none").run_dir
    facts, scores = read_stored(run_dir)
    assert list(scores) == ["validation", "test"]
    validation, test = scores["validation"], scores["test"]
    assert isinstance(validation, SplitScores)
    assert isinstance(test, SplitScores)
    assert facts.metrics["final_eval_accuracy"] == np.mean(validation.predictions == validation.references)
    assert test.confidence is not None
    assert test.confidence.dtype == np.float32
    (run_dir / SCORES).write_bytes((run_dir / SCORES).read_bytes()[:-40])
    with pytest.raises(DamagedRecord):
        read_stored(run_dir)


def test_stored_items_are_what_they_were(tmp_path: Path) -> None:
    facts = ReportFacts("n", "e", "finished", "hfexp", {"f1": float("nan")}, [], {}, {}, {}, {}, "f1", 1.0)
    scores = ItemScores({"PER": (1, 2, 3)}, [[Piece("Ada", "PER", "right"), Piece(" wrote")], []])
    store(tmp_path, facts, {"validation": scores})
    _, read = read_stored(tmp_path)
    assert read == {"validation": scores}


@pytest.mark.parametrize(
    ("directions", "values", "expected"),
    [
        (["maximize"], [[0.5], [0.4], [0.5], [0.6], [0.5]], [True, False, True, True, False]),
        (["minimize"], [[0.5], [0.4], [0.5], [float("nan")]], [True, True, False, True]),
        (["maximize", "minimize"], [[5, 9], [4, 8], [4, 9], [6, 7], [5, 8]], [True, True, False, True, False]),
    ],
)  # fmt: skip
def test_the_best_run_so_far(
    place: Path, directions: list[str], values: list[list[float]], expected: list[bool]
) -> None:
    sweep = make_sweep("found", directions=directions)
    assert [is_best_so_far(f"{sweep}:{trial}:0", value) for trial, value in enumerate(values)] == expected
    (sweep / BEST).write_text("{")
    assert is_best_so_far(str(TrialKey(sweep, 9, 0)), values[1])


def test_a_job_of_a_sweep_draws_nothing_and_checks_its_model_only_if_it_is_the_best_so_far(place: Path) -> None:
    import mlflow

    sweep = make_sweep("found", directions=["minimize"], metrics=["loss"])
    words = (*SMALL_DIGITS, "tracking.pictures=null")
    rates = {0: 1e-3, 1: 1e-12, 2: 3e-3}
    runs = [
        api.train(*words, f"point={sweep}:{trial}:0", f"trainer.args.learning_rate={rate}")
        for trial, rate in rates.items()
    ]
    assert runs[0].metrics["best_eval_loss"] < runs[1].metrics["best_eval_loss"]
    assert runs[2].metrics["best_eval_loss"] < runs[0].metrics["best_eval_loss"]
    assert not any(pictures(run.run_dir / "artifacts") for run in runs)
    tags = [mlflow.MlflowClient(str(run.tracking_uri)).get_run(str(run.run_id)).data.tags for run in runs]
    assert [entry.get("hfexp.model_verified") for entry in tags] == ["true", None, "true"]
    assert all((run.run_dir / "artifacts" / "report.html").is_file() for run in runs)


@pytest.mark.parametrize("launcher", ["basic", pytest.param("local", marks=pytest.mark.slow)])
def test_a_sweep_draws_the_report_of_its_best_run_when_it_ends(
    launcher: str, place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    """Once, as the run alone would have drawn it, in its directory and in MLflow."""
    import mlflow

    alone = api.train(*SMALL_DIGITS, "tracking.pictures=true", "tracking=none", "output_dir=alone")
    words = ["-m", *SMALL_DIGITS, "tracking.pictures=null", "trainer.args.learning_rate=1e-12,1e-3"]
    assert cli.main([*words, f"hydra/launcher={launcher}"]) == 0
    drawn, plain = sorted(place.glob("outputs/digits/*/artifacts"), key=lambda path: -len(pictures(path)))
    assert set(pictures(drawn)) == set(pictures(alone.run_dir / "artifacts"))
    assert not pictures(plain)
    (run,) = (run for run in all_runs() if run.data.tags.get("hfexp.run_dir") == str(drawn.parent))
    assert run.data.params["trainer.args.learning_rate"] == "0.001"
    assert run.info.status == "FINISHED"
    recorded = mlflow.MlflowClient(f"sqlite:///{place}/outputs/mlflow.db").list_artifacts(run.info.run_id)
    assert {Path(entry.path).name for entry in recorded} >= set(pictures(drawn))
    before = {path: path.stat().st_mtime_ns for path in drawn.iterdir()}
    assert cli.main([*words, f"hydra/launcher={launcher}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in drawn.iterdir()} == before


def test_a_report_that_can_not_be_drawn_costs_the_sweep_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("no such colour\nat all")

    monkeypatch.setattr("hfexp.experiment.redraw.redraw", fail)
    monkeypatch.setattr("hfexp.launch.forkserver.is_started", lambda: False)  # by another test
    words = [*SMALL_DIGITS, "tracking.pictures=null", "trainer.args.max_steps=1", "tracking=none"]
    assert cli.main(["-m", *words, "seed=1", "hydra/launcher=basic"]) == 0
    (run,) = place.glob("outputs/digits/*/artifacts")
    expected = (
        f"the report of {run.parent.name} has no pictures: no such colour; `hfexp report {run.parent.name}` draws them"
    )
    assert expected in capsys.readouterr().err


def test_a_run_is_recorded_before_the_loss_of_its_sweep_ends_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep("found", directions=["minimize"])
    monkeypatch.setattr("hfexp.experiment.fit.evaluate", lose_sweep := Losing(fit.evaluate, sweep))
    with pytest.raises(FileNotFoundError):
        api.train(*SMALL_DIGITS, "tracking=none", f"point={sweep}:0:0")
    assert lose_sweep.called
    (results,) = place.glob("outputs/digits/*/artifacts/results.json")
    assert results.with_name("report.html").is_file()


class Losing:
    """Calls a function, and then loses what a sweep has told its jobs."""

    def __init__(self, function: Any, sweep: Path) -> None:
        self.function, self.sweep, self.called = function, sweep, False

    def __call__(self, *args: Any) -> Any:
        result = self.function(*args)
        (self.sweep / DEFINITION).unlink()
        self.called = True
        return result
