"""Losses in place of the model's own: class weights, the focal loss, a function of the user's; and R-Drop's term."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hydra.errors import HydraException

from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.targets import instantiate, locate, parameters
from hfexp.tasks.base import CLASS, CLASSES, NUMBER, TAGS, TEXT, Task

BALANCED = "balanced"
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes logits (B, ...) and labels (B, ...); returns their mean loss over the rows (or labelled tokens), a scalar."""


class ClassWeights:
    """Cross entropy in which each row counts as much as the weight of its class says."""

    def __init__(self, weights: Sequence[float], smoothing: float = 0.0) -> None:
        """Set up the loss; `smoothing` is `trainer.args.label_smoothing_factor`."""
        self.weights, self.smoothing = torch.tensor(weights, dtype=torch.float32), smoothing

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the weighted loss, divided by the number of rows.

        torch itself divides by the sum of the batch's weights. Then a step of several batches would have another loss
        than the same rows in one batch.

        Args:
            labels: class ids (B,), or class probabilities (B, C) of mixed images.
        """
        weights = self.weights.to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits.float(), labels, weights, reduction="sum", label_smoothing=self.smoothing
        )
        return loss / len(labels)


class Focal:
    """Focal loss: cross entropy in which a row counts the less, the surer the model is of the right answer.

    (T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.) With several classes per row it
    is the mean over rows and classes of `torchvision.ops.sigmoid_focal_loss`, without its alpha.
    """

    def __init__(
        self, gamma: float = 2.0, class_weights: Sequence[float] | None = None, label_kind: str = CLASS
    ) -> None:
        """Set up the loss.

        Args:
            gamma: the focus; 0 gives the cross entropy.
            class_weights: weights by class id, from `trainer.class_weights`.
            label_kind: the task's kind of label.
        """
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma={gamma} must be at least 0, and finite")
        if label_kind == NUMBER:
            raise ValueError("it is for tasks with classes")
        self.gamma, self.label_kind = gamma, label_kind
        self.weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean over the rows.

        Args:
            labels: class ids (B,), class probabilities (B, C) of mixed images, or truth values (B, C).
        """
        if self.label_kind == CLASSES:
            from torchvision.ops import sigmoid_focal_loss

            return sigmoid_focal_loss(logits.float(), labels.float(), alpha=-1, gamma=self.gamma, reduction="mean")
        log_probabilities = logits.float().log_softmax(-1)
        # The gradient of x^gamma is infinite at 0 for a gamma below 1.
        doubts = -torch.expm1(log_probabilities).clamp(max=-torch.finfo(torch.float32).tiny)
        losses = -(doubts**self.gamma) * log_probabilities
        if self.weights is not None:
            losses = losses * self.weights.to(logits.device)
        if labels.is_floating_point():
            return (labels * losses).sum(-1).mean()
        return losses.gather(-1, labels[:, None]).mean()


