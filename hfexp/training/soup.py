"""An average of the last checkpoints (a "soup"), which is the model if it is better on the validation split.

(A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 6.1, average the last checkpoints of a training.
M. Wortsman et al., "Model soups", ICML 2022, gave the name, and take an average only if it wins on held-out data.)
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from hfexp.core import console
from hfexp.core.checkpoint import list_checkpoints
from hfexp.core.config import Config
from hfexp.core.training_args import TIMINGS
from hfexp.training.averaging import averaged_tensors
from hfexp.training.checkpoints import CheckpointMixin


class Soup(CheckpointMixin):
    """`CheckpointMixin` that keeps the last evaluated checkpoints, and averages them after the training."""

    soup: int = 0
    """Number of checkpoints to average; 0: no average."""
    soup_metrics: Mapping[str, float] = {}
    """Metrics `eval_*` of the average, once it has become the model."""

    def _evaluated(self) -> list[str]:
        """Return the names of the checkpoints that were evaluated; one that a signal has asked for was not."""
        steps = [entry["step"] for entry in self.state.log_history if "eval_loss" in entry]
        return [f"checkpoint-{step}" for step in steps if step]

    def _num_kept(self, directory: Path) -> int | None:
        """Add room for the checkpoints to average, the best one, and those that were not evaluated."""
        limit = super()._num_kept(directory)
        if not self.soup or limit is None or limit <= 0:
            return limit
        others = {path.name for path in list_checkpoints(directory)} - set(self._evaluated())
        return max(limit, self.soup + 1 + len(others))

    def try_soup(self) -> dict[str, float]:
        """Average the last checkpoints; leave the average in the model if it is better, and else the best checkpoint.

        Returns:
            The metrics `soup_*` of the average on the validation split, and `soup_taken`, 1 or 0; nothing if only one
            checkpoint was evaluated.

        Raises:
            CheckpointError: a checkpoint is damaged or gone.
        """
        names, metric = self._evaluated()[-self.soup :], str(self.args.metric_for_best_model).removeprefix("eval_")
        if len(names) < 2:
            return {}
        self._load_average([Path(str(self.args.output_dir), name) for name in names])
        output = self.predict(self.eval_dataset, metric_key_prefix="soup")  # pyright: ignore[reportArgumentType]
        metrics = {k: float(v) for k, v in (output.metrics or {}).items() if not k.endswith(TIMINGS)}
        value, best = metrics[f"soup_{metric}"], float(self.state.best_metric or 0)
        taken = value > best if self.args.greater_is_better else value < best
        if taken:
            self.soup_metrics = {f"eval_{name.removeprefix('soup_')}": v for name, v in metrics.items()}
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        else:
            self._load_best_model()
        if self.state.is_world_process_zero:
            values = f"{metric} is {value:.4g} for the average of {', '.join(names)}, {best:.4g} for the best one"
            console.note(f"{values}: {'the average' if taken else 'the best one'} is the model")
        return {**metrics, "soup_taken": float(taken)}

    @torch.no_grad()
    def _load_average(self, checkpoints: list[Path]) -> None:
        """Load the mean of the trained weights and the statistics of batch normalisation, taken in float32."""
        sums: dict[str, torch.Tensor] = {}
        for checkpoint in checkpoints:
            self._require_whole(checkpoint, "a checkpoint of trainer.soup")
            self._load_from_checkpoint(str(checkpoint))
            for name, tensor in averaged_tensors(self.model).items():  # pyright: ignore[reportArgumentType]
                sums[name] = sums[name] + tensor.float() if name in sums else tensor.float().clone()
        for name, tensor in averaged_tensors(self.model).items():  # pyright: ignore[reportArgumentType]
            tensor.copy_(sums[name] / len(checkpoints))


def check_soup(config: Config) -> list[str]:
    """Check that a run keeps a checkpoint of each evaluation, and has a best one, for `trainer.soup`."""
    args, key = config.trainer.args, f"trainer.soup={config.trainer.soup}"
    if config.trainer.soup is None:
        return []
    if config.trainer.soup < 2:
        return [f"{key} must be at least 2, the number of checkpoints to average"]
    if not args.get("load_best_model_at_end") or args.get("save_total_limit") == 1:
        return [f"{key} keeps the best checkpoint and others: set load_best_model_at_end=true, save_total_limit=null"]
    every = [(args.get(f"{what}_strategy"), args.get(f"{what}_steps")) for what in ("eval", "save")]
    if every[0] != every[1] and not (every[0][0] == every[1][0] == "epoch"):
        return [f"{key} averages evaluated checkpoints: set trainer.args.save_strategy and save_steps like eval_..."]
    return []
