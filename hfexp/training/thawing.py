"""Parameters that are frozen at first and trained later."""

from collections.abc import Sequence
from typing import Any

import torch

from hfexp.training.callbacks import TrainerMixin


class Thawing(TrainerMixin):
    """Mixin for a Transformers `Trainer` that trains the frozen parameters from some epoch on.

    Layers of batch normalisation that were frozen keep their statistics: updating them would undo what the layers
    above have learnt (F. Chollet, "Transfer learning & fine-tuning", keras.io/guides/transfer_learning).
    """

    thaw_at: float | None = None
    """Epochs after which the parameters in `frozen` are trained; None: never."""
    frozen: Sequence[torch.nn.Parameter] = ()
    """Parameters that `model.freeze` names."""

    @property
    def _is_thawed(self) -> bool:
        return self.thaw_at is not None and (self.state.epoch or 0) >= self.thaw_at

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare as if all were trained: the optimizer and `DistributedDataParallel` must know all parameters.

        Optimizers pass over a parameter without a gradient, and so does its weight decay.
        """
        if self.thaw_at is None:
            return super()._prepare_for_training(*args, **kwargs)
        set_trained(self.frozen, True)
        prepared = super()._prepare_for_training(*args, **kwargs)
        set_trained(self.frozen, self._is_thawed)
        return prepared

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the Trainer's step; the first one after `thaw_at` epochs thaws."""
        if self._is_thawed and not all(parameter.requires_grad for parameter in self.frozen):
            set_trained(self.frozen, True)
        return super().training_step(*args, **kwargs)


def set_trained(parameters: Sequence[torch.nn.Parameter], trained: bool) -> None:
    """Set whether parameters get gradients."""
    for parameter in parameters:
        parameter.requires_grad_(trained)
