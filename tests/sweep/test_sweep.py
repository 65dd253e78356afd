"""Sweeps: grids and samplers, what is kept of them, and that they go on where they were stopped."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT, SMALL_DIGITS, TESTS
from filelock import FileLock
from servers import Postgres
from toys import DECAY, RATE, sweep

from hfexp.commands import cli
from hfexp.sweep import space
from hfexp.tracking.membership import read_sweep_info


class Calls:
    """A function to run as a job, which remembers its calls."""

    def __init__(self, value: Callable[[float, Any], Any] = lambda rate, cfg: (rate - 0.3) ** 2) -> None:
        self.value = value
        self.rates: list[float] = []
        self.seeds: list[int] = []
        self.points: list[str] = []

    def __call__(self, cfg: Any) -> Any:
        rate = cfg.trainer.args.learning_rate
        self.rates.append(rate)
        self.seeds.append(cfg.seed)
        self.points.append(cfg.point)
        return self.value(rate, cfg)


def the_sweep(pattern: str = "*") -> Path:
    (found,) = Path("outputs/sweeps").glob(f"{pattern}/definition.json")
    return found.parent


def stored(directory: Path | None = None) -> list[optuna.trial.FrozenTrial]:
    """Trials of a sweep, from its storage."""
    known = read_sweep_info(directory or the_sweep())
    study = optuna.load_study(study_name=known.study, storage=known.storage)
    trials = study.get_trials()
    study._storage._backend.engine.dispose()  # pyright: ignore
    return trials


def asked(directory: Path | None = None) -> list[tuple[int, str, Any, Any]]:
    return [(t.number, t.state.name, t.params, t.values) for t in stored(directory)]


def stop_at(call: int, error: BaseException) -> Callable[[float, Any], float]:
    """The usual value; at a certain call the error."""
    count = iter(range(1000))

    def value(rate: float, cfg: Any) -> float:
        if next(count) == call:
            raise error
        return (rate - 0.3) ** 2

    return value


def test_a_grid_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Calls()
    assert sweep(calls, f"{RATE}=0.1,0.2,0.4", "seed=1,2", "search.directions=[minimize]") == 0
    assert list(zip(calls.rates, calls.seeds, strict=True)) == [(r, s) for r in (0.1, 0.2, 0.4) for s in (1, 2)]
    directory = the_sweep("grid-*").resolve()
    assert calls.points == [f"{directory}:{number}:0" for number in range(6)]
    assert [state for _, state, _, _ in asked()] == ["COMPLETE"] * 6
    assert asked()[5][2] == {RATE: 0.4, "seed": 2}
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if f"{RATE}=0." in line and "hfexp" not in line]
    assert [row[0] for row in rows] == ["2", "3", "4", "5", "0", "1"]
    assert f"hfexp tracking=none experiment=digits_vit {RATE}=0.2 seed=1" in shown
    assert "sweep: outputs/sweeps/grid-" in shown
    assert (directory / "sweep.json").stat().st_mode & 0o077 == 0


def test_the_same_command_continues_and_runs_nothing_twice(place: Path) -> None:
    words = [f"{RATE}=0.1,0.2,0.4"]
    calls = Calls(stop_at(1, KeyboardInterrupt()))
    assert sweep(calls, *words) == 130
    assert sweep(calls, *words) == 0
    assert calls.rates == [0.1, 0.2, 0.2, 0.4]
    assert calls.points[1] == calls.points[2]
    assert sweep(calls, *words, "tracking=none", "hydra.verbose=true", "search.retries=7", "on_existing=resume") == 0
    assert len(calls.rates) == 4
    assert [(number, state) for number, state, _, _ in asked()] == [(n, "COMPLETE") for n in range(3)]


def test_on_existing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls, words = Calls(), [f"{RATE}=0.1,0.2", "search.name=mine"]
    assert sweep(calls, *words) == 0
    assert sweep(calls, *words, "on_existing=error") == 2
    assert "this sweep exists already" in capsys.readouterr().err
    assert sweep(calls, *words, "on_existing=rerun") == 0
    assert calls.rates == [0.1, 0.2] * 2
    assert sorted(path.name for path in Path("outputs/sweeps").glob("[!.]*")) == ["mine", "mine-2"]
    assert sweep(calls, f"{RATE}=0.1,0.3", "search.name=mine", "seed=3") == 2
    error = capsys.readouterr().err
    assert "search.name=mine belongs to another sweep" in error
    assert f'space: {{"{RATE}": "0.1,0.2"}} there, {{"{RATE}": "0.1,0.3"}} now' in error
    assert '"seed=3"' in error


def test_a_second_start_refuses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls, words = Calls(), [f"{RATE}=0.1,0.2", "search.name=mine"]
    assert sweep(calls, *words) == 0
    with FileLock(the_sweep() / ".lock"):
        assert sweep(calls, *words) == 2
    assert f"already running (pid {os.getpid()} on " in capsys.readouterr().err


SAMPLED = [f"{RATE}=interval(0,1)", f"{DECAY}=tag(log,interval(1e-4,1))", "trainer.args.warmup_steps=range(1,5)"]
METHODS = {
    "random": ["search=random"],
    "tpe": ["search=tpe", "search.sampler={n_startup_trials: 4}"],
    "gp": ["search=gp", "search.sampler={n_startup_trials: 4}"],
    "cmaes": ["search=cmaes", "search.sampler={popsize: 4}"],
    "nsga2": [
        "search=nsga2", "search.sampler={population_size: 4}", "search.metrics=[a,b]",
        "search.directions=[minimize,maximize]",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_sampler_goes_on_as_if_undisturbed(method: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in a job, in the middle of a question, and at its end by a smaller total."""

    def value(rate: float, cfg: Any) -> Any:
        first = (rate - 0.3) ** 2 + cfg.trainer.args.weight_decay
        return (first, rate) if method == "nsga2" else first

    words = [*METHODS[method], *SAMPLED, "tracking=none"]
    assert sweep(Calls(value), *words, "search.trials=8", "output_dir=whole") == 0
    whole = asked(next(Path("whole/sweeps").glob("*/definition.json")).parent)
    assert len(whole) == 8

    calls = Calls(value)
    assert sweep(calls, *words, "search.trials=3") == 0
    stopping = stop_at(1, KeyboardInterrupt())

    def value_or_stop(rate: float, cfg: Any) -> Any:
        stopping(rate, cfg)
        return value(rate, cfg)

    calls.value = value_or_stop
    assert sweep(calls, *words, "search.trials=8") == 130
    calls.value = value
    questions = iter(range(100))
    suggest = space.Dimension.suggest

    def stopped(self: Any, trial: Any) -> Any:
        if next(questions) == 4:
            raise KeyboardInterrupt
        return suggest(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(space.Dimension, "suggest", stopped)
        assert sweep(calls, *words, "search.trials=8") == 130
    assert [len(t.params) for t in stored()][-1] in (1, 2)
    assert sweep(calls, *words, "search.trials=8") == 0
    assert asked() == whole
    assert len(calls.rates) == len({str(params) for _, _, params, _ in whole}) + 1
    assert {params["trainer.args.warmup_steps"] for _, _, params, _ in whole} <= {1, 2, 3, 4}


@pytest.mark.slow
def test_a_point_that_comes_again_is_not_run_again(place: Path) -> None:
    calls = Calls()
    assert sweep(calls, "search=random", "search.trials=8", f"{RATE}=0.1,0.2") == 0
    assert sorted(calls.rates) == [0.1, 0.2]
    assert [state for _, state, _, _ in asked()] == ["COMPLETE"] * 8


def test_failures_are_kept_tried_again_and_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def value(rate: float, cfg: Any) -> Any:
        return {0.1: 1.0, 0.2: math.nan, 0.3: None}.get(rate) if rate < 0.4 else 1 / 0

    calls, words = Calls(value), [f"{RATE}=0.1,0.2,0.3,0.4", "search.retries=1"]
    assert sweep(calls, *words) == 1
    shown = capsys.readouterr()
    assert "failed: the objective is NaN" in shown.out
    assert "failed: the job returned None, expected a number" in shown.out
    assert f"job 3 ({RATE}=0.4): ZeroDivisionError: division by zero" in shown.err
    assert "3 of 4 jobs failed; the same command retries them" in shown.err
    assert [state for _, state, _, _ in asked()] == ["COMPLETE"] + ["RUNNING"] * 3
    assert sweep(calls, *words) == 1
    assert calls.rates == [0.1, 0.2, 0.3, 0.4, 0.2, 0.3, 0.4]
    assert [state for _, state, _, _ in asked()] == ["COMPLETE"] + ["FAIL"] * 3
    capsys.readouterr()
    assert sweep(calls, *words) == 1
    assert "3 of 4 jobs failed\n" in capsys.readouterr().err
    assert len(calls.rates) == 7


@pytest.mark.slow
def test_a_failure_that_is_mended(place: Path) -> None:
    calls, words = Calls(stop_at(1, ValueError("no luck"))), [f"{RATE}=0.1,0.2,0.3"]
    assert sweep(calls, *words) == 1
    assert sweep(calls, *words) == 0
    assert calls.rates == [0.1, 0.2, 0.3, 0.2]
    assert [state for _, state, _, _ in asked()] == ["COMPLETE"] * 3


def test_too_many_failures_end_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Calls(lambda rate, cfg: 1 / 0)
    assert sweep(calls, f"{RATE}=range(10)", "search.max_failures=2", "search.retries=0") == 1
    assert len(calls.rates) == 2
    assert "2 of 10 jobs failed; search.max_failures ended the sweep early" in capsys.readouterr().err


def test_replicates(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = {5: -0.01, 6: 0.02, 7: -0.01}
    calls = Calls(lambda rate, cfg: rate + 0.01 * cfg.seed + (noise[cfg.seed] if rate == 0.11 else 0))
    words = [f"{RATE}=0.1,0.11,0.9", "seed=5", "search.replicates=3"]
    assert sweep(calls, *words) == 0
    assert calls.seeds == [5, 6, 7] * 3
    assert [point.rpartition("/")[2].partition(":")[2] for point in calls.points[:4]] == ["0:0", "0:1", "0:2", "1:0"]
    assert [t.values[0] for t in stored() if t.values] == pytest.approx([0.16, 0.17, 0.96])
    shown = capsys.readouterr().out
    assert "0.16 ± 0.025" in shown
    assert shown.count("as good as the best") == 1
    assert sweep(calls, *words, "search.optimise=bound") == 0
    bounds = [t.values[0] for t in stored(sorted(Path("outputs/sweeps").glob("grid-*"), key=os.path.getmtime)[-1])]  # pyright: ignore
    assert sorted(bounds) == pytest.approx([0.16 + 0.024841, 0.17 + 0.049683, 0.96 + 0.024841], abs=1e-5)


@pytest.mark.slow
def test_the_point_with_the_best_bound_is_the_best_where_the_bound_is_optimised(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of the first point is smaller, the worse end of its interval larger."""
    losses = {0.1: (0.05, 0.20, 0.05), 0.2: (0.11, 0.11, 0.105)}
    calls = Calls(lambda rate, cfg: losses[rate][cfg.seed])
    words = [f"{RATE}=0.1,0.2", "seed=0", "search.replicates=3"]
    for optimise, best in (("mean", 0), ("bound", 1)):
        assert sweep(calls, *words, f"search.optimise={optimise}") == 0
        shown = capsys.readouterr().out
        assert f"best: {best}, " in shown
        assert ("eval_loss high 0.1155" in shown) == (optimise == "bound")
        assert f"{RATE}={sorted(losses)[best]}" in shown[shown.index("best: ") :]
    assert sweep(calls, f"{RATE}=0.1,0.2", "search.optimise=bound") == 2
    assert "search.optimise=bound needs several seeds" in capsys.readouterr().err


@pytest.mark.slow
def test_replicates_that_diverge_are_the_last_point(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Calls(lambda rate, cfg: rate if rate > 0.1 else 1.7e308 / cfg.seed)
    for _ in range(2):
        assert sweep(calls, f"{RATE}=0.1,0.2", "seed=1", "search.replicates=2") == 0
        assert "best: 1" in capsys.readouterr().out
    assert [trial.values for trial in stored()] == [[float("inf")], [0.2]]
    assert len(calls.rates) == 4


@pytest.mark.slow
def test_a_point_with_a_failed_replicate_fails_and_only_what_is_missing_runs_again(place: Path) -> None:
    calls, words = Calls(stop_at(1, ValueError("no luck"))), [f"{RATE}=0.1,0.2", "search.replicates=2", "seed=1"]
    assert sweep(calls, *words) == 1
    assert [state for _, state, _, _ in asked()] == ["RUNNING", "COMPLETE"]
    assert sweep(calls, *words) == 0
    assert list(zip(calls.rates, calls.seeds, strict=True)) == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2), (0.1, 2)]


@pytest.mark.slow
def test_replicates_of_hopeless_points_are_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Calls(lambda rate, cfg: rate + 0.001 * cfg.seed)
    words = [f"{RATE}=0.1,0.9", "seed=1", "search.replicates=12", "search.pruner=wilcoxon"]
    assert sweep(calls, *words) == 0
    assert calls.rates.count(0.1) == 12
    assert 2 <= calls.rates.count(0.9) < 12
    assert [state for _, state, _, _ in asked()] == ["COMPLETE", "PRUNED"]
    assert "pruned" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_had_finished_is_not_run_again(place: Path) -> None:
    """Its `run.json` says so, though the sweep was killed before it could take note."""
    calls, words = Calls(stop_at(1, KeyboardInterrupt())), [f"{RATE}=0.1,0.2,0.3"]
    assert sweep(calls, *words) == 130
    run_dir = place / "outputs" / "a-run"
    run_dir.mkdir()
    state = {
        "config_hash": "0" * 64,
        "status": "finished",
        "values": [0.5],
        "pruned_step": None,
        "seconds": 2.5,
        "run_id": "abc",
    }
    (run_dir / "run.json").write_text(json.dumps(state))
    (the_sweep() / "points").mkdir()
    (the_sweep() / "points" / "1.0.json").write_text(json.dumps({"run_dir": str(run_dir)}))
    assert sweep(calls, *words) == 0
    assert calls.rates == [0.1, 0.2, 0.3]
    assert asked()[1][1:] == ("COMPLETE", {RATE: 0.2}, [0.5])


@pytest.mark.slow
def test_a_pruned_job_is_told_as_such(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def value(rate: float, cfg: Any) -> float:
        directory, number, replicate = cfg.point.rsplit(":", 2)
        run_dir = Path("outputs") / number
        run_dir.mkdir(parents=True)
        state = {"config_hash": "0" * 64, "status": "finished", "values": [rate]}
        state["pruned_step"] = 7 if rate > 0.1 else None
        (run_dir / "run.json").write_text(json.dumps(state))
        file = Path(directory) / "points" / f"{number}.{replicate}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"run_dir": str(run_dir.absolute())}))
        return rate

    assert sweep(Calls(value), f"{RATE}=0.1,0.2", "search.pruner=median") == 0
    assert [state for _, state, _, _ in asked()] == ["COMPLETE", "PRUNED"]
    assert "pruned at step 7" in capsys.readouterr().out
    assert read_sweep_info(the_sweep()).pruner == "median"


@pytest.mark.slow
def test_a_file_that_was_half_made_does_not_matter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfexp.sweep import study

    create = optuna.create_study

    def killed(storage: Any, **more: Any) -> Any:
        create(storage=storage, **more)
        raise KeyboardInterrupt

    calls = Calls()
    with monkeypatch.context() as patch:
        patch.setattr(study.optuna, "create_study", killed)
        assert sweep(calls, f"{RATE}=0.1,0.2") == 130
    assert sweep(calls, f"{RATE}=0.1,0.2") == 0
    assert calls.rates == [0.1, 0.2]
    with sqlite3.connect(the_sweep() / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.slow
def test_a_space_in_an_experiment_file(place: Path) -> None:
    (place / "conf" / "experiment").mkdir(parents=True)
    (place / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - /experiment/digits_vit\n  - override /search: tpe\n"
        "search:\n  trials: 6\n  space:\n"
        "    trainer.args.optim: [sgd, adamw_torch]\n"
        "    trainer.args.weight_decay: {values: 'interval(0.1, 0.2)', when: {trainer.args.optim: sgd}}\n"
        "trainer:\n  args:\n    learning_rate: 0.5\n"
    )
    seen = []

    def value(rate: float, cfg: Any) -> float:
        seen.append((cfg.trainer.args.optim, cfg.trainer.args.weight_decay))
        return rate

    assert sweep(Calls(value), "--config-dir", "conf", "experiment=mine") == 0
    assert {optim for optim, _ in seen} == {"sgd", "adamw_torch"}
    assert all((0.1 <= decay <= 0.2) == (optim == "sgd") for optim, decay in seen)


def test_the_same_words_over_an_edited_file_are_another_sweep(place: Path) -> None:
    (place / "conf" / "experiment").mkdir(parents=True)
    file = place / "conf" / "experiment" / "mine.yaml"
    calls, words = Calls(), ["--config-dir", "conf", "experiment=mine", f"{RATE}=0.1,0.2"]
    for decay in (0.1, 0.1, 0.2):
        file.write_text(
            f"# @package _global_\ndefaults: [/experiment/digits_vit]\ntrainer: {{args: {{weight_decay: {decay}}}}}\n"
        )
        assert sweep(calls, *words) == 0
    assert calls.rates == [0.1, 0.2] * 2


def test_a_mistyped_key_takes_no_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Calls()
    assert sweep(calls, "trainer.args.lerning_rate=0.1,0.2", "search.name=lr") == 2
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err
    assert sweep(calls, f"{RATE}=0.1,0.2", "search.name=lr") == 0
    assert calls.rates == [0.1, 0.2]


def test_replicates_of_a_swept_seed_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(Calls(), "search.replicates=2", "seed=1,2") == 2
    assert "seed, but seed is swept too" in capsys.readouterr().err


@pytest.mark.slow
def test_a_function_of_the_users_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "own_space.py").write_text(
        "def space(trial, top):\n"
        "    rate = trial.suggest_float('rate', 0, top)\n"
        f"    return {{'{RATE}': rate, 'seed': 1 if rate < top / 2 else 2}}\n"
    )
    monkeypatch.syspath_prepend(str(place))
    calls = Calls()
    words = ["search=random", "search.trials=5", "search.space={_target_: own_space.space, top: 0.5}"]
    assert sweep(calls, *words) == 0
    assert all((seed == 1) == (rate < 0.25) for rate, seed in zip(calls.rates, calls.seeds, strict=True))
    assert len(calls.rates) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search=tpe", f"{RATE}=interval(0,1)"], "search=tpe needs search.trials"),
        (["search=random", "search.trials=0", f"{RATE}=1,2"], "search.trials=0 must be at least 1"),
        ([f"{RATE}=interval(0,1)"], f"a grid needs a list of values; write {RATE}=choice"),
        (["search=tpe,gp", "search.trials=3"], "search can't be swept"),
        (["search=nsga2", "search.trials=3", "search.metrics=[a,b]", f"{RATE}=1,2"], "search.directions: give one of"),
        (["search.metrics=[speed]", f"{RATE}=1,2"], "search.directions: say whether to minimize or maximize speed"),
        (["search.directions=[up]", f"{RATE}=1,2"], "search.directions=up; allowed: maximize, minimize"),
        (
            ["search.metrics=[a,b]", "search.directions=[minimize,minimize]", "search.pruner=median", f"{RATE}=1,2"],
            "search.pruner=median compares one metric",
        ),
        (["search.pruner=asha", "search.replicates=3", f"{RATE}=1,2"], "use search.pruner=wilcoxon"),
        (
            ["search=tpe", "search.trials=3", "search.sampler={gama: 1}", f"{RATE}=1,2"],
            "unknown key 'search.sampler.gama'",
        ),
        (
            ["search.pruner=median", "search.pruner_args={n_warm: 1}", f"{RATE}=1,2"],
            "search.pruner_args for search.pruner=median: ",
        ),
        (["trainer.wrong=1,2"], "unknown key 'trainer.wrong'"),
        (["search.storage=nosuch://x", f"{RATE}=1,2"], "search.storage=nosuch://x can't be used"),
    ],
)
def test_what_is_refused(words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Calls()
    assert sweep(calls, *words) == 2
    assert message in capsys.readouterr().err
    assert calls.rates == []


def test_a_search_needs_m(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL_DIGITS, "search=tpe"]) == 2
    assert "search=tpe applies to sweeps only; start one with -m: hfexp -m search=tpe" in capsys.readouterr().err


@pytest.mark.slow
def test_a_large_grid_begins_at_once(place: Path) -> None:
    calls = Calls(stop_at(3, KeyboardInterrupt()))
    assert sweep(calls, f"{RATE}=range(100)", "seed=range(100)") == 130
    assert len(stored()) == 4


def start(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A sweep of toys as a program, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    return subprocess.Popen(
        [sys.executable, str(TESTS / "toys.py"), *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def table(output: str) -> list[str]:
    return [line.rstrip() for line in output.splitlines() if f"{RATE}=0" in line and line[:1].isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize("chaos", range(2))
def test_killed_again_and_again_a_sweep_ends_as_if_undisturbed(chaos: int, place: Path) -> None:
    words = ["-m", "search=tpe", "search.trials=20", f"{RATE}=interval(0,1)", "search.sampler={n_startup_trials: 5}"]
    words += ["search.name=chaos", "tracking=none"]
    (place / "whole").mkdir()
    (place / "killed").mkdir()
    process = start(words, place / "whole")
    undisturbed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, undisturbed
    for kill in range(10):
        process = start(words, place / "killed")
        deadline = time.monotonic() + 120
        began = place / "killed" / "began"
        before = began.read_text().count("\n") if began.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            # From the first of its jobs on, at moments that cover all that happens between two of them.
            if began.exists() and began.read_text().count("\n") > before:
                time.sleep(((chaos * 10 + kill) * 0.0371) % 0.6)
                break
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    process = start(words, place / "killed")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert table(output) == table(undisturbed)
    assert len(table(output)) == 20
    assert asked(place / "killed/outputs/sweeps/chaos") == asked(place / "whole/outputs/sweeps/chaos")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres().start()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_storage_that_sweepers_share(
    postgres: Postgres, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfexp.sweep import scheduler

    url = postgres.new_database().replace("postgresql://", "postgresql+psycopg://")
    words = ["search=tpe", "search.trials=5", f"{RATE}=interval(0,1)", f"search.storage={url}", "search.name=shared"]
    calls = Calls(stop_at(2, KeyboardInterrupt()))
    assert sweep(calls, *words) == 130
    # Another machine, with a directory of its own: the trial under way belongs to a sweeper that may live.
    other = Calls()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.ProcessId, "own", classmethod(lambda cls: cls("elsewhere", 1, "a/b/c/d")))
        assert sweep(other, *words, "output_dir=there") == 0
    assert len(other.rates) == 2
    assert [t.state.name for t in stored()] == ["COMPLETE"] * 2 + ["RUNNING"] + ["COMPLETE"] * 2
    assert sweep(calls, *words) == 0
    assert [t.state.name for t in stored()] == ["COMPLETE"] * 5
    assert calls.rates[2] == calls.rates[3]
    assert len(calls.rates) == 4
