"""The MLflow page of a finished run, from the store that a run leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import SMALL_DIGITS
from servers import free_port

from hfexp.commands import api

CHROMIUM = shutil.which("chromium")


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(240):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {url}")


@pytest.mark.slow
def test_hfexp_ui_serves_the_run(place: Path) -> None:
    result = api.train(*SMALL_DIGITS)
    port = free_port()
    command = [sys.executable, "-m", "hfexp", "ui", "--port", str(port)]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        link = f"http://127.0.0.1:{port}/#/experiments/1/runs/{result.run_id}"
        assert process.stdout.readline() == f"last run: {result.run_dir.name}  {link}\n"
        wait_for(f"http://127.0.0.1:{port}/health", process)
        run = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/runs/get?run_id={result.run_id}"
        with urllib.request.urlopen(run, timeout=10) as answer:
            assert '"FINISHED"' in answer.read().decode()
        if CHROMIUM:
            shot = place / "run.png"
            flags = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-sync",
                "--no-first-run",
                f"--user-data-dir={place / 'profile'}",
                "--virtual-time-budget=20000",
            ]
            subprocess.run(
                [CHROMIUM, *flags, f"--screenshot={shot}", link], check=True, capture_output=True, timeout=120
            )
            assert shot.stat().st_size > 10_000
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
