"""Rendezvous backend for torch's elastic agent that opens no port; workers meet in a file only this user can read.

Torch's own backend listens on every address of the machine and unpickles what anybody writes into it
(`torch.distributed.elastic.rendezvous.c10d_rendezvous_backend`, torch 2.14).
"""

from torch.distributed import HashStore  # pyright: ignore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "hfexp"
NO_SERVER = RendezvousStoreInfo("127.0.0.1", 0)
"""MASTER_ADDR and MASTER_PORT of the workers; nothing listens at this address."""


class FixedRendezvous(RendezvousHandler):
    """A rendezvous that no further agent can join while the workers run."""

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Do nothing: the launcher calls `shutdown` at the end."""

    def num_nodes_waiting(self) -> int:
        """Return 0, so that the agent does not restart its workers for somebody who waits."""
        return 0


class PrivateRendezvous(FixedRendezvous):
    """A rendezvous of one agent, the one in this process; nothing outside the process can join.

    The workers find each other in the file that the environment variable `hfexp.launch.world.RENDEZVOUS` names.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id

    @property
    def use_agent_store(self) -> bool:
        return False

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Begin an attempt with an empty in-memory store."""
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=NO_SERVER)

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Register the backend with torch's launcher; repeated calls are harmless."""
    rendezvous_handler_registry.register(BACKEND, PrivateRendezvous)
