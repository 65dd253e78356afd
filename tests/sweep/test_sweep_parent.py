"""The record of a sweep: a run in MLflow above those of its jobs, its table, its pictures, and its ending."""

import csv
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import mlflow
import optuna
import pytest
from conftest import SMALL_DIGITS, TESTS
from matplotlib import pyplot
from sweeps import a_sweep, a_trial, run_point

from hfexp.commands import cli
from hfexp.core.compose import compose
from hfexp.core.config import Config, to_config
from hfexp.core.errors import ConfigError, RunError, SweepError
from hfexp.core.provenance import Origin
from hfexp.sweep import parent_run as parents
from hfexp.sweep import report
from hfexp.sweep.parent_run import open_parent
from hfexp.sweep.table import Curves, command_of, make_table
from hfexp.sweep.trials import State, Sweep, TrialRun, estimate
from hfexp.tracking.journal import Journal
from hfexp.tracking.membership import SweepInfo, TrialKey, write_sweep_info
from hfexp.tracking.run_directory import read_state
from hfexp.tracking.runs import best_run_of_sweep

Runs = Callable[[], list[Any]]
WORDS = ("tracking.register=best-digits@best",)


def base(*words: str) -> tuple[Config, Origin]:
    cfg, choices = compose(*SMALL_DIGITS, *words)
    return to_config(cfg), Origin(choices, list(words), "hfexp -m seed=1,2")


def sweep_directory(place: Path) -> Path:
    return place / "outputs" / "sweeps" / "found"


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")


def six_trials() -> list[Any]:
    return [
        a_trial(0, 0.5),
        a_trial(1, 0.2),
        a_trial(2, None, State.failed, error="RuntimeError: the disk caught fire", attempts=2),
        a_trial(3, 0.9, State.pruned, runs=(TrialRun(0, State.pruned, values=(0.9,), pruned_step=3),)),
        a_trial(4, 0.3),
        a_trial(5, None, State.running),
    ]


def test_the_record_of_a_sweep(place: Path, all_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parents, "INTERVAL", 0.01)
    directory = sweep_directory(place)
    with open_parent(*base(), a_sweep(directory), directory) as parent:
        assert parent.run_id is not None
        parent.update(a_sweep(directory, a_trial(0, 0.5)))
        parent.update(a_sweep(directory, *six_trials()))
    (run,) = all_runs()
    assert (run.info.run_id, run.info.run_name, run.info.status) == (parent.run_id, "found", "FINISHED")
    tags, params = run.data.tags, run.data.params
    assert params == {
        "trainer.args.learning_rate": "0.001,0.1", "model": "vit_digits,resnet", "search.method": "grid",
        "search.trials": "None", "search.metrics": "loss", "search.directions": "minimize",
    }  # fmt: skip
    assert (tags["hfexp.kind"], tags["hfexp.best_trial"], tags["hfexp.best_values"]) == ("sweep", "1", "0.2")
    assert tags["hfexp.best_command"] == "hfexp model=vit_digits trainer.args.learning_rate=0.1"
    assert (tags["hfexp.trials.finished"], tags["hfexp.trials.failed"]) == ("3", "1")
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "trials.json", "type": "table"}]
    metrics = run.data.metrics
    assert (metrics["best_loss"], metrics["trials_pruned"], metrics["hours"]) == (0.2, 1.0, 2.0)

    names = {info.path for info in client().list_artifacts(run.info.run_id)}
    assert {"sweep.yaml", "command.txt", "trials.csv", "trials.json", "report.html", "report.md", "history.png",
            "parallel_coordinates.png", "slices.png"} <= names  # fmt: skip
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/trials.json")
    assert [row[1] for row in table["data"]] == [1, 4, 0, 2, 3, 5]
    state = read_state(directory)
    assert state is not None
    assert (state.kind, state.status, state.run_id) == ("sweep", "finished", run.info.run_id)


