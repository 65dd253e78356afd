"""Journal of a run: entries as lines of a file, written first and delivered to the store afterwards.

The file is the queue between training and the store. Appending a line costs microseconds, takes no memory, survives
the death of the process, and works whether or not the store can be reached.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from hfexp.core.files import replace_file
from hfexp.core.outside import DamagedRecord, has_shape, read_record
from hfexp.core.secrets import mask_secrets, mask_values

logger = logging.getLogger(__name__)

Entry = dict[str, Any]

Texts = dict[str, str]
_SHAPES: dict[str, dict[str, Any]] = {
    "create": {
        "tags": Texts, "time": int, "experiment": str, "name": str, "key": str, "shared": NotRequired[bool],
    },
    "resume": {"time": int},
    "end": {"status": Literal["finished", "failed", "killed"], "reason": str, "time": int},
    "params": {"params": Texts},
    "tags": {"tags": Texts},
    "metrics": {"metrics": dict[str, float], "step": int, "time": int},
    "artifacts": {"path": str, "name": str | None},
    "inputs": {"inputs": list[TypedDict("Input", {"dataset": dict[str, str | None], "tags": Texts})]},
    "model": {
        "directory": str, "name": str, "key": str, "step": int, "metrics": dict[str, float], "register": str | None,
        "temporary": NotRequired[bool],
    },
    "register": {"run_dir": str, "name": str, "run_id": NotRequired[str | None]},
    "checkpoints": {"last": NotRequired[bool]},
}  # fmt: skip
"""Fields of the entries by kind; an entry of another kind or shape is of another version, or not ours, and skipped."""
SHAPES = {kind: TypedDict(kind, content) for kind, content in _SHAPES.items()}  # pyright: ignore

FOLDER = "tracking"
JOURNAL = "journal.jsonl"
MAX_KEPT_ON_FULL_DISK = 10_000
"""Entries that wait in memory while the disk is full; further metrics are dropped."""
PROCESS = ("hfexp.host", "hfexp.pid", "hfexp.process")
"""Tags that identify the process of a run."""
ADDRESSES = (*PROCESS, "hfexp.run_dir")
"""Tags that identify the process and directory of a run: never masked, even if a password is e.g. `postgres`."""
RESERVE = ".reserve"
RESERVED_BYTES = 2**18
"""Bytes of the reserve file, which is deleted to make room for the last entries of a run."""


def exists(run_dir: Path) -> bool:
    """Return True if a run has a journal, i.e. was tracked."""
    return (run_dir / FOLDER / JOURNAL).is_file()


class Journal:
    """An append-only file of entries, each a mapping with `kind`; positions are byte offsets.

    One process appends (the holder of the run directory's lock), from any of its threads.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / FOLDER / JOURNAL
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._torn = False
        self._remove_torn_line()
        self._size = self.path.stat().st_size if self.path.exists() else 0
        """Bytes of whole lines: on a full disk the file may end with a part of the first waiting line."""

    def append(self, kind: str, **content: Any) -> None:
        """Append an entry, without secrets; on a full disk it waits in memory until there is space."""
        masked = {name: mask_values(content[name]) for name in ("params", "inputs", "reason") if name in content}
        if "tags" in content:
            masked["tags"] = mask_tags(content["tags"])
        line = _line({"kind": kind, **content, **masked})
        with self._lock:
            first_failure = not self._waiting
            if len(self._waiting) >= MAX_KEPT_ON_FULL_DISK and kind == "metrics":
                return
            self._waiting.append(line)
            try:
                self._write_waiting()
            except OSError as error:
                self._torn = True
                if first_failure:
                    logger.warning("%s can't be written: %s; the record is kept in memory", self.path, error.strerror)

    def reserve_space(self) -> None:
        """Reserve room for the last entries of a run that fills the disk."""
        with contextlib.suppress(OSError):
            (self.path.parent / RESERVE).write_bytes(bytes(RESERVED_BYTES))

    def release_space(self) -> None:
        with contextlib.suppress(OSError):
            (self.path.parent / RESERVE).unlink(missing_ok=True)

    def begun(self) -> bool:
        """Return True if it begins with `create`; after an early crash or on a full disk it may lack even that."""
        return next((entry["kind"] for entry, _ in self.read()), "") == "create"

    def discard(self) -> None:
        """Delete all entries."""
        self.path.unlink(missing_ok=True)
        self._size = 0

    def sync(self) -> None:
        """Flush the file to disk, so that the delivery state is never ahead of it."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _write_waiting(self) -> None:
        if self._torn:
            self._remove_torn_line()
            self._torn = False
        with self.path.open("ab", buffering=0) as file:
            while self._waiting:
                line = self._waiting[0]
                if file.write(line) != len(line):
                    raise OSError(28, os.strerror(28))  # ENOSPC: the disk took only a part of the line
                self._waiting.popleft()
                self._size += len(line)

    def _remove_torn_line(self) -> None:
        """Cut off half a line, which a process killed or a disk filled during a write leaves."""
        if not self.path.exists():
            return
        size = self.path.stat().st_size
        with self.path.open("rb+") as file:
            end = size
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)

    def read(self, offset: int = 0) -> Iterator[tuple[Entry, int]]:
        """Yield the entries from a position on, each with the position after it; skip other lines."""
        for line in self._lines(offset):
            offset += len(line)
            entry = parse_entry(line)
            if entry is not None:
                yield entry, offset

    def _lines(self, offset: int) -> Iterator[bytes]:
        with self._lock:
            written, waiting = self._size, list(self._waiting)
        if written > offset:
            with self.path.open("rb") as file:
                file.seek(offset)
                while file.tell() < written:
                    yield file.readline()
        position = written
        for line in waiting:  # the positions that they will have in the file
            if position >= offset:
                yield line
            position += len(line)

    def entry_at(self, offset: int) -> Entry:
        """Return the entry that begins at a position."""
        return next(self.read(offset))[0]

    def size(self) -> int:
        """Return the position after the last entry, including those that wait in memory."""
        with self._lock:
            return self._size + sum(map(len, self._waiting))

    def recorded(self) -> tuple[set[str], dict[str, int]]:
        """Return the names of the recorded params and the last recorded step of each metric."""
        params: set[str] = set()
        last_step: dict[str, int] = {}
        for entry, _ in self.read():
            if entry["kind"] == "params":
                params |= entry["params"].keys()
            elif entry["kind"] == "metrics":
                for name in entry["metrics"]:
                    last_step[name] = max(entry["step"], last_step.get(name, -1))
        return params, last_step


def mask_tags(tags: dict[str, str]) -> dict[str, str]:
    """Mask the secrets in tags."""
    return mask_values(tags) | {name: tags[name] for name in ADDRESSES if name in tags}


def process_in(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return the tags that identify the process of a run."""
    return tuple(tags.get(name, "") for name in PROCESS)


def parse_entry(line: bytes) -> Entry | None:
    """Parse a line; None if a crash tore it, or if this version does not know such an entry."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kind = entry.get("kind") if isinstance(entry, dict) else None
    shape = SHAPES.get(kind) if isinstance(kind, str) else None
    return entry if shape is not None and has_shape(entry, shape) else None


def now() -> int:
    """Return the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)


def _line(entry: Entry) -> bytes:
    """Serialise an entry, without what no store takes: NUL, and lone surrogates (from file names in old encodings)."""
    text = json.dumps(entry, ensure_ascii=False).replace("\\u0000", "")
    return text.encode("utf-8", "replace") + b"\n"


# Delivery state of a run's journal: how far the store has it, in a file beside the journal.


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
        replace_file(run_dir / FOLDER / STATE, json.dumps(asdict(self)))


def read_delivered(run_dir: Path) -> DeliveryState | None:
    """Read the delivery state of a run; None if it has none, or a damaged one."""
    try:
        state = read_record(run_dir / FOLDER / STATE, DeliveryState)
    except FileNotFoundError:
        return None
    except DamagedRecord as error:
        logger.warning("%s: the whole record is delivered again", error)
        return None
    return state if state.offset >= 0 and all(position >= 0 for position in state.deferred) else None


def recorded_run_id(run_dir: Path) -> str | None:
    """Return the MLflow id of the run in a directory; None if it is not recorded yet."""
    state = read_delivered(run_dir)
    return state.run_id if state else None
