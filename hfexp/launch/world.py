"""The process group of a run: rank, world size, rendezvous and the collectives that hfexp itself needs."""

import contextlib
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hfexp.core import console
from hfexp.core.config import LaunchConfig, Strategy
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.machine import visible_devices
from hfexp.launch.endpoint import address_towards, find_endpoint
from hfexp.launch.time_limit import seconds_of

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun and `accelerate launch` set for each process."""
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which MPI launchers pass the number of processes; Accelerate reads these as well."""
TASKS = "SLURM_STEP_NUM_TASKS"
"""Variable in which `srun` passes the number of its tasks; a batch script does not have it."""
ONE_OF_MANY = ("ACCELERATE_USE_CPU", "MASTER_PORT")
"""What `accelerate launch` sets without RANK if it starts one process in place of several, as it does on a CPU."""
RENDEZVOUS = "HFEXP_RENDEZVOUS"
"""Variable that gives the workers started by hfexp the path of their `FileStore`."""
ATTEMPT = "HFEXP_ATTEMPT"
"""Variable that gives the workers of a run over several machines the name of the attempt."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that name the network interface over which torch's backends exchange gradients."""
QUIET_SECONDS = 10
"""Seconds of waiting for the other processes before a reminder is printed."""

T = TypeVar("T")
_machines: tuple[str, ...] = ()
"""Name and address of the machine of each rank, once `connect` has joined processes that others have started."""


def rank() -> int:
    """Return the rank of this process in its run; rank 0 logs and writes."""
    return _number("RANK", 0) if is_together() else 0


def size() -> int:
    """Return the number of processes of this run."""
    return _number("WORLD_SIZE", 1)


def is_together() -> bool:
    """Tell whether this is one of several processes: our own worker, or one of torchrun or `accelerate launch`."""
    return "RANK" in os.environ and size() > 1


def is_joined() -> bool:
    """Tell whether this process has joined others that its machine's command does not watch on its own."""
    return bool(_machines)


def machine_of(rank: int) -> str:
    """Return name and address of the machine of a rank."""
    return _machines[rank]


def spans_machines() -> bool:
    """Tell whether the processes of this run are on several machines."""
    return len(set(_machines)) > 1


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def check_environment() -> None:
    """Check that the environment variables of a distributed run are complete and consistent.

    Raises:
        ConfigError: they say that this is one of several processes, but not which one or where the others are;
            Accelerate would wait for the others in vain. The message names the variables that are set and missing.
    """
    values = {name: os.environ[name] for name in NEEDED if os.environ.get(name)}
    shown = " ".join(f"{name}={values[name]}" for name in NEEDED[:3] if name in values)
    advice = "unset them to run a single process; torchrun and `accelerate launch` set all of them"
    if size() > 1 or values.get("LOCAL_RANK", "-1") != "-1":
        missing = [name for name in NEEDED if name not in values]
        if missing:
            raise ConfigError(
                f"{shown} in the environment: this is one of several processes, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set; {advice}"
            )
    wrong = [name for name in NEEDED[:3] if name in values and not values[name].removeprefix("-").isdecimal()]
    if wrong or (is_together() and _number("RANK", size()) >= size()):
        raise ConfigError(f"{shown} in the environment: these are not valid process numbers; {advice}")
    started = [name for name in MPI if _number(name, 1) > 1 and not is_together()]
    if started:
        raise ConfigError(
            f"{started[0]}={os.environ[started[0]]} in the environment: MPI has started several processes, each of "
            "which would be a separate run; start one with launch=ddp launch.num_processes=N, or use torchrun; for "
            "launch.num_machines start one on each machine without MPI (srun --mpi=none)"
        )
    if "RANK" not in os.environ and all(name in os.environ for name in ONE_OF_MANY):
        raise ConfigError(
            f"{' and '.join(ONE_OF_MANY)} are in the environment, but no RANK: `accelerate launch` was asked for "
            "several processes and has started only this one, as it does on a CPU; use launch=ddp "
            "launch.num_processes=N without it, or torchrun"
        )


