"""`hfexp ui`: MLflow's own interface on the store that holds the runs."""

import contextlib
import errno
import ipaddress
import json
import os
import socket
import sys
import time
import urllib.request

from hfexp.commands.parser import StoreParser
from hfexp.commands.ranking import rank, telling
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, first_line
from hfexp.core.files import sqlite_path
from hfexp.core.secrets import mask_secrets
from hfexp.tracking.runs import newest_run, read_runs
from hfexp.tracking.store import tracking_uri

PORTS = range(5000, 5020)
"""Ports that are tried in turn if none is given; 5000 is MLflow's own default."""
VIEW = "hfexp"
"""Name of the view of an experiment that hfexp sets; a person's own columns stay, without it in the address."""
COLUMNS = 4
"""Params, and metrics, among the columns of that view."""
LONGEST_START = 600
"""Seconds for which the server may start; it takes about ten."""
SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment variables of the server unless the user sets them: no warnings, none of the eight processes that would
wait for jobs of MLflow's LLM features, no usage reports."""


def main(argv: list[str]) -> int:
    """Replace this process by an MLflow server, or print the address of the server that the runs are on."""
    parser = StoreParser("ui", "Open MLflow on the store that runs are recorded in.")
    parser.add_argument("--port", type=int, help=f"default: {PORTS[0]}, or the next free one")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, as MLflow has no password")
    args = parser.parse(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    if uri.startswith("http"):
        print(mask_secrets(f"The runs are on a server\n{_links(uri, uri.rstrip('/'))}"))
        return 0
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no store at {path} yet: run `hfexp` first, or give --uri")
    port = _free_port(args.host, args.port)
    print(f"starting MLflow on {mask_secrets(uri)} (Ctrl-C stops it)", flush=True)
    if not _is_loopback(args.host):
        note(
            f"--host {args.host}: MLflow has no password; anyone who reaches port {port} of this machine can "
            "read, change and delete the runs"
        )
    address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{port}"
    _choose_columns(uri)
    _print_when_ready(address, _links(uri, address))
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", args.host, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning --no-access-log"]
    stores = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_REGISTRY_STORE_URI": uri}  # no arguments, which `ps` shows
    environment = {**SETTINGS, **os.environ, **stores}
    # The server replaces this process: signals reach it directly, and nothing is left behind when it is stopped.
    return os.execve(sys.executable, command, environment)


def _free_port(host: str, wanted: int | None) -> int:
    """Return the wanted port, or the first free one of `PORTS`.

    Raises:
        ConfigError: the wanted port is taken or not allowed, or the host is none of this machine.
    """
    if wanted is not None and not 0 < wanted < 2**16:
        raise ConfigError(f"--port {wanted}: must be from 1 to 65535")
    for port in PORTS if wanted is None else (wanted,):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, port), family=family):
                return port
        except OSError as error:
            if wanted is not None or error.errno != errno.EADDRINUSE:
                problem = str(error.strerror).partition(" (")[0]
                raise ConfigError(f"MLflow can't listen on {host}, port {port}: {problem}") from error
    raise ConfigError(f"all ports from {PORTS[0]} to {PORTS[-1]} are taken; give a free one with --port")


def _print_when_ready(address: str, text: str) -> None:
    """Print a text once the server that replaces this process answers, from a process that ends then.

    That process is a grandchild, whose end the system collects: the server knows of no children.
    """
    server = os.getpid()
    if os.fork():
        os.wait()
        return
    if os.fork():
        os._exit(0)
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + LONGEST_START
    with contextlib.suppress(BaseException):  # the server's own messages tell why it does not start
        while time.monotonic() < deadline:
            os.kill(server, 0)  # raises an error if it has ended
            with contextlib.suppress(OSError), ask.open(f"{address}/health", timeout=5):
                print(text, flush=True)
                break
            time.sleep(0.2)
    os._exit(0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return host == "localhost"


def _choose_columns(uri: str) -> None:
    """Set the columns of the newest experiment's page, by which its link shows what tells the runs apart.

    MLflow (3.17) keeps a view that a person shares as a tag of the experiment: its JSON names columns and order.
    """
    newest = newest_run(uri)
    recorded = read_runs(uri, newest.experiment) if newest else []
    runs = [run for run in recorded if run.tags.get("hfexp.kind") != "sweep"]
    if newest is None or not runs:
        return
    ranking = rank(runs)
    params, metrics = telling(ranking.params, ranking.runs)[:COLUMNS], ranking.metrics[:COLUMNS]
    columns = ["attributes.`Created`", *(f"metrics.`{name}`" for name in metrics)]
    columns += [*(f"params.`{name}`" for name in params), "attributes.`Duration`"]
    view = {"selectedColumns": columns}
    if ranking.metric is not None and len(runs) == len(recorded):  # the jobs of a sweep stand below it only by time
        view |= {"orderByKey": f"metrics.`{ranking.metric}`", "orderByAsc": ranking.direction == "min"}
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).set_experiment_tag(newest.experiment_id, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))
    except Exception as error:  # such as a store that may only be read: the page is worth opening all the same
        note(f"the page has MLflow's own columns: the store takes no tag ({first_line(error)})")


def _links(uri: str, address: str) -> str:
    """Return the addresses of the pages of the newest run's experiment and of that run itself."""
    run = newest_run(uri)
    if run is None:
        return f"MLflow    {address}  (no run is recorded yet)"
    experiment = f"{address}/#/experiments/{run.experiment_id}"
    view = "" if uri.startswith("http") else f"&viewStateShareKey={VIEW}"
    return (
        f"MLflow    {experiment}/runs?workflowType=machine_learning{view}\n"
        f"last run  {experiment}/runs/{run.run_id}?workflowType=machine_learning  ({run.name})"
    )
