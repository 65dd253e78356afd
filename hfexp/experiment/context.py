"""What the parts of a run hand to each other: its inputs, the open run, and the outcome of its training."""

from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from hfexp.core.config import Config
from hfexp.core.provenance import Origin
from hfexp.data.transforms import Transforms
from hfexp.tasks.base import Task
from hfexp.tasks.metrics import MetricSet
from hfexp.tracking.environment import Environment
from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.run_directory import RunDirectory
from hfexp.training.losses import Loss


@dataclass
class Inputs:
    """Everything that a run needs, apart from the weights."""

    task: Task
    dataset: DatasetDict
    dropped: dict[str, int]
    """Number of unreadable samples left out, per split."""
    id2label: dict[int, str] | None
    processor: Any
    transforms: Transforms
    metrics: MetricSet
    callbacks: list[Any]
    """The user's own callbacks, from `trainer.callbacks`."""
    model_config: Any
    """The `transformers` config of the model; None for a model that the user's code builds."""
    loss: Loss | None = None
    """Loss in place of the model's own."""


@dataclass
class RunContext:
    """An open run, with everything that another process needs to take part in it."""

    config: Config
    """Config whose `launch` section `hfexp.launch.world.resolve` has resolved."""
    origin: Origin
    environment: Environment
    directory: RunDirectory
    started: float
    """Time when this start of the run began, in seconds of `time.monotonic`."""
    uri: str | None
    run_id: str | None
    terminal: bool
    """True if a person watches the output in a terminal."""


@dataclass
class Outcome:
    """Result of a training, in a form that can be sent to another process."""

    metrics: dict[str, float]
    metric_name: str
    best_metric: float | None
    best_step: int | None
    report: ClassReport | None
    train_seconds: float
    pruned_step: int | None = None
    """Step of the evaluation after which a sweep pruned the run; None if it did not."""
    model: Any = None
    """The trained model; None outside of the process that trained it."""
