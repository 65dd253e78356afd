"""Atomic checkpoints for the Trainer that restore every weight.

Upstream (Transformers 5.23) saves weights under the key names of the original release and loads them with
`strict=False` under the model's own names. Resuming and `load_best_model_at_end` therefore silently keep the current
values of most weights of ViT, DeiT, Swin, DINOv2, BEiT and others (huggingface/transformers#48805, fix in #48822).
Upstream also writes into the final directory, so a killed process leaves a checkpoint that looks usable, and it
resumes silently when the optimizer, scheduler or RNG state is missing. Once upstream has fixed the key names,
`save_original_format=False` and `_issue_warnings_after_load` can go.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.adapters import is_adapted, require_same_weights
from hfexp.errors import RunError, one_of
from hfexp.outside import DamagedRecord, inside, read_record

if TYPE_CHECKING:
    import transformers

    _Base = transformers.Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
STAGING = ".incomplete"
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
    found = [(int(m.group(1)), p) for p in directory.iterdir() if p.is_dir() and (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def newest_whole(directory: Path) -> Path | None:
    """Return the newest checkpoint that a run can resume from, or None; warn about each newer one."""
    for checkpoint in reversed(list_checkpoints(directory)):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s can't be used: %s; trying the one before", checkpoint.name, problem)
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
                return f"{name} was altered"
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
        return f"{TRAINER_STATE} is of step {state.global_step}"
    unknown = sorted(trainer_state(checkpoint).keys() - {entry.name for entry in fields(TrainerState)})
    return (
        f"{TRAINER_STATE} has {one_of(unknown)}, which this version of Transformers does not know" if unknown else None
    )


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


class TrueCheckpoints(_Base):
    """Mixin for a Transformers `Trainer`: atomic checkpoints with the model's own key names, and strict loading.

    The Trainer writes a checkpoint below a staging directory, which is renamed when the checkpoint is complete.
    """

    config_hash: str = ""
    """Hash that identifies the experiment, recorded in each manifest."""
    _staging: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save a checkpoint of each new best model, whatever the save strategy, if `load_best_model_at_end` is set.

        Otherwise a run could neither load nor resume from the model that it reports as the best.
        """
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.state.best_global_step = self.state.global_step
            self.control.should_save = True
        return is_new_best

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        final_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staged = final_dir / STAGING / name
        if self.args.should_save:
            shutil.rmtree(final_dir / STAGING, ignore_errors=True)
        # No process may write before the remains of a killed run are gone.
        self.accelerator.wait_for_everyone()
        self._staging = str(final_dir / STAGING)
        try:
            # super() rotates checkpoints in the staging directory only, so it removes nothing; `_publish` rotates.
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._set_best_checkpoint(final_dir)
        # Every process has to write its RNG state before the rename.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(staged, final_dir / name)
        self.accelerator.wait_for_everyone()

    def _set_best_checkpoint(self, final_dir: Path) -> None:
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (final_dir / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(final_dir / f"checkpoint-{best}")

    def _publish(self, staged: Path, final: Path) -> None:
        """Complete the staged checkpoint, rename it into place and rotate old ones."""
        from transformers.trainer_utils import rotate_checkpoints

        best = self.state.best_model_checkpoint
        # Store only the name of the best checkpoint: the run directory may be moved.
        self.state.best_model_checkpoint = Path(best).name if best else None
        self.state.save_to_json(str(staged / TRAINER_STATE))
        self.state.best_model_checkpoint = best
        resumable = not self.args.save_only_model
        write_manifest(staged, resumable=resumable, world_size=self.args.world_size, config_hash=self.config_hash)
        if final.exists():
            shutil.rmtree(final)
        staged.rename(final)
        with contextlib.suppress(OSError):
            (final.parent / STAGING).rmdir()
        _sync_directory(final.parent)
        rotate_checkpoints(str(final.parent), self.args.save_total_limit, best)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with _own_format(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
            super()._save(output_dir, state_dict)
        # A pickle that hfexp never reads; the arguments are in the run's config.yaml.
        Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        # Upstream looked for the recorded name in the current directory, did not find it and dropped it.
        self._set_best_checkpoint(Path(str(self.args.output_dir)))
        best = self.state.best_global_step
        if best and self.args.load_best_model_at_end and not self.state.best_model_checkpoint:
            raise CheckpointError(
                f"the best checkpoint so far, checkpoint-{best}, is gone from {self.args.output_dir}"
            )
        # Upstream would continue a training that has ended: it forgets an early stop, and finishes a partial epoch.
        saved: Any = self.state.stateful_callbacks if resume_from_checkpoint is not None else {}
        stopped = saved.get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
        return (num_train_epochs, 0) if stopped or self.state.global_step >= max_steps else position

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        problem = find_problem(best)
        if problem is not None and not (self.args.save_only_model and "weights only" in problem):
            raise CheckpointError(f"the best model can't be loaded from {best}: {problem}")
        super()._load_best_model()
        self._require_adapter_of(best)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._require_adapter_of(Path(resume_from_checkpoint))

    def _require_adapter_of(self, checkpoint: Path) -> None:
        """Check that a checkpoint holds the model's whole adapter; upstream takes this for granted."""
        model = self.accelerator.unwrap_model(self.model)
        if is_adapted(model):
            require_same_weights(model, checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise if weights are missing or unknown; missing ones would silently keep their current values."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, _transformers_model()):
            optional = {*(model._keys_to_ignore_on_save or ()), *(model._tied_weights_keys or ())}
        else:
            optional = set()
        missing = sorted(set(load_result.missing_keys) - optional)
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                f"the checkpoint does not fit the model: {len(missing)} weights missing {missing[:3]}, "
                f"{len(load_result.unexpected_keys)} unknown {list(load_result.unexpected_keys)[:3]}"
            )
        if optional & set(load_result.missing_keys):
            model.tie_weights()


@contextlib.contextmanager
def _own_format(model: Any) -> Iterator[None]:
    """Make `save_pretrained` write a model under its own key names, and of a PEFT model the adapter alone."""
    if is_adapted(model):
        options = {"save_embedding_layers": False}
    elif isinstance(model, _transformers_model()):
        options = {"save_original_format": False}
    else:
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, **options)
    try:
        yield
    finally:
        del model.save_pretrained


def _transformers_model() -> type:
    """Import `PreTrainedModel`, only when a model exists: listing checkpoints must stay cheap."""
    from transformers import PreTrainedModel

    return PreTrainedModel


def _sync_directory(directory: Path) -> None:
    """Flush a directory, which makes a rename in it durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
