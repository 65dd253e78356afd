"""The head of a checkpoint: match its outputs to the dataset's classes, or initialise it anew for other classes."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from hfexp.tasks.base import NUMBER, PROBLEMS

SHOWN_CLASSES = 4
"""Class names that a message lists."""


@dataclass
class Head:
    """The changes that were made to a checkpoint's head."""

    new: list[str] = field(default_factory=list)
    """Tensors that were initialised at random, because those of the checkpoint belong to other classes."""
    moved: list[str] = field(default_factory=list)
    """Tensors whose rows were put into the order of the dataset's classes."""
    said: str | None = None
    """Message for the user; None if there was nothing to decide."""


def match_head(model: Any, stored: Any, labels: dict[str, Any], new_tensors: set[str], missing: set[str]) -> Head:
    """Give each class the row of the head that has its name; if the names differ, initialise the head anew.

    A head of the right size whose classes have no names (LABEL_0, ...) is kept, as `from_pretrained` would do.

    Args:
        model: the loaded model, with a head of the right size.
        stored: the checkpoint's own config.
        labels: `Task.model_fields` of the dataset.
        new_tensors: tensors that were not loaded, because the checkpoint lacks them (`missing`) or their size differs.
    """
    if not labels:
        return Head()
    tensors = _head_tensors(model)
    ours = [str(name) for name in labels.get("id2label", {}).values()]
    theirs = [str(stored.id2label[place]) for place in sorted(stored.id2label or {})]
    if not set(tensors) - missing:
        return Head()  # the checkpoint has no head
    nameless = all(name == f"LABEL_{place}" for place, name in enumerate(theirs))
    why = _why_foreign(stored, labels["problem_type"], ours, theirs, nameless)
    if why is None and set(tensors) & new_tensors:
        why = f"the checkpoint's has {len(theirs)} outputs, and {len(ours) or 1} are needed"
    if why is not None:
        loaded = sorted(set(tensors) - new_tensors)
        _start_anew(model, loaded)
        return Head(new=loaded, said=f"the head is new: {why}")
    if not ours or theirs == ours:
        return Head()
    if nameless:
        return Head(said=f"the checkpoint's classes have no names: its outputs are taken for {_shown(ours)}, in order")
    rows = torch.tensor([theirs.index(name) for name in ours])
    with torch.no_grad():
        for name, axis in tensors.items():
            parameter = model.get_parameter(name)
            parameter.copy_(parameter.index_select(axis, rows.to(parameter.device)))
    return Head(moved=sorted(tensors), said=f"the head's rows were put into the order of the classes: {_shown(ours)}")


def _why_foreign(stored: Any, problem: str, ours: list[str], theirs: list[str], nameless: bool) -> str | None:
    """Say why the checkpoint's outputs do not mean the dataset's labels; None if they do, as far as one can tell."""
    said = getattr(stored, "problem_type", None)
    of_numbers = PROBLEMS[NUMBER]
    if said is not None and said != problem and (nameless or of_numbers in (said, problem)):
        return f"the checkpoint's is for {said}, the task is {problem}"
    same = len(set(theirs)) == len(theirs) and sorted(theirs) == sorted(ours)
    if not ours or nameless or theirs == ours or same:
        return None
    return f"the checkpoint's classes are {_shown(theirs)}, the dataset's {_shown(ours)}"


def _shown(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(names[:SHOWN_CLASSES]) + more


def _head_tensors(model: Any) -> dict[str, int]:
    """Return the parameters whose size depends on the number of labels, and the axis along which it does."""
    if model.config.model_type == "timm_wrapper":
        classifiers = model.timm_model.get_classifier()
        modules = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)  # two in a distilled model
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        return {name: 0 for name, parameter in model.named_parameters() if id(parameter) in own}
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        other = {name: parameter.shape for name, parameter in type(model)(config).named_parameters()}
    pairs = ((name, parameter.shape, other[name]) for name, parameter in model.named_parameters())
    return {
        name: next(axis for axis, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        for name, ours, theirs in pairs
        if ours != theirs
    }


def _start_anew(model: Any, names: list[str]) -> None:
    """Initialise these parameters as the architecture does, and leave all others alone.

    Transformers' `initialize_weights` skips what is marked `_is_hf_initialized`; `from_pretrained` relies on the same
    mark to fill in the weights that a checkpoint lacks.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = True
    for name in names:
        model.get_parameter(name)._is_hf_initialized = False
        while name:
            name = name.rpartition(".")[0]
            model.get_submodule(name)._is_hf_initialized = False
    model.initialize_weights()
