"""How far a run's journal has been delivered, as a file beside it."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfexp.tracking.journal import FOLDER

STATE = "delivered.json"


@dataclass
class DeliveryState:
    """What is noted in `delivered.json`."""

    uri: str
    """Tracking URI, passwords masked."""
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
        with contextlib.suppress(OSError, ValueError, TypeError):
            state = cls(**json.loads((run_dir / FOLDER / STATE).read_text()))
            state.offset = min(state.offset, size)
            state.deferred = [position for position in state.deferred if position < size]
            if state.uri == uri:
                return state
        return cls(uri, creating=size > 0)

    def save(self, run_dir: Path) -> None:
        """Write it whole or not at all."""
        temporary = run_dir / FOLDER / f".{STATE}"
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, run_dir / FOLDER / STATE)


def recorded_state(run_dir: Path) -> dict[str, Any]:
    """What is noted of the delivery of a run; empty if nothing is."""
    try:
        return json.loads((run_dir / FOLDER / STATE).read_text())
    except (OSError, ValueError):
        return {}