def restarts() -> int:
    """Return how many times the elastic agent has restarted the processes of this run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def stay_on_this_machine(directory: Path) -> None:
    """Make this process meet the others through a file and exchange data over the loopback interface.

    All of them are on this machine, and a port on any other interface would be open to other machines. Clusters set
    these variables to an interface for runs on several machines, so they are overwritten.

    Args:
        directory: a directory of this run alone that no other user can enter.
    """
    os.environ[RENDEZVOUS] = str(directory / f"rendezvous{restarts()}")
    loopback = _loopback()
    for name in INTERFACES if loopback else ():
        os.environ[name] = loopback


def reach_other_machines(attempt: str, interface: str) -> None:
    """Make this process meet those of the other machines, and exchange data over an interface that leads to them.

    A machine's own name does not tell gloo which interface that is: many systems let it mean 127.0.1.1. An interface
    that the user has named stays.

    Args:
        attempt: name of the attempt, the same on all machines.
        interface: name of the interface; empty if it is not known.
    """
    os.environ[ATTEMPT] = attempt
    for name in INTERFACES if interface else ():
        os.environ.setdefault(name, interface)


def _loopback() -> str:
    """Return the name of the loopback interface (`lo`, `lo0`, ...); empty if this machine has none."""
    import psutil

    addresses = psutil.net_if_addrs()
    names = (name for name, entries in addresses.items() if any(a.address in ("127.0.0.1", "::1") for a in entries))
    return next(names, "")


def resolve(launch: LaunchConfig, use_cpu: bool) -> None:
    """Resolve `launch.num_processes=auto`, and adopt the world size under torchrun or `accelerate launch`.

    Raises:
        ConfigError: the requested numbers of processes and machines are not possible here, or the time limit is not a
            time.
    """
    check_environment()
    seconds_of(launch.time_limit)
    _check_machines(launch)
    _check_tasks(launch)
    requested = launch.num_processes
    if is_together():
        if requested not in (1, "auto", size()):
            raise ConfigError(
                f"launch.num_processes={requested}, but this was started as one of {size()} processes; leave it out"
            )
        launch.num_processes = size()
        launch.strategy = Strategy.fsdp if launch.strategy is Strategy.fsdp else Strategy.ddp
        return
    if launch.strategy is Strategy.single:
        if requested not in (1, "auto"):
            raise ConfigError(f"launch.num_processes={requested} needs launch=ddp or launch=fsdp")
        launch.num_processes = 1
        return
    launch.num_processes = _processes_here(requested, 0 if use_cpu else len(visible_devices()))
    if launch.strategy is Strategy.fsdp and launch.num_processes * launch.num_machines == 1:
        raise ConfigError(
            "launch=fsdp spreads a model over several processes, and there is only one (launch.num_processes); "
            "use launch=single"
        )


def _check_machines(launch: LaunchConfig) -> None:
    """Check the number of machines, and that they can meet at the endpoint."""
    number = f"launch.num_machines={launch.num_machines}"
    if launch.num_machines < 1:
        raise ConfigError(f"{number} must be at least 1")
    if launch.num_machines == 1:
        if launch.rdzv_endpoint is not None:
            raise ConfigError(
                f"launch.rdzv_endpoint={launch.rdzv_endpoint} is where several machines meet: "
                "set launch.num_machines too"
            )
        return
    if is_together():
        raise ConfigError(
            f"{number}, but this was started as one of {size()} processes, which join each other by themselves; leave "
            "out launch.num_machines and launch.rdzv_endpoint"
        )
    if launch.strategy is Strategy.single:
        raise ConfigError(f"{number} needs launch=ddp or launch=fsdp")
    if launch.rdzv_endpoint is None:
        raise ConfigError(
            f"{number} needs launch.rdzv_endpoint=HOST:PORT: an address of the first machine that all machines can "
            "reach, and a free port of it"
        )
    find_endpoint(launch.rdzv_endpoint)


def _check_tasks(launch: LaunchConfig) -> None:
    """Check that `srun` has started this command once on each machine, as it starts the processes there itself."""
    tasks = _number(TASKS, 1)
    if launch.strategy is Strategy.single or is_together() or tasks in (1, launch.num_machines):
        return
    raise ConfigError(
        f"srun has started {tasks} tasks ({TASKS}), each of which would start processes of its own; start one task "
        f"(srun --ntasks=1) with launch.num_processes={tasks}, or one on each machine (srun --ntasks-per-node=1) with "
        f"launch.num_machines={tasks}"
    )


def _processes_here(requested: int | str, devices: int) -> int:
    """Return the number of processes to start for a run, given the number of accelerators."""
    if requested == "auto" and not devices:
        raise ConfigError(
            "launch.num_processes=auto is the number of accelerators, and there are none; "
            "set a number of processes, which will share the CPU, or use launch=single"
        )
    count = devices if requested == "auto" else requested
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"launch.num_processes={requested} must be `auto` or an integer of at least 1")
    if devices and count > devices:
        raise ConfigError(
            f"launch.num_processes={requested} is more than the {devices} visible accelerators; "
            "trainer.args.use_cpu=true trains on the CPU"
        )
    return count


def connect(launch: LaunchConfig, use_cpu: bool) -> None:
    """Create the process group of this run; return when all processes have joined.

    Accelerate would create it later, but without the user's timeout for collectives on the CPU.

    Raises:
        RunError: the other processes did not join in time.
        RuntimeError: the group has another size than was started; each process could train a model of its own.
    """
    import torch

    backend = "gloo" if use_cpu or not torch.accelerator.is_available() else _device_backend()
    timeout = timedelta(seconds=launch.timeout)
    if not torch.distributed.is_initialized():
        with _waiting(launch.timeout):
            torch.distributed.init_process_group(backend, timeout=timeout, **_store_arguments(timeout))
    joined = torch.distributed.get_world_size()
    if joined != launch.num_processes:
        raise RuntimeError(f"{launch.num_processes} processes were started, but {joined} joined")
    if not os.environ.get(RENDEZVOUS):
        _find_machines()


def _find_machines() -> None:
    """Learn on which machine each process of the group is."""
    global _machines
    address = address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    place = store()
    place.set(f"hfexp/machine/{rank()}", f"{socket.gethostname()} ({address})")
    _machines = tuple(place.get(f"hfexp/machine/{other}").decode() for other in range(size()))


def store() -> Any:
    """Return the store by which the processes of the group have found each other."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def within(seconds: float, function: Callable[..., T], *args: Any) -> T:
    """Return what a function returns, or give up waiting for it; it goes on in a thread of its own.

    Where a link was cut, torch's calls on a store wait as long as TCP does, a quarter of an hour, and nothing can
    interrupt them.

    Raises:
        TimeoutError: it has not returned in time.
    """
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def call() -> None:
        try:
            results.put((True, function(*args)))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=call, name="hfexp-within", daemon=True).start()
    try:
        returned, value = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer for {seconds} s") from None
    if not returned:
        raise value
    return value


