"""`hfexp ui`: MLflow's own interface on the store that holds the runs."""

import argparse
import ipaddress
import os
import sys

from hfexp.core.console import note
from hfexp.core.errors import ConfigError
from hfexp.core.files import sqlite_path
from hfexp.core.secrets import mask_secrets
from hfexp.tracking.runs import newest_run
from hfexp.tracking.store import tracking_uri


def main(argv: list[str]) -> int:
    """Replace this process by an MLflow server, or print the address of the server that the runs are on."""
    parser = argparse.ArgumentParser(
        prog="hfexp ui", description="Open MLflow on the store that runs are recorded in."
    )
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, as MLflow has no password")
    parser.add_argument("--output-dir", default="outputs")
    parser.add_argument("--uri", help="tracking URI, if it is not the one in the output directory")
    args = parser.parse_args(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    if uri.startswith("http"):
        print(mask_secrets(f"The runs are on a server: {uri}\nlast run: {_last_run(uri, uri.rstrip('/'))}"))
        return 0
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no store at {path} yet: run `hfexp` first, or give --uri")
    address = f"http://{args.host}:{args.port}"
    print(
        f"MLflow on {mask_secrets(uri)}: {address}  (Ctrl-C stops it)\nlast run: {_last_run(uri, address)}", flush=True
    )
    if not _is_loopback(args.host):
        note(
            f"--host {args.host}: MLflow has no password; anyone who reaches port {args.port} of this machine can "
            "read, change and delete the runs"
        )
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning --no-access-log"]
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    environment = {**quiet, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}  # not in the arguments, which `ps` shows
    # The server replaces this process: signals reach it directly, and nothing is left behind when it is stopped.
    return os.execve(sys.executable, command, environment)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return host == "localhost"


def _last_run(uri: str, address: str) -> str:
    """Return the name of the newest run and the address of its page."""
    run = newest_run(uri)
    return f"{run.name}  {address}/#/experiments/{run.experiment_id}/runs/{run.run_id}" if run else "none yet"
