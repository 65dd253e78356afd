"""How far a run's journal has been delivered, as a file beside it."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hfexp.outside import DamagedRecord, read_record
from hfexp.secrets import mask_secrets
from hfexp.tracking.journal import FOLDER

logger = logging.getLogger(__name__)

STATE = "delivered.json"


@dataclass
class DeliveryState:
    """What is noted in `delivered.json`."""

    uri: str
    """Tracking URI, secrets masked."""
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    """Everything before this position of the journal was delivered, or is in `deferred`."""
    deferred: list[int] = field(default_factory=list)
    """Positions of uploads that failed and will be tried again."""
    creating: bool = False
    """A run was being created, so that it may exist without being known here."""

    @classmethod
    def load(cls, run_dir: Path, uri: str, size: int) -> "DeliveryState":
        """What is noted for this store.

        Args:
            size: of the journal. After a crash of the machine, more may be noted than is left of it.
        """
        state = read_delivered(run_dir)
        if state is None or mask_secrets(state.uri) != uri:
            return cls(uri, creating=size > 0)
        state.uri = uri
        state.offset = min(state.offset, size)
        state.deferred = [position for position in state.deferred if position < size]
        return state

    def save(self, run_dir: Path) -> None:
        """Write it whole or not at all."""
        temporary = run_dir / FOLDER / f".{STATE}"
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, run_dir / FOLDER / STATE)


def read_delivered(run_dir: Path) -> DeliveryState | None:
    """Read what is noted of the delivery of a run; None if nothing is, or a damaged note."""
    try:
        state = read_record(run_dir / FOLDER / STATE, DeliveryState)
    except FileNotFoundError:
        return None
    except DamagedRecord as error:
        logger.warning("%s: what it records is delivered anew", error)
        return None
    return state if state.offset >= 0 and all(position >= 0 for position in state.deferred) else None


def recorded_run_id(run_dir: Path) -> str | None:
    """Give the id of the run that was recorded from a directory; None if none was."""
    state = read_delivered(run_dir)
    return state.run_id if state else None
