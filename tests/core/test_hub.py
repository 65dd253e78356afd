"""What the Hub refuses is one message that says what to do; the Hub is a server on this machine."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

GATED = "Access to model owner/gated is restricted and you are not in the authorized list."


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does (its headers: `huggingface_hub.utils._http.hf_raise_for_status`)."""

    def do_GET(self) -> None:
        kinds = {"gated": (403, "GatedRepo", GATED), "missing": (401, "RepoNotFound", "Repository not found")}
        status, code, message = next((kinds[name] for name in kinds if name in self.path), (500, "", "Internal error"))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(place: Path, endpoint: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as somebody without login and cache types it."""
    unset = ("HF_TOKEN", "HF_HUB_OFFLINE")
    inherited = {name: text for name, text in os.environ.items() if "proxy" not in name.lower() and name not in unset}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hf"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "hfexp", *words], cwd=place, env=inherited | own, text=True, capture_output=True,
        timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "run=owner/gated", "prompt=Hello"], "accept its terms at https://huggingface.co/owner/gated"),
        pytest.param(
            ["predict", "run=owner/missing", "prompt=Hello"],
            "there is no model owner/missing on the Hub, or it is private",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model=vit_digits", "dataset=hub", "dataset.source.path=owner/gated"],
            "https://huggingface.co/datasets/owner/gated",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["predict", "model=local", "model.path=owner/gated", "task=chat", "prompt=Hello"],
            "then run `hf auth login`",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model=vit_digits", "dataset=hub", "dataset.source.path=owner/missing"],
            "there is no dataset owner/missing on the Hub",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_refused_is_said_with_what_to_do(place: Path, endpoint: str, words: list[str], said: str) -> None:
    done = ask(place, endpoint, *words)
    assert said in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (place / "outputs").exists()


@pytest.mark.slow
def test_without_a_network_it_says_how_to_go_on_without(place: Path) -> None:
    done = ask(place, "http://127.0.0.1:9", "predict", "run=owner/model", "prompt=Hello")
    assert "huggingface.co could not be reached" in done.stderr
    assert "hf download owner/model" in done.stderr
    assert done.returncode == 1
    offline = ask(place, "http://127.0.0.1:9", "predict", "run=owner/model", "prompt=Hello", HF_HUB_OFFLINE="1")
    assert "is not in the local cache" in offline.stderr
    assert offline.returncode == 1