def test_the_page_shows_the_trials_without_a_script(place: Path) -> None:
    directory = sweep_directory(place)
    with open_parent(*base("tracking=none"), a_sweep(directory), directory) as parent:
        parent.update(a_sweep(directory, *six_trials()))
    page = (directory / "artifacts" / "report.html").read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    (trials,) = [section for section in root.iter("section") if section.findtext("h2") == "Trials"]
    assert [row.findtext("td[2]") for row in trials.iter("tr")][1:] == ["1", "4", "0", "2", "3", "5"]
    pictures = [image.get("alt") for image in root.iter("img")]
    assert pictures == ["Value by trial", "Parameters and value", "Each parameter"]
    assert not list(root.iter("script"))
    assert "script-src" not in page
    markdown = (directory / "artifacts" / "report.md").read_text()
    assert "(slices.png)" in markdown
    for text in (page, markdown):
        assert "the disk caught fire" in text
        assert "pruned at step 3" in text


def test_a_sweep_of_several_metrics(place: Path) -> None:
    directory = sweep_directory(place)
    trials = [a_trial(n, None, values=values) for n, values in enumerate([(0.1, 0.5), (0.2, 0.9), (0.3, 0.8)])]
    goals = {"metrics": ("loss", "accuracy"), "directions": ("minimize", "maximize")}
    sweep = a_sweep(directory, *trials, **goals)
    with open_parent(*base("tracking=none"), sweep, directory):
        pass
    assert (directory / "artifacts" / "front.png").exists()
    assert not (directory / "artifacts" / "history.png").exists()
    assert [row[1] for row in make_table(sweep).rows] == [0, 1, 2]
    assert parents._best_values(sweep) == {"best_loss": 0.1, "best_accuracy": 0.9}


VALUES: dict[str, list[Any]] = {
    "numbers": [1e-5, 1e-2, 1e-1, 1e-3, 3e-3],
    "lists": [[1, 2], [3], [1, 2], [], [3]],
    "mappings and none": [{"a": 1}, None, {"a": [2]}, None, {"a": 1}],
    "words": ["\u5b66\u4e60\u7387", "\u5b66\u4e60", "$x$", "$y$ and much more than fits", "$y$ and much more than it"],
    "truths": [True, False, True, True, False],
    "infinite": [float("inf"), 1.0, 2.0, 1.0, float("nan")],
}
CURVES = {0: [{1: 1.0, 2: 0.5}, {1: 3.0}]}


@pytest.mark.parametrize("values", VALUES.values(), ids=[*VALUES])
def test_pictures_of_any_parameters(values: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    params = [{"\u5b66\u4e60$x$" * 20: value, "constant": 3, "size": n % 3} for n, value in enumerate(values)]
    trials = [a_trial(n, float(n), params=params[n]) for n in range(5)]
    drawn = report.draw(a_sweep(Path("x"), *trials), CURVES, "eval_loss")
    names = {"history", "learning_curves", "parallel_coordinates", "slices", "importances"}
    assert (set(drawn), caplog.messages) == (names, [])


@pytest.mark.slow
def test_pictures_of_many_parameters_and_curves(caplog: pytest.LogCaptureFixture) -> None:
    trials = [a_trial(n, float(n), params={f"key{k}": n + k for k in range(14)}) for n in range(25)]
    drawn = report.draw(a_sweep(Path("x"), *trials), {n: [{1: 1.0}] for n in range(25)}, "eval_loss")
    assert [name for name in drawn if "slices" in name] == ["slices", *(f"slices_{n}" for n in range(2, 6))]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("trials", "names"),
    [
        ([], set()),
        ([a_trial(0, None, State.running)], set()),
        ([a_trial(0, float("nan")), a_trial(1, float("inf"))], set()),
        ([a_trial(0, 0.5)], {"history"}),
        ([a_trial(1, 0.5), a_trial(3, 0.5)], {"history", "parallel_coordinates", "slices"}),
        (
            [a_trial(0, 0.5), a_trial(1, 0.1, params={"model": "resnet"})],
            {"history", "parallel_coordinates", "slices"},
        ),
    ],
    ids=["none", "none finished", "none finite", "one", "equal values and gaps", "a key that not all have"],
)
def test_pictures_of_few_trials(trials: list[Any], names: set[str], caplog: pytest.LogCaptureFixture) -> None:
    assert set(report.draw(a_sweep(Path("x"), *trials), {}, "eval_loss")) == names
    assert caplog.messages == []


