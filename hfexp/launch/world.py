"""The processes that train one model together, and this one's place among them."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from hfexp import screen
from hfexp.config import LaunchConfig, Strategy
from hfexp.errors import ConfigError, RunError, first_line
from hfexp.machine import visible_devices

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `accelerate launch` set for each of several processes."""
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Numbers of processes that Accelerate takes for those of a training, too."""
RENDEZVOUS = "HFEXP_RENDEZVOUS"
"""Variable of the processes that hfexp itself starts: the file in which they find each other."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that tell torch's backends which network interface to exchange gradients through."""
QUIET_SECONDS = 10
"""Waiting for other processes so long is not worth a word."""


def rank() -> int:
    """Of this process among those of its run; 0 is the one that logs and writes."""
    return _number("RANK", 0) if is_together() else 0


def size() -> int:
    """Number of processes of this run."""
    return _number("WORLD_SIZE", 1)


def is_together() -> bool:
    """Whether this process is one of several: a worker of ours, or started by torchrun or `accelerate launch`."""
    return "RANK" in os.environ and size() > 1


def _number(name: str, default: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else default


def check_environment() -> None:
    """Refuse variables that say that this is one of several processes, but not which, or where the others are.

    Raises:
        ConfigError: with what is there and what is missing; Accelerate would look for the others in vain.
    """
    found = {name: os.environ[name] for name in NEEDED if os.environ.get(name)}
    shown = " ".join(f"{name}={found[name]}" for name in NEEDED[:3] if name in found)
    way_out = "unset them for a run of its own; torchrun and `accelerate launch` set all of them"
    if size() > 1 or found.get("LOCAL_RANK", "-1") != "-1":
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise ConfigError(
                f"{shown} of the environment: this is one of several processes, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set; {way_out}"
            )
    wrong = [name for name in NEEDED[:3] if name in found and not found[name].removeprefix("-").isdecimal()]
    if wrong or (is_together() and _number("RANK", size()) >= size()):
        raise ConfigError(f"{shown} of the environment: no process of a training has these numbers; {way_out}")
    started = [name for name in MPI if _number(name, 1) > 1 and not is_together()]
    if started:
        raise ConfigError(
            f"{started[0]}={os.environ[started[0]]} of the environment: MPI has started several processes, each of "
            "which would be a run of its own; start one, with launch=ddp launch.num_processes=N, or use torchrun"
        )


def restarts() -> int:
    """How often the processes of this run have been started again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def stay_on_this_machine(directory: Path) -> None:
    """Let this process find the others in a file, and exchange with them over the loopback interface.

    All of them are on this machine, and what listens on another interface is open to other machines: one that the
    environment names, as clusters do, is meant for runs on several.

    Args:
        directory: of this run alone, which no other user can enter.
    """
    os.environ[RENDEZVOUS] = str(directory / f"rendezvous{restarts()}")
    loopback = _loopback()
    for name in INTERFACES if loopback else ():
        os.environ[name] = loopback


def _loopback() -> str:
    """Name of the loopback interface: `lo`, `lo0`, ...; empty if this machine has none."""
    import psutil

    addresses = psutil.net_if_addrs()
    found = (name for name, known in addresses.items() if any(a.address in ("127.0.0.1", "::1") for a in known))
    return next(found, "")


def settle(launch: LaunchConfig, use_cpu: bool) -> None:
    """Replace `auto`, and what torchrun or `accelerate launch` decided, by what it comes to.

    Raises:
        ConfigError: there can't be as many processes as asked for.
    """
    check_environment()
    wanted = launch.num_processes
    if is_together():
        if wanted not in (1, "auto", size()):
            raise ConfigError(
                f"launch.num_processes={wanted}, but this was started as one of {size()} processes; leave it out"
            )
        launch.strategy, launch.num_processes = Strategy.ddp, size()
        return
    if launch.strategy is Strategy.single:
        if wanted not in (1, "auto"):
            raise ConfigError(f"launch.num_processes={wanted} needs launch=ddp")
        launch.num_processes = 1
        return
    launch.num_processes = _processes_here(wanted, 0 if use_cpu else len(visible_devices()))


def _processes_here(wanted: int | str, devices: int) -> int:
    """The number of processes to start for `launch=ddp`, with so many accelerators."""
    if wanted == "auto" and not devices:
        raise ConfigError(
            "launch.num_processes=auto is the number of accelerators, and there is none: "
            "give a number of processes, which will share the CPU, or use launch=single"
        )
    count = devices if wanted == "auto" else wanted
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"launch.num_processes={wanted} must be `auto` or a number from 1 on")
    if devices and count > devices:
        raise ConfigError(
            f"launch.num_processes={wanted} is more than the {devices} visible accelerators; "
            "trainer.args.use_cpu=true trains on the CPU"
        )
    return count


def connect(launch: LaunchConfig, use_cpu: bool) -> None:
    """Join the other processes of this run; returns when all are there.

    Accelerate, which would do it later, gives collectives on the CPU no time limit of the user's.

    Raises:
        RunError: the others did not come in time.
        RuntimeError: there are more or fewer processes than were started: each would train a model of its own.
    """
    import torch

    backend = "gloo" if use_cpu or not torch.accelerator.is_available() else _device_backend()
    timeout = timedelta(seconds=launch.timeout)
    if not torch.distributed.is_initialized():
        with _waiting(launch.timeout):
            torch.distributed.init_process_group(backend, timeout=timeout, **_meeting_point(timeout))
    found = torch.distributed.get_world_size()
    if found != launch.num_processes:
        raise RuntimeError(f"{launch.num_processes} processes were started, but {found} found each other")


@contextlib.contextmanager
def _waiting(seconds: int) -> Iterator[None]:
    """Say what is waited for when the others let it wait."""
    import torch

    others = f"{size() - 1} other process{'es' if size() > 2 else ''}"
    where = os.environ.get(RENDEZVOUS) or f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    text = (
        f"this is process {rank()} of {size()} (RANK, WORLD_SIZE): waiting for {others} at {where}, "
        f"for {seconds} s in all (launch.timeout)"
    )
    reminder = threading.Timer(QUIET_SECONDS, screen.note, (text,))
    reminder.daemon = True
    reminder.start()
    try:
        with _ended_by_ctrl_c():
            yield
    except torch.distributed.DistError as error:
        raise RunError(f"{text}; they did not come: {first_line(error)}") from error
    finally:
        reminder.cancel()


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """End at once on Ctrl-C, where it is for this process: torch waits without hearing Python's handler."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _meeting_point(timeout: timedelta) -> dict[str, Any]:
    """Where the processes look for each other, if it is not the default.

    A file for those that hfexp started: torch's TCPStore listens on all addresses, whichever it is given (torch 2.14).
    The store of torch's elastic agent stays the same when it starts the processes again
    (`DynamicRendezvousHandler.next_rendezvous`): they would look for those of the attempt before.
    """
    from torch.distributed import FileStore, PrefixStore, TCPStore  # pyright: ignore

    own = {"rank": rank(), "world_size": size()}
    if os.environ.get(RENDEZVOUS):
        return {"store": FileStore(os.environ[RENDEZVOUS], size()), **own}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size=size(), is_master=False, timeout=timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": PrefixStore(f"hfexp/{attempt}", store), **own}


def _device_backend() -> str:
    """The backend of the accelerator, with its device chosen: NCCL needs to know it from the start."""
    import torch

    torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return torch.distributed.get_default_backend_for_device(device)


def disconnect() -> None:
    """Leave the other processes."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def share(value: Any) -> Any:
    """The value that the first process gives, in every process; it must be picklable."""
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
