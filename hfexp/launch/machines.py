"""Several machines for one run: they meet by torch's elastic rendezvous and compare what must be the same.

The first machine is the one with the address `launch.rdzv_endpoint`. It serves a store there, over which the agents of
all machines meet (torch's `c10d` rendezvous, with a fixed number of machines), and over which their workers do.
"""

import contextlib
import errno
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch.distributed import Store, TCPStore  # pyright: ignore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from hfexp.core import console
from hfexp.core.config import LaunchConfig
from hfexp.core.errors import ConfigError, RunError, Terminated, join_problems
from hfexp.launch.endpoint import Endpoint, find_endpoint
from hfexp.launch.rendezvous import FixedRendezvous
from hfexp.launch.workers import WorkerMonitor, run_agent
from hfexp.launch.world import reminder, within

BACKEND = "hfexp-machines"
RUN_ID = "hfexp"
"""Name of the rendezvous; the endpoint distinguishes runs already."""
MEETING = "meeting"
"""Key of torch's rendezvous parameters under which a `MachinesRendezvous` finds its `Meeting`."""
NO_SECOND_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
LEFT = "hfexp/left"
"""Key that counts the machines that have ended their part."""
SECONDS_TO_LEAVE = 5
"""Seconds for which the first machine, which serves the store, waits at the end until the others have left it."""


@dataclass(frozen=True)
class Machine:
    """What a machine tells the others about itself."""

    name: str
    address: str
    is_first: bool
    processes: int
    attempt: str
    """Name of the attempt that this machine would begin; that of the first machine counts."""
    facts: dict[str, str]
    """What must be the same on all machines, as texts: versions, settings, sizes of the data."""

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


@dataclass
class Meeting:
    """What this machine brings to a meeting with the others, and what it learns there."""

    endpoint: Endpoint
    num_machines: int
    processes: int
    """Number of processes of this machine."""
    seconds: int
    """How long to wait for the others (`launch.timeout`)."""
    facts: dict[str, str]
    monitor: WorkerMonitor
    """Knows why the attempt before has ended."""
    machines: tuple[Machine, ...] = ()
    """The machines of the run, the first one first; empty before they have met."""
    is_first: bool = False