def divergence(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean difference between the answers of two passes, the term that R-Drop adds to the loss.

    It is (KL(P||Q) + KL(Q||P)) / 2 of the answers P and Q for the same row (X. Liang et al., "R-Drop: Regularized
    Dropout for Neural Networks", NeurIPS 2021, equation 2).

    Args:
        logits: (2 N, C): those of all rows in the first pass, then those in the second one; N may be 0.
    """
    first, second = logits.float().log_softmax(-1).chunk(2)
    both = ((first.exp() - second.exp()) * (first - second)).sum() / 2
    return both / max(len(first), 1)


def build_loss(
    node: Mapping[str, Any],
    class_weights: Any,
    task: Task,
    id2label: Mapping[int, str] | None,
    count: Callable[[], Mapping[str, int] | None],
    smoothing: float,
    allowed: list[str],
) -> Loss | None:
    """Build the loss that `trainer.loss` or `trainer.class_weights` describes.

    None: the model, or the task, computes its own.

    Args:
        count: counts the training rows by class, which reads all labels; returns None if the rows are streamed.

    Raises:
        ConfigError: the settings contradict each other, or do not suit the task.
    """
    given: dict[str, Any] = {"label_kind": task.label_kind}
    if node and class_weights is not None:
        if "class_weights" not in parameters(locate(str(node.get("_target_")), "trainer.loss._target_", allowed)):
            raise ConfigError("trainer.loss and trainer.class_weights both set the loss: give one of them")
        given["class_weights"] = _weights(class_weights, task, id2label, count)
    elif class_weights is not None:
        return ClassWeights(_weights(class_weights, task, id2label, count), smoothing)
    if node and task.has_own_loss:
        raise ConfigError(f"trainer.loss can't replace the loss of {type(task).__name__}: leave it out")
    if smoothing and task.has_own_loss:
        raise ConfigError(f"trainer.args.label_smoothing_factor has no effect on {type(task).__name__}: leave it out")
    return _own_loss(node, task, len(id2label or ()), smoothing, allowed, given) if node else None


def _own_loss(
    node: Mapping[str, Any],
    task: Task,
    num_classes: int,
    smoothing: float,
    allowed: list[str],
    given: Mapping[str, Any],
) -> Loss:
    """Build the loss that a node describes; it gets those of the run-time objects `given` that its signature has."""
    if "_target_" not in node:
        raise ConfigError("trainer.loss must have a _target_, a function of logits and labels")
    if task.label_column is None or task.label_kind == TEXT:
        raise ConfigError("trainer.loss is for tasks with a column of labels; this task's loss is over tokens")
    if smoothing:
        raise ConfigError("trainer.args.label_smoothing_factor has no effect on trainer.loss: remove one of them")
    target = locate(str(node["_target_"]), "trainer.loss._target_", allowed)
    known = {name: value for name, value in given.items() if name in parameters(target)}
    try:
        loss: Any = instantiate({**node, "_partial_": not isinstance(target, type)}, "trainer.loss", allowed, **known)
    except (HydraException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer.loss: {node['_target_']} can't be built: {error.__cause__ or error}") from error
    if isinstance(loss, torch.nn.Module) and next(loss.parameters(), None) is not None:
        raise ConfigError(f"trainer.loss: {node['_target_']} has parameters, which would not be trained")
    if not callable(loss):
        raise ConfigError(f"trainer.loss: {node['_target_']} can't be called with logits and labels")
    try:
        inspect.signature(loss.forward if isinstance(loss, torch.nn.Module) else loss).bind("logits", "labels")
    except TypeError as error:
        raise ConfigError(f"trainer.loss: {node['_target_']} does not take (logits, labels): {error}") from error
    checked = functools.partial(_checked, loss, str(node["_target_"]))
    _try(checked, task, num_classes, str(node["_target_"]))
    return checked


def _try(loss: Loss, task: Task, num_classes: int, name: str) -> None:
    """Compute the loss of two made-up rows, so that a mistake in it shows before anything is loaded."""
    logits = torch.zeros(2, num_classes if task.label_kind != NUMBER else 1, requires_grad=True)
    ids = torch.zeros(2, dtype=torch.long)
    labels = {CLASS: ids, TAGS: ids, NUMBER: torch.zeros(2)}.get(task.label_kind, torch.zeros_like(logits))
    try:
        loss(logits, labels)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise ConfigError(f"trainer.loss: {name} fails on logits {tuple(logits.shape)}: {error}") from error


def _checked(loss: Callable[..., Any], name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    value = (loss.to(logits.device) if isinstance(loss, torch.nn.Module) else loss)(logits, labels)
    if not torch.is_tensor(value) or value.ndim != 0:
        shape = f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"
        raise ConfigError(f"trainer.loss: {name} returned {shape}, expected a scalar: the mean over the rows")
    return value


def _weights(
    given: Any, task: Task, id2label: Mapping[int, str] | None, count: Callable[[], Mapping[str, int] | None]
) -> list[float]:
    """Return a weight for each class, in the order of the ids.

    `balanced` gives a class the weight n / (C * n_c), so that each has the same share of the loss, as scikit-learn's
    `class_weight="balanced"` does (G. King and L. Zeng, "Logistic Regression in Rare Events Data", Political Analysis
    9, 2001). A class without training rows gets 1.
    """
    if task.label_kind not in (CLASS, TAGS) or not id2label:
        raise ConfigError(
            f"trainer.class_weights is for tasks with one class per row or word, not for {type(task).__name__}"
        )
    names = [id2label[number] for number in sorted(id2label)]
    if given == BALANCED:
        counts = count()
        if counts is None:
            raise ConfigError("trainer.class_weights=balanced can't count streamed rows: give weights by class")
        present = {name: counts[name] for name in names if counts.get(name)}
        total = sum(present.values())
        return [total / (len(present) * present[name]) if name in present else 1.0 for name in names]
    if not isinstance(given, Mapping):
        raise ConfigError(f"trainer.class_weights={given!r}: expected {BALANCED} or weights by class: {{NAME: 2.0}}")
    weights = {str(name): value for name, value in given.items()}
    for name, value in weights.items():
        if name not in names:
            raise ConfigError(
                f"trainer.class_weights: there is no class {name!r}.{did_you_mean(name, names)} "
                f"Classes: {one_of(names, 20)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(f"trainer.class_weights.{name}={value!r}: expected a number from 0 on")
    return [float(weights.get(name, 1.0)) for name in names]
