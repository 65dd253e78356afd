"""The MLflow page of a finished run, from the store that a run leaves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import SMALL_DIGITS
from recorded import Store
from servers import free_port

from hfexp.commands import api, cli, ui
from hfexp.core.errors import ConfigError

CHROMIUM = shutil.which("chromium")


def test_a_port_that_is_taken(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "outputs").mkdir()
    Store(place / "outputs" / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["ui", "--port", str(port)]) == 2
        assert f"MLflow can't listen on 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
        free = free_port()
        monkeypatch.setattr(ui, "PORTS", (port, free))
        assert ui._free_port("127.0.0.1", None) == free
        monkeypatch.setattr(ui, "PORTS", (port,))
        with pytest.raises(ConfigError, match="are taken; give a free one with --port"):
            ui._free_port("127.0.0.1", None)
    assert cli.main(["ui", "--port", "99999"]) == 2
    assert "--port 99999: must be from 1 to 65535" in capsys.readouterr().err
    assert cli.main(["ui", "--host", "192.0.2.1"]) == 2
    assert "MLflow can't listen on 192.0.2.1" in capsys.readouterr().err


def test_the_page_shows_what_tells_the_runs_apart(place: Path) -> None:
    (place / "outputs").mkdir()
    store = Store(place / "outputs" / "mlflow.db")
    experiment = store.experiment("photos")
    for number, loss in enumerate((0.5, 0.2, 0.3)):
        params = {"trainer.args.learning_rate": str(number), "seed": "1", "output_dir": f"o{number}"}
        tags = {"hfexp.metric": "final_eval_loss", "hfexp.metric_direction": "min"}
        store.run(experiment, f"run-{number}", params=params, tags=tags, metrics={"final_eval_loss": loss})
    uri = f"sqlite:///{place / 'outputs' / 'mlflow.db'}"
    ui._choose_columns(uri)
    tag = store.client.get_experiment(experiment).tags["mlflow.sharedViewState.hfexp"]
    assert json.loads(tag) == {
        "selectedColumns": [
            "attributes.`Created`", "metrics.`final_eval_loss`", "params.`trainer.args.learning_rate`",
            "attributes.`Duration`",
        ],
        "orderByKey": "metrics.`final_eval_loss`",
        "orderByAsc": True,
    }  # fmt: skip
    store.run(experiment, "a-sweep", tags={"hfexp.kind": "sweep"})
    ui._choose_columns(uri)
    tag = store.client.get_experiment(experiment).tags["mlflow.sharedViewState.hfexp"]
    assert set(json.loads(tag)) == {"selectedColumns"}, "sorted by a metric, jobs would not stand below their sweep"


@pytest.mark.slow
def test_hfexp_ui_serves_the_run(place: Path) -> None:
    result = api.train(*SMALL_DIGITS)
    port = free_port()
    command = [sys.executable, "-m", "hfexp", "ui", "--port", str(port)]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting MLflow on sqlite:///")
        page = f"http://127.0.0.1:{port}/#/experiments/1/runs"
        assert process.stdout.readline() == f"MLflow    {page}?workflowType=machine_learning&viewStateShareKey=hfexp\n"
        link = f"{page}/{result.run_id}?workflowType=machine_learning"
        assert process.stdout.readline() == f"last run  {link}  ({result.run_dir.name.rpartition('-')[0]})\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:  # at once
            assert answer.status == 200
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
