"""Time limits and the signals of queues: a run stops with a checkpoint, and the same command continues it."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import ROOT, SMALL_DIGITS
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


class Cloud(BaseHTTPRequestHandler):
    """Amazon's instance metadata: a token for those who ask, and the notice once there is a checkpoint."""

    def do_PUT(self) -> None:
        self.answer(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, b"secret")

    def do_GET(self) -> None:
        is_known = self.headers["X-aws-ec2-metadata-token"] == "secret"
        taken = self.path == "/latest/meta-data/spot/instance-action" and [*Path().glob("outputs/*/*/checkpoints/*-3")]
        self.answer(200 if is_known and taken else 404, b"terminate")

    def answer(self, code: int, text: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the script needs curl")
def test_the_documented_script_passes_a_spot_notice_on(place: Path) -> None:
    (script,) = re.findall(r"```sh\n# spot.sh\n(.*?)```", (ROOT / "docs/launching.md").read_text(), re.S)
    with HTTPServer(("127.0.0.1", 0), Cloud) as cloud:
        Thread(target=cloud.serve_forever, daemon=True).start()
        here = script.replace("169.254.169.254", f"127.0.0.1:{cloud.server_port}").replace("sleep 5", "sleep 0.2")
        assert here.count("127.0.0.1") == here.count("sleep 0.2") == 1
        Path("spot.sh").write_text(here)
        words = [sys.executable, "-m", "hfexp", *SMALL_DIGITS, "tracking=none", "trainer.args.num_train_epochs=2000"]
        done = subprocess.run(["sh", "spot.sh", *words], capture_output=True, text=True, timeout=200, check=False)
        cloud.shutdown()
    assert done.returncode == 143, done.stdout + done.stderr
    (state,) = place.glob("outputs/*/*/run.json")
    assert json.loads(state.read_text())["status"] == "killed"
    stopped_at = max(int(path.name.rpartition("-")[2]) for path in state.parent.glob("checkpoints/checkpoint-*"))
    assert 3 < stopped_at < 6000
