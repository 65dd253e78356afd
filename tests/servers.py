"""MLflow servers and PostgreSQL on loopback, started and ended by the tests."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

FIRST_USE = """
import sys
from pathlib import Path
from hfexp.tracking import store
client, experiment = store.open_store(sys.argv[1], Path("out"), "digits")
run = client.create_run(experiment, run_name=sys.argv[2])
client.log_metric(run.info.run_id, "loss", float(sys.argv[2]), step=1)
client.set_terminated(run.info.run_id)
"""
"""Program that opens the store ARG1 for the first time and records a run named ARG2."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """`mlflow server` in a process group of its own."""

    def __init__(self, place: Path, backend: str, address: str = "127.0.0.1") -> None:
        self.place, self.backend, self.address, self.port = place, backend, address, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self.address}:{self.port}"

    def start(self) -> "MlflowServer":
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.place / "served"), "--workers", "1"]
        command += ["--host", self.address, "--port", str(self.port)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight processes that nobody uses
        with (self.place / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.place, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return self
            except OSError:
                time.sleep(0.3)
        raise RuntimeError((self.place / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Postgres:
    """A PostgreSQL cluster in a directory, without passwords, on loopback or on another address of this machine."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        program = shutil.which("pg_ctl") or (str(found[-1]) if found else None)
        if program is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
        self.bin, self.address, self.port = Path(program).resolve().parent, address, free_port()
        self.place = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own directories are closed to other users
        # PostgreSQL refuses to run as root.
        self.user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
        self.databases = 0

    def start(self) -> "Postgres":
        if self.user:
            shutil.chown(self.place, self.user)
        self._run("initdb", "-D", str(self.place / "data"), "-A", "trust", "-U", "runs", "--no-sync")
        with (self.place / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {self.address}/16 trust\n")
        return self.serve()

    def serve(self) -> "Postgres":
        """Start the server on the cluster, also after a crash."""
        options = f"-p {self.port} -k {self.place} -c listen_addresses={self.address} -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.place / "data"), "-l", str(self.place / "log"), "-w", "-o", options, "start"
        )
        return self

    def crash(self) -> None:
        """End all its processes at once, without a last word to clients or disk."""
        self._run("pg_ctl", "-D", str(self.place / "data"), "-m", "immediate", "stop")

    def stop(self) -> None:
        self.crash()
        shutil.rmtree(self.place)

    def new_database(self) -> str:
        """URI of an empty database."""
        self.databases += 1
        name = f"runs{self.databases}"
        self._run("createdb", "-h", self.address, "-p", str(self.port), "-U", "runs", name)
        return f"postgresql://runs@{self.address}:{self.port}/{name}"

    def _run(self, program: str, *words: str) -> None:
        command = [str(self.bin / program), *words]
        user = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        done = subprocess.run(command, cwd=self.place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **user)  # pyright: ignore
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr.decode()}")
