"""Time limits and the signals of queues: a run stops with a checkpoint, and the same command continues it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_DIGITS
from faults import fault_at, hold_at
from programs import OUTPUT, Program

from hfexp.commands import api
from hfexp.core.errors import ConfigError, Terminated
from hfexp.core.process import stop_raises
from hfexp.launch.time_limit import limited, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("11h50m", 42600), ("90m", 5400), ("30s", 30), ("1d12h", 129600), ("11:50:00", 42600), ("1-02:00:00", 93600)],
)
def test_times_are_read_as_people_and_slurm_write_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["90", "1:30", "0s", "", "-1h", "1h 30m", "30m1h", "1.5h"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"launch.time_limit=.* must be a time such as 11h50m"):
        seconds_of(text)


def test_a_wrong_time_is_refused_before_anything_is_created(place: Path) -> None:
    with pytest.raises(ConfigError, match="launch.time_limit=90 must be a time"):
        api.train(*SMALL_DIGITS, "launch.time_limit=90")
    assert not (place / "outputs").exists()


def test_the_time_counts_from_the_given_moment(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Terminated) as stopped, stop_raises(), limited("1h", time.monotonic() - 3600):
        time.sleep(60)
    assert (stopped.value.code, stopped.value.reason) == (143, "stopped by launch.time_limit=1h")
    assert "launch.time_limit=1h has passed; the same command continues the run" in capfd.readouterr().err
    with limited("1h", time.monotonic()):
        pass


def test_sigusr1_stops_a_run_as_sigterm_does(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = [*SMALL_DIGITS, *fault_at(2)]
    (place / "fault").write_text("SIGUSR1")
    with pytest.raises(Terminated) as stopped:
        api.train(*words)
    (run,) = all_runs()
    assert stopped.value.code == 143
    assert (run.info.status, run.data.tags["hfexp.status_reason"]) == ("KILLED", "stopped by SIGUSR1")
    resumed = api.train(*words, "launch.time_limit=1h")
    assert "continuing from checkpoint-2" in (resumed.run_dir / "hfexp.log").read_text()
    (run,) = all_runs()
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_stops_in_time_and_the_same_command_continues_it(
    processes: int, place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    words = [*SMALL_DIGITS, "launch.num_threads=1", *hold_at(2)]
    words += ["launch=ddp", "launch.num_processes=2"] if processes > 1 else []
    assert Program(place, [*words, "launch.time_limit=30s"]).exit_code(900) == 143, (place / OUTPUT).read_text()
    (place / "go").touch()  # on a busy machine the time may have passed before the step at which the run waits
    assert Program(place, [*words, "launch.time_limit=1d"]).exit_code(900) == 0, (place / OUTPUT).read_text()
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["hfexp.resumed"] == "true"
    assert "continuing vit" in (place / OUTPUT).read_text()
    whole = api.train(*words, "output_dir=whole")
    assert run.data.metrics["test_loss"] == whole.metrics["test_loss"]


@pytest.mark.slow
def test_the_limit_holds_for_each_job_of_a_sweep(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = ["-m", *SMALL_DIGITS, "seed=1,2", "trainer.args.num_train_epochs=4", *hold_at(3)]
    assert Program(place, [*words, "launch.time_limit=30s"]).exit_code(900) == 1
    shown = (place / OUTPUT).read_text()
    assert "job 1 (seed=2): stopped by launch.time_limit=30s; the same command continues it" in shown, shown
    (place / "go").touch()
    assert Program(place, [*words, "launch.time_limit=1d"]).exit_code(900) == 0, (place / OUTPUT).read_text()
    assert sorted(run.info.status for run in all_runs()) == ["FINISHED"] * 3