def test_the_study_of_the_pictures() -> None:
    trials = [
        a_trial(0, 0.5, params={"rate": 1e-4, "size": 1, "kind": [1]}, objective=(0.7,)),
        a_trial(2, None, State.pruned, params={"rate": 1e-1, "size": 9}),
        a_trial(3, float("nan"), params={"rate": 1e-2, "kind": "a"}),
    ]
    study = report.study_of(a_sweep(Path("x"), *trials, directions=("maximize",)), CURVES)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "PRUNED", "FAIL"]
    first = study.trials[0]
    assert (study.direction.name, first.value, first.intermediate_values) == ("MAXIMIZE", 0.7, {1: 2.0, 2: 0.5})
    assert first.params == {"rate": 1e-4, "size": 1, "kind": "[1]"}
    assert first.distributions == {
        "rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "size": optuna.distributions.IntDistribution(1, 9),
        "kind": optuna.distributions.CategoricalDistribution(("[1]", "a")),
    }


def test_pictures_leave_pyplot_as_it_was(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("optuna.visualization.matplotlib.plot_slice", lambda *args, **settings: pyplot.figure() / 0)
    sweep = a_sweep(Path("x"), a_trial(0, 0.5), a_trial(1, 0.1))
    pyplot.switch_backend("svg")
    own = pyplot.figure()
    with matplotlib.rc_context({"lines.linewidth": 7.0}):
        settings = dict(matplotlib.rcParams)
        assert set(report.draw(sweep, {}, "eval_loss")) == {"history", "parallel_coordinates"}
        assert dict(matplotlib.rcParams) == settings
    assert (matplotlib.get_backend(), pyplot.get_fignums(), pyplot.gcf()) == ("svg", [own.number], own)
    assert [message.partition(":")[0] for message in caplog.messages] == ["slices could not be created"]
    pyplot.close(own)
    pyplot.switch_backend("agg")


def test_the_table_with_replicates() -> None:
    def trial(number: int, low: float, high: float, *losses: float) -> Any:
        middle = (low + high) / 2
        runs = tuple(TrialRun(seed, State.finished, values=(loss,)) for seed, loss in enumerate(losses))
        return a_trial(number, middle, deviations=(0.1,), intervals=((low, high),), runs=runs)

    diverged = a_trial(3, float("nan"), deviations=(float("nan"),), intervals=((float("nan"),) * 2,))
    assert parents._best_values(a_sweep(Path("x"), diverged, trial(1, 0.25, 0.5))) == {"best_loss": 0.375}
    trials = [trial(0, 0.1, 0.3, 0.1, 0.3), trial(1, 0.25, 0.5, 0.5, 0.25), trial(2, 0.4, 0.6, 0.4, 0.6)]
    sweep = a_sweep(Path("x"), *trials)
    rows = list(csv.DictReader(make_table(sweep).csv().splitlines()))
    assert [row["tie"] for row in rows] == ["", "tie", ""]
    assert (rows[1]["loss low"], rows[1]["loss high"], rows[1]["loss sd"]) == ("0.25", "0.5", "0.1")


def test_one_ranking_for_the_record_the_registry_and_compare(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Optimised is the worse end of the interval: trial 1 is best, though trial 0 has the smaller mean."""
    directory = sweep_directory(place)
    losses = {0: (0.05, 0.20, 0.05), 1: (0.11, 0.105, 0.11)}
    with open_parent(*base("tracking.register=best-digits@best"), a_sweep(directory), directory) as parent:
        assert parent.run_id is not None
        experiment_id, trials = client().get_run(parent.run_id).info.experiment_id, []
        for number, values in losses.items():
            runs = []
            for seed, loss in enumerate(values):
                tags = {"mlflow.parentRunId": parent.run_id, "hfexp.sweep": "found", "hfexp.trial": str(number)}
                run = client().create_run(experiment_id, tags=tags, run_name=f"{number}.{seed}")
                client().log_metric(run.info.run_id, "final_eval_loss", loss)
                run_dir = place / f"run-{number}-{seed}"
                runs.append(TrialRun(seed, State.finished, run_dir, run.info.run_id, values=(loss,)))
            found = estimate(values)
            told = found.objective("minimize", bound=True)
            trials.append(a_trial(number, found.mean, runs=tuple(runs), objective=(told,)))
        parent.update(a_sweep(directory, *trials, bound=True))
    tags = client().get_run(parent.run_id).data.tags
    best_run = trials[1].runs[1]
    assert (tags["hfexp.best_trial"], tags["hfexp.ranking"]) == ("1", "1 0")
    entries = [json.loads(line) for line in Journal(directory).path.read_text().splitlines()]
    assert [entry["run_dir"] for entry in entries if entry["kind"] == "register"] == [str(best_run.run_dir)]
    uri = f"sqlite:///{Path('outputs/mlflow.db').absolute()}"
    assert best_run_of_sweep(uri, "found").run_id == best_run.run_id
    page = (directory / "artifacts" / "report.html").read_text()
    assert "to minimize loss high" in page
    assert cli.main(["compare", "sweep=found", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(run["rank"], run["name"][0]) for run in shown] == [(1, "1")] * 3 + [(4, "0")] * 3
    assert [shown[0]["name"], shown[5]["name"]] == ["1.1", "0.1"]
    assert cli.main(["compare", "sweep=found", "--metric", "final_eval_loss", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] in ("0.0", "0.2")


def test_the_table_keeps_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345678")
    trial = a_trial(0, None, State.failed, error="hf_abcdefgh12345678 is wrong", params={"key": "hf_abcdefgh12345678"})
    sweep = a_sweep(Path("x"), trial, fixed=("tracking.tags.t=hf_abcdefgh12345678",))
    assert "hf_abc" not in make_table(sweep).csv() + command_of(sweep, trial)


def test_the_table_is_json_whatever_was_measured() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    table = make_table(a_sweep(Path("x"), a_trial(0, float("nan"), State.pruned)))
    assert json.loads(table.json(), parse_constant=refuse)["data"][0][3] == "nan"


def test_curves_are_read_on(tmp_path: Path) -> None:
    journal, curves = Journal(tmp_path), Curves("eval_loss")
    assert curves.of(tmp_path / "not-there") == {}
    journal.append("metrics", metrics={"eval_loss": 2.0, "loss": 1.0}, step=3, time=0)
    assert curves.of(tmp_path) == {3: 2.0}
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "metrics", "metrics": {"eval_l')
    assert curves.of(tmp_path) == {3: 2.0}
    Journal(tmp_path).append("metrics", metrics={"eval_loss": 1.0}, step=6, time=0)
    assert curves.of(tmp_path) == {3: 2.0, 6: 1.0}


def direct(sweep: Sweep, ending: BaseException) -> None:
    """A sweep that ends otherwise than well."""
    with open_parent(*base(), sweep, sweep.directory) as parent:
        parent.update(sweep)
        raise ending


@pytest.mark.slow
def test_a_sweep_is_continued_in_its_run(place: Path, all_runs: Runs) -> None:
    directory = sweep_directory(place)
    sweeps = [a_sweep(directory, *six_trials()[:count], seconds=60.0 * count) for count in (2, 6)]
    with pytest.raises(KeyboardInterrupt):
        direct(sweeps[0], KeyboardInterrupt())
    assert [run.info.status for run in all_runs()] == ["KILLED"]
    with pytest.raises(SweepError, match="1 of 6 jobs failed"):
        direct(sweeps[1], SweepError([("job 2", RunError("the disk caught fire"))], 6))
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["hfexp.status_reason"] == "SweepError: 1 of 6 jobs failed"
    history = client().get_metric_history(run.info.run_id, "trials_finished")
    assert [(point.step, point.value) for point in history] == [(120, 2.0), (360, 3.0)]
    assert not (directory / "artifacts" / "traceback.txt").exists()


def test_a_sweep_has_one_director(place: Path) -> None:
    directory = sweep_directory(place)
    with (
        open_parent(*base("tracking=none"), a_sweep(directory), directory),
        pytest.raises(ConfigError, match="this sweep is already running"),
        open_parent(*base("tracking=none"), a_sweep(directory), directory),
    ):
        pass


KILLED = """
import os, signal, sys
sys.path[:0] = {places!r}
from pathlib import Path
from test_sweep_parent import a_sweep, base, open_parent, six_trials
directory = Path("outputs/sweeps/found").absolute()
with open_parent(*base(), a_sweep(directory, *six_trials()), directory) as parent:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_sweep_is_closed_by_sync(place: Path, all_runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    script = KILLED.format(places=[str(TESTS), str(Path(__file__).parent)])
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert [run.info.status for run in all_runs()] == ["RUNNING"]
    assert cli.main(["sync"]) == 0
    assert "1 delivered" in capsys.readouterr().out
    assert [run.info.status for run in all_runs()] == ["KILLED"]


def test_pictures_that_fail_cost_nothing(place: Path, monkeypatch: pytest.MonkeyPatch, all_runs: Runs) -> None:
    monkeypatch.setattr(parents, "draw", lambda *shown: 1 / 0)
    directory = sweep_directory(place)
    with open_parent(*base(), a_sweep(directory, *six_trials()), directory):
        pass
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["hfexp.best_trial"] == "1"


def job(sweep: Sweep, number: int, parent_run_id: str | None, *words: str) -> TrialRun:
    """A job, run in this process."""
    write_sweep_info(sweep.directory, SweepInfo("found", "found", "sqlite://", parent_run_id, ["loss"], ["minimize"]))
    value = run_point(*SMALL_DIGITS, *words, f"seed={number}", f"point={sweep.directory}:{number}:0")
    assert isinstance(value, float)
    run_dir = Path(json.loads(TrialKey(sweep.directory, number, 0).file.read_text())["run_dir"])
    state = read_state(run_dir)
    assert state is not None
    return TrialRun(0, State.finished, run_dir, state.run_id, (value,), state.seconds)


def test_jobs_are_children_and_the_best_model_is_registered(
    place: Path, all_runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = sweep_directory(place)
    sweep = a_sweep(directory)
    with open_parent(*base(*WORDS), sweep, directory) as parent:
        runs = [job(sweep, number, parent.run_id, *WORDS) for number in (1, 2)]
        assert not client().search_registered_models()
        trials = [a_trial(number, run.values[0], runs=(run,)) for number, run in enumerate(runs, 1) if run.values]
        parent.update(a_sweep(directory, *trials))
    by_id = {run.info.run_id: run for run in all_runs()}
    children = [by_id[str(run.run_id)] for run in runs]
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.run_id] * 2
    assert len({run.info.experiment_id for run in by_id.values()}) == 1
    best = min(runs, key=lambda run: run.values or ())
    version = client().get_model_version_by_alias("best-digits", "best")
    assert version.run_id == best.run_id
    assert by_id[str(parent.run_id)].data.tags["hfexp.best_run_id"] == best.run_id
    assert (directory / "artifacts" / "learning_curves.png").exists()

    capsys.readouterr()
    for words in (["compare"], ["compare", "found"], ["compare", "sweep=found"]):
        assert cli.main([*words, "--format", "csv"]) == 0
        shown = capsys.readouterr()
        assert len(shown.out.splitlines()) == 3
        assert "hfexp.trial" not in shown.out
    assert cli.main(["compare", "sweep=fuond"]) == 2
    assert "Did you mean 'found'?" in capsys.readouterr().err


@pytest.mark.slow
def test_all_jobs_are_in_the_experiment_of_their_sweep(place: Path, all_runs: Runs) -> None:
    directory = sweep_directory(place)
    sweep = a_sweep(directory)
    with open_parent(*base("tracking.experiment=mine"), sweep, directory) as parent:
        job(sweep, 1, parent.run_id)
    assert len(all_runs()) == 2
    assert len({run.info.experiment_id for run in all_runs()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("first", ["child", "parent"])
def test_while_the_server_is_away_nobody_has_an_id(
    place: Path, all_runs: Runs, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfexp.tracking.delivery.PATIENCE", 0.0)
    monkeypatch.setattr("hfexp.tracking.delivery.INTERVAL", 0.1)
    away = "tracking.uri=http://127.0.0.1:9"
    directory = sweep_directory(place)
    sweep = a_sweep(directory)
    with open_parent(*base(away), sweep, directory) as parent:
        run = job(sweep, 1, parent.run_id, away)
    assert (parent.run_id, run.run_id) == (None, None)
    store = ["--uri", f"sqlite:///{place / 'outputs' / 'mlflow.db'}"]
    order = [str(run.run_dir), str(directory)]
    for path in order if first == "child" else reversed(order):
        assert cli.main(["sync", path, *store]) == 0
    runs = {run.data.tags.get("hfexp.kind", "run"): run for run in all_runs()}
    assert runs["run"].data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id


def test_directing_needs_none_of_the_heavy_packages() -> None:
    heavy = {"torch", "transformers", "mlflow", "matplotlib", "optuna", "numpy"}
    code = f"import sys, hfexp.sweep.parent_run; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == ""
