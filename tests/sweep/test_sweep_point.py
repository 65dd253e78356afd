"""The jobs of a sweep: each done once, in a run of its own, and given up when it is hopeless."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_DIGITS, SMALL_MODEL, end_recording, write_images
from faults import fault_at
from sweeps import OTHERS_LOSS, intermediate_values, make_study, make_sweep, run_point, tell

from hfexp.commands import api, cli
from hfexp.core.errors import ConfigError
from hfexp.core.identity import local_files_fingerprint
from hfexp.core.provenance import without_sweep
from hfexp.experiment.callbacks import Recorder
from hfexp.experiment.pruning import PrunerClient
from hfexp.experiment.sweep_values import make_pruner, values_of
from hfexp.tracking.membership import SweepInfo, TrialKey
from hfexp.tracking.run_directory import RunDirectory, read_state

Runs = Callable[[], list[Any]]
NO_RECORD = (*SMALL_DIGITS, "tracking=none")


def run_directory(sweep: Path, trial: int = 0, replicate: int = 0) -> Path:
    return Path(json.loads(TrialKey(sweep, trial, replicate).file.read_text())["run_dir"])


def test_a_finished_point_is_not_run_again(
    place: Path, all_runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep("found", parent_run_id="0" * 32)
    words = [*SMALL_DIGITS, f"point={sweep}:3:1", "trainer.args.learning_rate=0.002"]
    monkeypatch.setattr("sys.argv", ["hfexp", *words])
    assert cli.main() == 0
    (run,) = all_runs()
    tags, path = run.data.tags, run_directory(sweep, 3, 1)
    state = read_state(path)
    assert state is not None
    assert state.values == [run.data.metrics["final_eval_loss"]]
    assert state.seconds > 0
    assert (tags["mlflow.parentRunId"], tags["hfexp.sweep"]) == ("0" * 32, "found")
    assert (tags["hfexp.trial"], tags["hfexp.replicate"], run.info.status) == ("3", "1", "FINISHED")
    assert not [key for key in run.data.params if key.startswith(("search", "point"))]
    told = [tags["hfexp.command"], tags["hfexp.overrides"], (path / "config.yaml").read_text()]
    assert tags["hfexp.command"].endswith(" trainer.args.learning_rate=0.002")
    assert not [text for text in told if " point=" in text or "\npoint:" in text or "search" in text]

    assert run_point(*words) == state.values[0]
    assert f"already finished in {path}" in capsys.readouterr().out
    assert len(all_runs()) == 1
    assert run_point(*words, "on_existing=rerun") == state.values[0]
    assert run_directory(sweep, 3, 1).name == f"{path.name}-2"


def test_words_of_a_sweep_are_not_those_of_its_runs() -> None:
    words = ["search=tpe", "+search.replicates=2", "search/x=y", "point=/x:0:0", "seed=1", "model.search=1"]
    assert without_sweep(words) == ["seed=1", "model.search=1"]


@pytest.mark.slow
def test_a_point_whose_data_has_changed_is_run_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, sweep = write_images(place / "photos"), make_sweep("found")
    words = ("dataset=imagefolder", f"dataset.source.data_dir={images}", *SMALL_MODEL, "metrics=accuracy",
             "trainer.args.max_steps=1", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1",
             "trainer.args.save_strategy=steps", "trainer.args.save_steps=1",
             "tracking=none", f"point={sweep}:0:0")  # fmt: skip
    run_point(*words)
    first = run_directory(sweep)
    os.utime(images / "cat" / "0.jpg", (1, 1))
    run_point(*words)
    assert "has changed" in capsys.readouterr().err
    assert run_directory(sweep) != first


def test_the_stamp_of_local_data(place: Path) -> None:
    write_images(place / "photos", count=1)
    named: dict[str, Any] = {"data_dir": "photos", "data_files": {"train": ["photos/*/0.jpg"]}}
    before = local_files_fingerprint(named)
    (place / "photos" / "cat" / "0.jpg").write_bytes(b"another one")
    assert local_files_fingerprint(named) != before
    assert local_files_fingerprint(
        {"_target_": "x", "name": "photos", "path": "hf://photos"}
    ) == local_files_fingerprint({})
    (place / "linked").mkdir()
    (place / "linked" / "cat").symlink_to(place / "photos" / "cat")
    (place / "linked" / "cat" / "circle").symlink_to(place / "linked")
    before = local_files_fingerprint({"data_dir": "linked"})
    (place / "photos" / "cat" / "0.jpg").write_bytes(b"and another")
    assert local_files_fingerprint({"data_dir": "linked"}) != before


@pytest.mark.slow
def test_a_point_has_a_run_of_its_own(place: Path) -> None:
    alone = api.train(*NO_RECORD).run_dir
    sweeps = [make_sweep("one"), make_sweep("two")]
    values = [run_point(*NO_RECORD, f"point={sweep}:0:0") for sweep in sweeps]
    assert values[0] == values[1]
    assert api.train(*NO_RECORD).run_dir.name == f"{alone.name}-4"
    assert [run_directory(sweep).name for sweep in sweeps] == [f"{alone.name}-2", f"{alone.name}-3"]


@pytest.mark.slow
def test_an_unfinished_run_is_continued_by_who_began_it(place: Path, all_runs: Runs) -> None:
    sweep = make_sweep("found")
    words, mine = [*SMALL_DIGITS, *fault_at(5)], f"point={sweep}:0:0"
    for extra in ([mine], []):
        Path("fault").write_text("SIGINT")
        with pytest.raises(KeyboardInterrupt):
            run_point(*words, *extra) if extra else api.train(*words)
    before = run_directory(sweep)
    assert api.train(*words).run_dir != before
    value = run_point(*words, mine)
    assert run_directory(sweep) == before
    assert sorted(run.info.status for run in all_runs()) == ["FINISHED", "FINISHED"]
    state = read_state(before)
    assert state is not None
    assert (state.status, state.values) == ("finished", [value])


def test_killed_before_it_is_noted_where_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep("found")
    with monkeypatch.context() as patched:
        patched.setattr("hfexp.tracking.run_directory.note_run_directory", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_point(*NO_RECORD, f"point={sweep}:0:0")
    run_point(*NO_RECORD, f"point={sweep}:0:0")
    assert len(list(place.glob("outputs/digits/*/run.json"))) == 1


@pytest.mark.slow
def test_killed_before_its_values_are_written(place: Path, monkeypatch: pytest.MonkeyPatch, all_runs: Runs) -> None:
    sweep = make_sweep("found")
    words = (*SMALL_DIGITS, f"point={sweep}:0:0")
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "end", lambda self, status: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_point(*words)
    end_recording()
    value = run_point(*words)
    (run,) = all_runs()
    assert run.data.metrics["final_eval_loss"] == value
    state = read_state(run_directory(sweep))
    assert state is not None
    assert (state.status, state.values, run.info.status) == ("finished", [value], "FINISHED")


def test_several_metrics(place: Path) -> None:
    sweep = make_sweep("found", metrics=["accuracy", "test_loss", "train_seconds"])
    values = run_point(*NO_RECORD, f"point={sweep}:0:0")
    assert isinstance(values, tuple)
    results = json.loads((run_directory(sweep) / "artifacts" / "results.json").read_text())
    assert values[:2] == (results["best_eval_accuracy"], results["test_loss"])
    assert values[2] > 0


@pytest.mark.parametrize("metric", ["acuracy", "test_acuracy"])
def test_an_unknown_metric_is_told_after_the_first_evaluation(place: Path, metric: str) -> None:
    sweep = make_sweep("found", metrics=[metric])
    with pytest.raises(ConfigError, match=f"no metric '{metric}'. Did you mean '(test_)?accuracy'"):
        run_point(*NO_RECORD, f"point={sweep}:0:0")
    assert not list(place.glob("outputs/digits/*/checkpoints/checkpoint-6"))


def test_names_of_metrics() -> None:
    metrics = {"best_eval_loss": 1.0, "final_eval_loss": 2.0, "final_eval_f1": 3.0, "test_f1": 4.0}
    assert values_of(["loss", "eval_loss", "best_eval_loss"], metrics, None) == [1.0, 1.0, 1.0]
    assert values_of(["final_eval_loss", "f1", "test_f1"], metrics, None) == [2.0, 3.0, 4.0]
    assert values_of([], metrics, 5.0) == [5.0]
    for names in (["test_loss"], []):
        with pytest.raises(ConfigError, match=r"search\.metrics"):
            values_of(names, metrics, None)


def test_names_of_metrics_mean_what_they_say() -> None:
    both, final = {"best_eval_loss": 1.0, "final_eval_loss": 2.0}, {"final_eval_loss": 2.0}
    assert values_of(["final_loss", "final_eval_loss", "best_loss"], both, None) == [2.0, 2.0, 1.0]
    assert values_of(["loss", "eval_loss", "final_loss"], final, None) == [2.0, 2.0, 2.0]  # without evaluations
    for name, metrics in (("best_loss", final), ("final_eval_loss", {"best_eval_loss": 1.0}), ("test_loss", both)):
        with pytest.raises(ConfigError, match=rf"search\.metrics: no metric '{name}'"):
            values_of([name], metrics, None)


def test_a_point_without_its_sweep(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.json can't be read"):
        run_point(*NO_RECORD, f"point={place}:0:0")


def pruning_sweep(**settings: Any) -> Path:
    sweep = make_sweep("found", pruner="median", pruner_args={"n_startup_trials": 1}, **settings)
    make_study(sweep, steps=(3, 6))
    return sweep


@pytest.mark.slow
def test_a_hopeless_trial_ends_at_its_evaluation(place: Path, all_runs: Runs) -> None:
    sweep = pruning_sweep(metrics=["loss"], directions=["minimize"])
    words = (*SMALL_DIGITS, f"point={sweep}:2:0", "tracking.register=digits")
    value = run_point(*words)
    state = read_state(run_directory(sweep, 2))
    assert state is not None
    assert (state.status, state.pruned_step, state.values) == ("finished", 3, [value])
    assert intermediate_values(sweep, 2) == {3: value}
    (run,) = all_runs()
    assert (run.info.status, run.data.tags["hfexp.pruned"]) == ("FINISHED", "3")
    assert run.data.metrics["best_eval_loss"] == value
    assert "test_loss" not in run.data.metrics

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    assert [m.name for m in client.search_logged_models([run.info.experiment_id])] == ["checkpoint-3"]
    assert not client.search_registered_models()
    assert run_point(*words) == value


@pytest.mark.slow
def test_a_decision_stands_when_the_run_is_continued(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = pruning_sweep()
    words = (*NO_RECORD, f"point={sweep}:2:0")
    with monkeypatch.context() as patched:

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(Recorder, "give_up", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_point(*words)
    (sweep / "study.db").unlink()
    run_point(*words)
    state = read_state(run_directory(sweep, 2))
    assert state is not None
    assert (state.status, state.pruned_step) == ("finished", 3)


@pytest.mark.slow
def test_only_the_first_run_of_a_trial_reports(place: Path) -> None:
    sweep = pruning_sweep()
    run_point(*NO_RECORD, f"point={sweep}:2:1")
    assert intermediate_values(sweep, 2) == {}


def test_without_the_study_the_training_goes_on(place: Path) -> None:
    sweep = make_sweep("found", storage="sqlite:////nowhere/study.db", pruner="asha")
    run_point(*NO_RECORD, f"point={sweep}:0:0")
    log = (run_directory(sweep) / "hfexp.log").read_text()
    assert log.count("can't reach the sweep's study") == 1


def test_pruning_by_what_is_not_measured_meanwhile(place: Path) -> None:
    sweep = make_sweep("found", metrics=["test_accuracy"], pruner="median")
    with pytest.raises(ConfigError, match=r"search\.pruner=median needs a metric of the validation split"):
        run_point(*NO_RECORD, f"point={sweep}:0:0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruner", "args"),
    [
        ("median", {"n_startup_trials": 1}),
        ("asha", {"min_resource": 1, "reduction_factor": 2}),
        ("hyperband", {"min_resource": 1, "max_resource": 8, "reduction_factor": 2}),
    ],
)
def test_every_pruner_knows_a_trial_by_its_number(place: Path, pruner: str, args: dict[str, Any]) -> None:
    sweep = make_sweep("found")
    make_study(sweep, steps=(), finished=0, running=13)
    membership = SweepInfo("found", "found", f"sqlite:///{sweep / 'study.db'}", None, pruner=pruner, pruner_args=args)
    for number, loss in ((n, OTHERS_LOSS if n < 12 else 1.0) for n in range(13)):
        client = PrunerClient(number, membership)
        answers = [client.should_prune(step, loss) for step in (1, 2, 4, 8)]
        client.close()
        tell(sweep, number, loss)
    assert any(answers)
    assert intermediate_values(sweep, 12) == dict.fromkeys((1, 2, 4, 8), 1.0)


def test_a_pruner_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"search\.pruner_args for search\.pruner=asha: .*reduction_factor"):
        make_pruner("asha", {"eta": 3})


@pytest.mark.slow
def test_all_processes_of_a_hopeless_trial_stop_together(place: Path, all_runs: Runs) -> None:
    sweep = pruning_sweep()
    two = ("launch=ddp", "launch.num_processes=2", "trainer.args.per_device_train_batch_size=16")
    run_point(*SMALL_DIGITS, *two, "launch.num_threads=1", f"point={sweep}:2:0")
    state = read_state(run_directory(sweep, 2))
    assert state is not None
    assert (state.status, state.pruned_step) == ("finished", 3)
    (run,) = all_runs()
    assert (run.info.status, run.data.tags["hfexp.pruned"]) == ("FINISHED", "3")