def start(launch: LaunchConfig, facts: dict[str, str], entry: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
    """Call `entry(*args)` in the workers of this machine, which join those of the other machines, and wait for them.

    Args:
        launch: resolved by `hfexp.launch.world.resolve`.
        facts: what must be the same on all machines.
        entry: a module-level function.
        args: picklable.

    Returns:
        The return value of this machine's first worker, and whether that is rank 0 of the run.

    Raises:
        ConfigError: the machines differ in their facts, or the endpoint can't be used.
        RunError: the machines did not meet.
        See `hfexp.launch.workers.run_agent` for the others.
    """
    rendezvous_handler_registry.register(BACKEND, MachinesRendezvous)
    endpoint, processes = find_endpoint(str(launch.rdzv_endpoint)), int(launch.num_processes)
    with tempfile.TemporaryDirectory(prefix="hfexp-") as temporary:
        monitor = WorkerMonitor(Path(temporary), processes)
        meeting = Meeting(endpoint, launch.num_machines, processes, launch.timeout, facts, monitor)
        settings = {
            "min_nodes": launch.num_machines,
            "max_nodes": launch.num_machines,
            "run_id": RUN_ID,
            "rdzv_backend": BACKEND,
            "rdzv_endpoint": endpoint.text,
            "rdzv_configs": {MEETING: meeting, "join_timeout": launch.timeout},
            "local_addr": endpoint.local_address,
        }
        result = run_agent(launch, settings, monitor, monitor.directory, endpoint.interface, entry, args)
    return result, meeting.is_first


class MachinesRendezvous(FixedRendezvous):
    """A rendezvous of a fixed number of machines, which are numbered from the one that serves the store.

    A machine that comes back waits until the others have failed.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        meeting = parameters.config[MEETING]
        self._meeting: Meeting = meeting
        self._store, meeting.is_first = open_store(meeting.endpoint, meeting.seconds)
        backend = C10dRendezvousBackend(self._store, RUN_ID)
        self._inner = create_handler(self._store, backend, parameters)
        self._attempt = ""

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        """Return the name of the attempt; the workers, which get it from the agent, need it to be new each time."""
        return self._attempt or RUN_ID

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all machines, compare them, and begin an attempt.

        Raises:
            ConfigError: the machines differ.
            RunError: they did not meet.
        """
        meeting, place = self._meeting, self._meeting.endpoint
        if self._attempt:
            self._announce_another_attempt()
        waiting = f"waiting for {meeting.num_machines} machines at {place.text}"
        with reminder(f"{waiting}, up to {meeting.seconds} s (launch.timeout)"), _explained(meeting):
            info = within(meeting.seconds + SECONDS_TO_LEAVE, self._next_round)
            machines = within(meeting.seconds, self._introduce, info)
        require_same(machines)
        order = sorted(range(len(machines)), key=lambda number: not machines[number].is_first)
        meeting.machines = tuple(machines[number] for number in order)
        meeting.monitor.processes = sum(machine.processes for machine in machines)
        self._attempt = meeting.machines[0].attempt
        rank = order.index(info.rank)
        if rank:
            console.note(f"machine {rank + 1} of {len(machines)}; {meeting.machines[0]} prints and records the run")
        return RendezvousInfo(info.store, rank, info.world_size, RendezvousStoreInfo(place.address, place.port))

    def _announce_another_attempt(self) -> None:
        error = self._meeting.monitor.explain({})
        if isinstance(error, ConfigError | Terminated):
            raise error
        console.note(f"{error}; starting again from the newest checkpoint when all machines are back")

    def _next_round(self) -> RendezvousInfo:
        # Otherwise torch would start one more server, which listens on all addresses.
        before = os.environ.get(NO_SECOND_STORE)
        os.environ[NO_SECOND_STORE] = "1"
        try:
            return self._inner.next_rendezvous()
        finally:
            del os.environ[NO_SECOND_STORE]
            if before is not None:
                os.environ[NO_SECOND_STORE] = before

    def _introduce(self, info: RendezvousInfo) -> list[Machine]:
        """Tell the others about this machine; return all machines in the order in which torch has numbered them."""
        meeting = self._meeting
        own = Machine(
            socket.gethostname(), meeting.endpoint.local_address, meeting.is_first, meeting.processes, uuid4().hex,
            meeting.facts,
        )  # fmt: skip
        info.store.set(f"machine/{info.rank}", json.dumps(asdict(own)))
        return [Machine(**json.loads(info.store.get(f"machine/{number}"))) for number in range(info.world_size)]

    def shutdown(self) -> bool:
        with contextlib.suppress(TimeoutError, RuntimeError):  # a machine is gone, or the first one has left already
            within(SECONDS_TO_LEAVE, self._leave)
        return True

    def _leave(self) -> None:
        self._inner.shutdown()
        self._store.add(LEFT, 1)
        while self._meeting.is_first and self._store.add(LEFT, 0) < self._meeting.num_machines:
            time.sleep(0.1)


def open_store(endpoint: Endpoint, seconds: int) -> tuple[Store, bool]:
    """Serve the store at the endpoint, or connect to the one there; return it, and whether this machine serves it.

    torch by itself would listen on all addresses, whichever it is given (torch 2.14).

    Raises:
        ConfigError: the port is taken.
        RunError: nobody answers there within `seconds`.
    """
    timeout = timedelta(seconds=seconds)
    listener = _listen(endpoint) if endpoint.is_here else None
    if listener is None:
        _await_server(endpoint, seconds)
        return TCPStore(endpoint.address, endpoint.port, is_master=False, timeout=timeout), False
    store = TCPStore(
        endpoint.address, endpoint.port, is_master=True, wait_for_workers=False, timeout=timeout,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    return store, True


def _listen(endpoint: Endpoint) -> socket.socket | None:
    """Return a socket that listens at the endpoint; None if another process of this machine does, on loopback."""
    try:
        return socket.create_server((endpoint.address, endpoint.port), family=endpoint.family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and endpoint.is_loopback:
            return None
        raise ConfigError(
            f"launch.rdzv_endpoint={endpoint.text}: this machine can't listen there: {os.strerror(error.errno or 0)}; "
            "choose another port, or end the run that uses it"
        ) from error


def _await_server(endpoint: Endpoint, seconds: int) -> None:
    """Wait until something listens at the endpoint; unlike torch, let Ctrl-C end the waiting."""
    deadline = time.monotonic() + seconds
    with reminder(f"waiting for the first machine at {endpoint.text}, up to {seconds} s (launch.timeout)"):
        while True:
            try:
                socket.create_connection((endpoint.address, endpoint.port), timeout=2).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"launch.rdzv_endpoint={endpoint.text}: nobody has answered for {seconds} s (launch.timeout): "
                        f"{error}; start the same command on the machine that has the address {endpoint.address}"
                    ) from error
                time.sleep(0.5)


@contextlib.contextmanager
def _explained(meeting: Meeting) -> Iterator[None]:
    """Turn torch's errors of a rendezvous into messages."""
    place = meeting.endpoint.text
    try:
        yield
    except (RendezvousTimeoutError, TimeoutError) as error:
        raise RunError(
            f"launch.num_machines={meeting.num_machines}, but not all of them came to {place} within "
            f"{meeting.seconds} s (launch.timeout); start the same command on each machine"
        ) from error
    except RendezvousClosedError as error:
        raise RunError(f"the first machine, at {place}, has ended the run") from error
    except (RendezvousError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"the first machine, at {place}, is gone: it was stopped, killed or cut off") from error


def require_same(machines: list[Machine]) -> None:
    """Check that all machines have the same facts.

    Raises:
        ConfigError: names each fact that differs, and its value on each machine.
    """
    names = dict.fromkeys(name for machine in machines for name in machine.facts)
    problems = [_difference(name, machines) for name in names]
    differing = [problem for problem in problems if problem]
    if differing:
        raise ConfigError(
            f"the machines of a run need the same command, versions and data: {join_problems(differing)}"
        )


def _difference(name: str, machines: list[Machine]) -> str:
    values: dict[Any, list[str]] = {}
    for machine in machines:
        values.setdefault(machine.facts.get(name, "not there"), []).append(str(machine))
    if len(values) == 1:
        return ""
    return f"{name} is " + " and ".join(f"{value} on {', '.join(names)}" for value, names in values.items())
