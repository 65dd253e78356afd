"""Losses that are means over all items of a step or an evaluation, however batches divide them.

An item is a row, or a labelled token where the task's loss is a mean over tokens. A model returns the mean over the
items of one batch. A step has several batches (gradient accumulation, processes), and so has an evaluation. They can
hold different numbers of items, so each batch's mean is weighted by its share of the items.

Upstream (Transformers 5.23) leaves this to the models: it passes `num_items_in_batch` to each model whose `forward`
takes `**kwargs`, and no longer divides the loss by the number of accumulated batches. But most classifiers ignore the
count and return the mean of their batch, so loss and gradients are too large by the number of accumulated batches
(huggingface/transformers#47688). Here no model gets a count, and every model is treated alike.

Accelerate fills up the last batches so that all processes have equally many rows. These fillers count in no loss.
"""

import functools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import recursively_apply
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput, has_length

from hfexp.core.errors import RunError
from hfexp.tasks.base import Task
from hfexp.training.callbacks import TrainerMixin

IGNORED = -100
"""Label that counts in no loss (`torch.nn.CrossEntropyLoss`)."""


class WeightedLosses(TrainerMixin):
    """Mixin for a Transformers `Trainer` that weights the loss of each batch by its share of the items."""

    loss_per_token: bool = False
    """True if the model's loss is a mean over the labelled tokens of a batch, not over its rows."""

    task: Task | None = None
    """The task: it may compute the loss in place of the model, and write answers to evaluated rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, False
        self._items: deque[Any] = deque()
        """Numbers of items of the next step's batches, in their order."""
        self._items_of_step: Any = 0
        """Number of items of the whole step, in all processes."""
        self._eval_sums = (0.0, 0, 0)
        """Sum of losses, number of items and number of rows of the current evaluation, in this process."""
        self._reduce: Callable[[Any, Any], Any] | None = None
        """In an evaluation: `preprocess_logits_for_metrics`."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the Trainer's batches without fillers, and count the items of their losses."""
        rows: list[tuple[int, int]] = []
        real_batches = (self._without_fillers(batch, rows) for batch in epoch_iterator)
        batches, _ = super().get_batch_samples(real_batches, num_batches, device)
        if self.loss_per_token and batches:
            tokens = [self._num_tokens(batch) for batch in batches]
            self._items_of_step = self._over_processes(torch.stack(tokens).sum(), device).clamp(min=1)
            self._items = deque(tokens)
        else:
            self._items_of_step = sum(everywhere for _, everywhere in rows)
            self._items = deque(own for own, _ in rows)
        return batches, None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run the Trainer's step, with the batch's own divisor in place of the number of accumulated batches."""
        items = self._items.popleft()
        # DistributedDataParallel averages the processes' gradients, but their sum is needed.
        counts = torch.is_tensor(items) or items > 0  # a division by a tensor of 0 gives infinity
        self.current_gradient_accumulation_steps = (
            self._items_of_step / (self.args.world_size * items) if counts else float("inf")
        )
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the Trainer's loss; return 0 for a batch without any labelled token, whose mean is undefined."""
        items = self._num_tokens(inputs) if self.loss_per_token and "labels" in inputs else None
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)  # pyright: ignore
        if items is not None:
            loss = torch.where(items > 0, loss, torch.zeros_like(loss))
        return (loss, outputs) if return_outputs else loss

    def _num_tokens(self, batch: dict[str, Any]) -> torch.Tensor:
        """Count the labelled tokens that a batch's loss is a mean over (a scalar)."""
        labels = batch["labels"]
        # A causal language model does not predict the first token of a row.
        return (labels[..., 1:] if self._loss_shifts_labels else labels).ne(IGNORED).sum()

    def _over_processes(self, count: torch.Tensor, device: Any) -> torch.Tensor:
        """Sum a count over all processes; without `average_tokens_across_devices`, assume that all are equal."""
        if self.args.world_size == 1 or not self.args.average_tokens_across_devices:
            return count * self.args.world_size
        return self.accelerator.reduce(count.to(device), reduction="sum")  # pyright: ignore

    def _without_fillers(self, batch: Any, rows: list[tuple[int, int]]) -> Any:
        """Cut the fillers off a training batch; append the numbers of real rows, here and in all, to `rows`."""
        size = find_batch_size(batch) or 0
        real, of_all = size, size * self.args.world_size
        if self.args.world_size > 1 and self._remainder and self.accelerator.gradient_state.end_of_dataloader:
            real, of_all = self._real_rows(size, self._remainder), self._remainder
        rows.append((real, of_all))
        return self._cut(batch, size, real)

    @functools.cached_property
    def _remainder(self) -> int:
        """Return the number of training rows in the last batches of all processes if these are not full; else 0.

        Accelerate (1.15) loses this number when an epoch is resumed (`SkipBatchSampler` has no `batch_size`).
        """
        if self.args.dataloader_drop_last or not has_length(self.train_dataset):
            return 0
        return len(self.train_dataset) % (self.args.train_batch_size * self.args.world_size)  # pyright: ignore

    def _real_rows(self, size: int, remainder: int) -> int:
        """Count the real rows of this process's last batch: real rows come first, in the order of the ranks."""
        return min(max(remainder - size * self.args.process_index, 0), size)

    def _cut(self, batch: Any, size: int, real: int) -> Any:
        """Return the real rows; if there are none, return a row that does not count, as the model needs an input."""
        if real == size:
            return batch
        kept: Any = recursively_apply(lambda tensor: tensor[: max(real, 1)], batch)
        if real == 0 and (self.loss_per_token or (self.task is not None and self.task.compares_rows)):
            kept["labels"] = torch.full_like(kept["labels"], IGNORED)
        return kept

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the Trainer's evaluation with the mean loss over all items.

        Raises:
            RunError: the evaluation has not scored every row of the split.
        """
        self._eval_sums = (0.0, 0, 0)
        reduce = self.preprocess_logits_for_metrics
        self._reduce, self.preprocess_logits_for_metrics = reduce, None
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._reduce, self.preprocess_logits_for_metrics = None, reduce
        scored = torch.tensor(self._eval_sums, dtype=torch.float64)
        if self.args.world_size > 1:
            scored = self.accelerator.reduce(scored.to(self.accelerator.device), reduction="sum")
        loss_sum, items, rows = scored.tolist()  # pyright: ignore
        if output.metrics and f"{metric_key_prefix}_loss" in output.metrics:
            output.metrics[f"{metric_key_prefix}_loss"] = loss_sum / items if items else math.nan
        dataset = getattr(dataloader, "dataset", None)
        if has_length(dataset) and rows != len(dataset):
            raise RunError(f"{description.lower()} has scored {rows:.0f} of {len(dataset)} rows")
        return output

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Run the Trainer's prediction step without fillers in the loss.

        The model's output is reduced to what the task keeps of each row (B, ...), and labels of tokens to zeros (B,),
        before they are gathered: those of a whole split would need as much memory as the split has tokens.
        """
        size = find_batch_size(inputs) or 0
        state, real = self.accelerator.gradient_state, size
        if self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0:
            # `gather_for_metrics` keeps the first `remainder` rows of all last batches.
            real = self._real_rows(size, state.remainder)
        kept = self._cut(inputs, size, real)
        loss, logits, labels = super().prediction_step(model, kept, prediction_loss_only, ignore_keys)  # pyright: ignore
        loss_sum, items, rows = self._eval_sums
        new = int(self._num_tokens(kept)) if self.loss_per_token and real else real
        added = float(loss) * new if loss is not None and new else 0.0
        self._eval_sums = (loss_sum + added, items + new, rows + real)
        if kept is not inputs:  # gathering needs equally many rows in all processes
            labels = None if labels is None else tuple(inputs[name] for name in self.label_names)
            labels = labels[0] if labels is not None and len(labels) == 1 else labels
            logits = recursively_apply(lambda t: torch.cat([t, t[-1:].expand(size - len(t), *t.shape[1:])]), logits)
        if self._reduce is not None and logits is not None:
            logits = self._reduce(logits, labels)
            if torch.is_tensor(labels) and (self.loss_per_token or (self.task and self.task.reduces_labels)):
                labels = labels.new_zeros(size)
        return loss, logits, labels  # pyright: ignore
