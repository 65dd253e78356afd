"""The loss of an evaluation by several processes is that of one process with the same rows.

Accelerate fills up the last batches so that all processes have as many. Gathered predictions are cut to the real rows
(`Accelerator.gather_for_metrics`), but the loss of a batch is a mean over all of its rows. And of the last batches'
losses upstream (Transformers 5.23, `Trainer.evaluation_loop`) keeps as many copies as there are real rows, which are
those of the first processes alone.
"""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import recursively_apply
from transformers.trainer_pt_utils import find_batch_size

if TYPE_CHECKING:
    import transformers

    _Base = transformers.Trainer
else:
    _Base = object


class TrueEvaluation(_Base):
    """Mixin for a Transformers `Trainer`: evaluates each row once, also in the loss."""

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As the Trainer's; of several processes, each returns the loss over the real rows of all."""
        if self.args.world_size == 1:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        rows = find_batch_size(inputs) or 0
        real = self._real_rows(rows)
        kept = self._without_fillers(inputs, rows, real)
        loss, logits, labels = super().prediction_step(model, kept, prediction_loss_only, ignore_keys)  # pyright: ignore
        if loss is not None:
            loss = self._over_all(loss, real)
        if kept is not inputs:
            labels = None if labels is None else tuple(inputs[name] for name in self.label_names)
            labels = labels[0] if labels is not None and len(labels) == 1 else labels
            logits = recursively_apply(lambda t: torch.cat([t, t[-1:].expand(rows - len(t), *t.shape[1:])]), logits)
        return loss, logits, labels  # pyright: ignore

    def _real_rows(self, rows: int) -> int:
        """How many of the rows of this process's present batch are real: the first ones.

        `gather_for_metrics` keeps the first `remainder` rows of all last batches, in the order of the processes.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(state.remainder - rows * self.args.process_index, 0), rows)

    def _without_fillers(self, inputs: dict[str, Any], rows: int, real: int) -> dict[str, Any]:
        """The real rows; where there are none, one that does not count: the model wants something."""
        if real == rows:
            return inputs
        kept: Any = recursively_apply(lambda tensor: tensor[: max(real, 1)], inputs)
        for name in self.label_names if real == 0 else ():
            if torch.is_tensor(kept.get(name)) and not kept[name].is_floating_point():
                kept[name] = torch.full_like(kept[name], -100)
        return kept

    def _over_all(self, loss: torch.Tensor, real: int) -> torch.Tensor:
        """The mean over the real rows of all processes.

        A model that takes `num_items_in_batch` has divided by their number in all processes, and the Trainer has
        multiplied by that of the processes.
        """
        shared = self.args.average_tokens_across_devices and (self.model_accepts_loss_kwargs or self.compute_loss_func)
        weight = loss.new_tensor(1.0 if shared else float(real))
        weighted = torch.where(weight > 0, loss * weight, torch.zeros_like(loss))
        total = self.accelerator.reduce(torch.stack([weighted, weight]), reduction="sum")
        return total[0] / total[1]  # pyright: ignore
