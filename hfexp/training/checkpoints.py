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
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfexp.core.checkpoint import TRAINER_STATE, CheckpointError, find_problem, write_manifest
from hfexp.training.adapters import is_adapted, require_same_weights
from hfexp.training.callbacks import TrainerMixin

logger = logging.getLogger(__name__)


STAGING = ".incomplete"


class CheckpointMixin(TrainerMixin):
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
        rotate_checkpoints(str(final.parent), self._num_kept(final.parent), best)

    def _num_kept(self, directory: Path) -> int | None:
        """Return how many checkpoints to keep in a directory, besides the best and the newest; None: all."""
        return self.args.save_total_limit

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
        self._require_whole(best, "the best model")
        super()._load_best_model()
        self._require_adapter_of(best)

    def _require_whole(self, checkpoint: Path, what: str) -> None:
        """Raise CheckpointError if the weights in a checkpoint are not those that were written."""
        problem = find_problem(checkpoint)
        if problem is not None and not (self.args.save_only_model and "weights only" in problem):
            raise CheckpointError(f"{what} can't be loaded from {checkpoint}: {problem}")

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
            # Those of all parts: BART's embeddings, for example, are tied inside its `model`.
            optional = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}
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
