"""A checkpoint on disk: the files it holds, whether it is whole, and how far its training was."""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hfexp.core.errors import RunError, one_of
from hfexp.core.outside import DamagedRecord, inside, read_record

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"


NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class FileFacts:
    """Size in bytes and hash of a file when it was written."""

    size: int
    sha256: str


@dataclass
class Manifest:
    """The content of a checkpoint's `manifest.json`."""

    files: dict[str, FileFacts]
    """The files of the checkpoint, by path relative to its directory."""
    resumable: bool
    world_size: int = 1
    """Number of processes that wrote the checkpoint."""


@dataclass
class Progress:
    """The fields of `trainer_state.json` that resuming needs."""

    global_step: int
    log_history: list[dict[str, Any]]
    epoch: float | None = None
    best_global_step: int | None = None
    best_metric: float | None = None
    best_model_checkpoint: str | None = None
    stateful_callbacks: dict[str, Any] = field(default_factory=dict)


class CheckpointError(RunError):
    """A checkpoint is damaged, is missing or does not fit the model."""


def list_checkpoints(directory: Path) -> list[Path]:
    """List checkpoint directories in the order of their steps."""
    if not directory.is_dir():
        return []
    numbered = [(int(m.group(1)), p) for p in directory.iterdir() if p.is_dir() and (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(numbered)]


def newest_whole(directory: Path) -> Path | None:
    """Return the newest checkpoint that a run can resume from, or None; warn about each newer one."""
    for checkpoint in reversed(list_checkpoints(directory)):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s can't be used: %s; trying the previous one", checkpoint.name, problem)
    return None


def set_aside_newer(directory: Path, chosen: Path | None) -> None:
    """Rename the unusable checkpoints after the chosen one: rotation would keep them instead of good ones."""
    checkpoints = list_checkpoints(directory)
    for checkpoint in checkpoints[checkpoints.index(chosen) + 1 if chosen else 0 :]:
        shutil.rmtree(directory / f"damaged-{checkpoint.name}", ignore_errors=True)
        checkpoint.rename(directory / f"damaged-{checkpoint.name}")


def best_step(directory: Path) -> int | None:
    """Read the best step so far from the newest checkpoint with a readable Trainer state."""
    for checkpoint in reversed(list_checkpoints(directory)):
        state = trainer_state(checkpoint)
        if state:
            best = state.get("best_global_step")
            return best if isinstance(best, int) else None
    return None


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's `trainer_state.json`; return an empty dictionary if it is missing or damaged."""
    try:
        return read_record(checkpoint / TRAINER_STATE, dict[str, Any])
    except (FileNotFoundError, DamagedRecord):
        return {}


def find_problem(checkpoint: Path) -> str | None:
    """Say why a run can't resume from a checkpoint; None if it can.

    Every file must have its recorded size and hash, and the Trainer state must be readable.
    """
    try:
        manifest = read_record(checkpoint / MANIFEST, Manifest)
        for name, expected in manifest.files.items():
            path = inside(checkpoint, name)
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected.size:
                return f"{name} has {path.stat().st_size} bytes instead of {expected.size}"
            if _sha256(path) != expected.sha256:
                return f"{name} was changed after it was written"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except DamagedRecord as error:
        return str(error)
    if not manifest.resumable:
        return "it holds the weights only (trainer.args.save_only_model)"
    return _problem_of_state(checkpoint)


def _problem_of_state(checkpoint: Path) -> str | None:
    """Say why the Trainer can't resume from `trainer_state.json`; None if it can."""
    from transformers import TrainerState

    try:
        state = read_record(checkpoint / TRAINER_STATE, Progress)
    except FileNotFoundError:
        return f"{TRAINER_STATE} is missing"
    except DamagedRecord as error:
        return str(error)
    if checkpoint.name != f"checkpoint-{state.global_step}":
        return f"{TRAINER_STATE} belongs to step {state.global_step}"
    unknown = sorted(trainer_state(checkpoint).keys() - {entry.name for entry in fields(TrainerState)})
    return f"{TRAINER_STATE} has {one_of(unknown)}, unknown to this version of Transformers" if unknown else None


def processes_of(checkpoint: Path) -> int:
    """Return the number of processes that wrote a complete checkpoint."""
    return read_record(checkpoint / MANIFEST, Manifest).world_size


def write_manifest(checkpoint: Path, **facts: Any) -> None:
    """Record the size and SHA-256 of every file of a checkpoint, and flush all of them to the disk."""
    files = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(checkpoint))] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = checkpoint / MANIFEST
    with manifest.open("w") as file:
        json.dump({"files": files, **facts}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
