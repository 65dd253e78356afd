"""The model as it is before the training, for losses that compare the trained model with it."""

import copy
from typing import Any

from torch import nn

from hfexp.training.adapters import is_adapted


def keep_reference(model: Any, accelerator: Any) -> Any:
    """Return a frozen copy of a model that is not yet trained, and let both compute without dropout.

    With dropout, the two would differ before the first step (TRL's `DPOConfig.disable_dropout`, on by default). A
    run that resumes builds the same model anew, before it loads the checkpoint.

    Args:
        accelerator: moves the copy to the device, and lets it compute in the same precision.

    Returns:
        The copy; a model with an adapter itself, whose weights below the adapter stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Others hand a number to a function, e.g. `attention_dropout` of a Llama, or `layerdrop`.
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if is_adapted(model):
        return model
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    return accelerator.prepare_model(frozen, evaluation_mode=True)
