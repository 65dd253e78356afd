"""Delivery state of a run's journal: how far the store has it, in a file beside the journal."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hfexp.core.outside import DamagedRecord, read_record
from hfexp.core.secrets import mask_secrets
from hfexp.tracking.journal import FOLDER

logger = logging.getLogger(__name__)

STATE = "delivered.json"


@dataclass
class DeliveryState:
    """Content of `delivered.json`."""

    uri: str
    """Tracking URI; in the file its secrets are masked."""
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    """Position in the journal (bytes) up to which everything is delivered, or in `deferred`."""
    deferred: list[int] = field(default_factory=list)
    """Positions of entries that failed and will be retried."""
    creating: bool = False
    """True while a run is being created: it may exist in the store although its id is not stored here."""

    @classmethod
    def load(cls, run_dir: Path, uri: str, size: int) -> "DeliveryState":
        """Load the state for a store.

        Args:
            uri: tracking URI, secrets masked.
            size: bytes of the journal. After a crash of the machine the state may be ahead of it.
        """
        state = read_delivered(run_dir)
        if state is None or mask_secrets(state.uri) != uri:
            return cls(uri, creating=size > 0)  # the run may exist in this store already
        state.uri = uri
        state.offset = min(state.offset, size)
        state.deferred = [position for position in state.deferred if position < size]
        return state

    def save(self, run_dir: Path) -> None:
        """Write the state atomically."""
        temporary = run_dir / FOLDER / f".{STATE}"
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, run_dir / FOLDER / STATE)


def read_delivered(run_dir: Path) -> DeliveryState | None:
    """Read the delivery state of a run; None if it has none, or a damaged one."""
    try:
        state = read_record(run_dir / FOLDER / STATE, DeliveryState)
    except FileNotFoundError:
        return None
    except DamagedRecord as error:
        logger.warning("%s: what it records is delivered anew", error)
        return None
    return state if state.offset >= 0 and all(position >= 0 for position in state.deferred) else None


def recorded_run_id(run_dir: Path) -> str | None:
    """Return the MLflow id of the run in a directory; None if it is not recorded yet."""
    state = read_delivered(run_dir)
    return state.run_id if state else None
