"""A SLURM cluster of two virtual nodes on loopback, from Debian's packages `slurm-wlm` and `munge`.

It needs root, and nothing of /etc: key, socket, ports and state are in a directory of its own. There is no accounting,
as on many small clusters, so `sacct` fails. Both nodes share this machine's processors.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from programs import kill

NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")
CPUS = 2
"""Processors of each node, as SLURM counts them."""

CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
ReturnToService=2
KillWait=30
MinJobAge=300
InactiveLimit=0
JobRequeue=1
PropagateResourceLimits=NONE
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no cluster here; empty if there can be one."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no {', '.join(missing)} (apt-get install slurm-wlm munge)"
    return "" if os.getuid() == 0 else "SLURM's daemons need root"


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[None]:
    """Start the cluster; `SLURM_CONF` in the environment leads to it."""
    for parent in (place, *place.parents):  # others must reach munge's socket
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
    key = place / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    os.environ["SLURM_CONF"] = str(place / "slurm.conf")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _start(place, daemons)
        yield
    finally:
        subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], check=False)
        subprocess.run(["scancel", "--user=root"], check=False)
        time.sleep(2)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
        _kill_rest(os.environ.pop("SLURM_CONF"))


def _kill_rest(config: str) -> None:
    """Kill what waits for daemons that are gone, and the jobs below it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in ("slurmstepd", "srun") and process.environ().get("SLURM_CONF") == config:
                kill([process, *process.children(recursive=True)])


def _start(place: Path, daemons: list["subprocess.Popen[bytes]"]) -> None:
    def run(*words: str) -> None:
        with (place / f"{len(daemons)}-{words[0]}.out").open("wb") as output:
            daemons.append(subprocess.Popen(words, stdout=output, stderr=output))

    munge = f"--socket={place}/munge.sock"
    run("munged", "-F", f"--key-file={place}/munge.key", munge, f"--pid-file={place}/munged.pid",
        f"--log-file={place}/munged.log", f"--seed-file={place}/munged.seed", "--num-threads=2")  # fmt: skip
    _wait(lambda: (place / "munge.sock").exists(), place)
    ports = _free_ports(3)
    lines = [CONFIG.format(place=place, ports=ports, nodes=",".join(NODES))]
    for name, port in zip(NODES, ports[1:], strict=True):
        (place / f"spool-{name}").mkdir()
        lines.append(f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={CPUS}\n")
    # Nodes are defined before the partition that has them.
    (place / "slurm.conf").write_text("".join([*lines[1:], lines[0]]))
    (place / "state").mkdir()
    run("slurmctld", "-D", "-c")
    for name in NODES:
        run("slurmd", "-D", "-N", name)
    _wait(lambda: shown("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == list(NODES), place)


def _wait(ready: Callable[[], bool], place: Path) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in place.glob("*.[lo][ou][gt]")]
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def shown(*words: str) -> str:
    """What a command of SLURM prints; empty if it fails."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def open_jobs() -> list[str]:
    """The ids of the jobs that wait or run."""
    return shown("squeue", "-h", "-t", "pending,running", "-o", "%i").split()