@contextlib.contextmanager
def reminder(text: str) -> Iterator[None]:
    """Print a text if the block takes longer than `QUIET_SECONDS`."""
    timer = threading.Timer(QUIET_SECONDS, console.note, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _waiting(seconds: int) -> Iterator[None]:
    """Print a reminder if the other processes keep this one waiting; turn torch's timeout into a RunError."""
    import torch

    others = f"{size() - 1} other process{'es' if size() > 2 else ''}"
    where = os.environ.get(RENDEZVOUS) or f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    text = (
        f"process {rank()} of {size()} (RANK, WORLD_SIZE) is waiting for {others} at {where}, "
        f"up to {seconds} s (launch.timeout)"
    )
    try:
        with reminder(text), _ended_by_ctrl_c():
            yield
    except torch.distributed.DistError as error:
        raise RunError(f"{text}; they did not join: {first_line(error)}") from error


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, unless it is handled elsewhere: Python's handler can't interrupt torch."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _store_arguments(timeout: timedelta) -> dict[str, Any]:
    """Return the arguments of `init_process_group` that choose the store; empty: torch's default.

    Workers started by hfexp on one machine use a file, as torch's TCPStore listens on all addresses, whichever it is
    given (torch 2.14). Torch's elastic agent keeps its store when it restarts the processes
    (`DynamicRendezvousHandler.next_rendezvous`): without a prefix they would look for those of the attempt before.
    The agents of several machines may count the attempts differently, so hfexp gives their attempts names.
    """
    from torch.distributed import FileStore, PrefixStore, TCPStore  # pyright: ignore

    own = {"rank": rank(), "world_size": size()}
    if os.environ.get(RENDEZVOUS):
        return {"store": FileStore(os.environ[RENDEZVOUS], size()), **own}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size=size(), is_master=False, timeout=timeout)
    attempt = os.environ.get(ATTEMPT) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": PrefixStore(f"hfexp/{attempt}", store), **own}


def _device_backend() -> str:
    """Select this rank's accelerator and return its backend; NCCL must know the device from the start."""
    import torch

    torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return torch.distributed.get_default_backend_for_device(device)


def disconnect() -> None:
    """Destroy the process group, if there is one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, which must be picklable, in the order of their ranks."""
    import torch

    values: list[Any] = [None] * size()
    torch.distributed.all_gather_object(values, value)
    return values


def share(value: Any) -> Any:
    """Broadcast rank 0's value, which must be picklable, and return it in every process."""
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
