"""The Trainer: it resumes, stops on signals, and samples by (seed, epoch)."""

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfexp.core.errors import ConfigError, Terminated, exit_code
from hfexp.core.signals import count_once, handled
from hfexp.data.dataset import ProcessedDataset
from hfexp.data.sampling import EpochSampler
from hfexp.tasks.base import Task
from hfexp.tasks.scoring import MetricSet
from hfexp.training.checkpoints import TrueCheckpoints
from hfexp.training.divergence import StopWhenDiverged
from hfexp.training.stream_training import StreamTraining
from hfexp.training.timing import Timed
from hfexp.training.weighting import WeightedLosses


class Trainer(TrueCheckpoints, Timed, StreamTraining, StopWhenDiverged, WeightedLosses, transformers.Trainer):
    """The Transformers `Trainer` with checkpoints that restore all weights, timing, keyed sampling and soft labels."""

    soft_labels: bool = False
    """True if training batches may carry class probabilities (MixUp, CutMix) in place of class ids."""

    finish_batch: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Last step of making a batch (normalisation), done on the model's device."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        return self.finish_batch(inputs) if self.finish_batch else inputs

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the Trainer's optimizer, and keep Accelerate (1.15) from searching for `lomo_optim` twice a step.

        If the package is not installed, the search goes through all directories of `sys.path`, which takes 0.2 ms on a
        local disk. None in `sys.modules` ends it at once.
        """
        if importlib.util.find_spec("lomo_optim") is None:
            sys.modules["lomo_optim"] = None  # pyright: ignore[reportArgumentType]
        return super().create_optimizer(*args, **kwargs)

    @functools.cached_property
    def _known_operations(self) -> dict[tuple[int, ...], int]:
        """Return the number of floating point operations by batch shape."""
        return {}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the Trainer's count, cached by batch shape: the Trainer counts all parameters at every step."""
        shape = tuple(getattr(inputs.get(getattr(self.model, "main_input_name", "")), "shape", ()))
        if shape not in self._known_operations:
            self._known_operations[shape] = super().floating_point_ops(inputs)
        return self._known_operations[shape]

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """Return the Trainer's loader with a generator of its own for worker seeds; an evaluation drops no rows.

        Without that generator, each pass over the data (with persistent workers only the first one) would shift the
        model's random numbers.
        """
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return self._with_own_generator(super()._get_dataloader(*args, is_training=is_training, **kwargs))
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the Trainer's loader with a fresh generator, also where it is kept (persistent workers)."""
        return self._with_own_generator(super().get_eval_dataloader(eval_dataset))

    def _with_own_generator(self, dataloader: Any) -> Any:
        # Accelerate's data loader delegates iteration to an inner one.
        getattr(dataloader, "base_dataloader", dataloader).generator = torch.Generator().manual_seed(self.args.seed)
        return dataloader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if isinstance(dataset, ProcessedDataset) and strategy in ("random", "sequential", "group_by_length"):
            lengths = dataset.lengths(self.model.main_input_name) if strategy == "group_by_length" else []  # pyright: ignore
            args = self.args
            group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            sampler = EpochSampler(len(dataset), self.args.seed, strategy == "random", lengths, group)
            self.remove_callback(TellEpoch)
            self.add_callback(TellEpoch(sampler))
            return sampler
        return super()._get_train_sampler(train_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the Trainer's loss, or for class probabilities (B, num_labels) their cross entropy."""
        labels = inputs.get("labels")
        if not (self.soft_labels and torch.is_tensor(labels) and labels.is_floating_point()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        smoothing = float(self.args.label_smoothing_factor)
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss


class TellEpoch(TrainerCallback):
    """Callback that tells the sampler its epoch, which determines the order of the samples.

    The Trainer does so through the data loader, which does not reach the sampler when several processes resume in
    mid-epoch (`accelerate` 1.15, `skip_first_batches` around a `BatchSamplerShard`): they would take the samples of
    another epoch.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class StopOnSignal(TrainerCallback):
    """Callback for SIGTERM and SIGHUP: finish the step, write a checkpoint, and end the run (exit code 143 or 129).

    Outside of training the run ends at once, as it does on a second SIGTERM. At the end of an epoch the checkpoint
    waits for that epoch's evaluation, which a resumed run would not repeat.
    """

    def __init__(self) -> None:
        self.requested = False
        self._asked: list[int] = []
        """Signals received, in their order."""
        self._training = False
        self._handled = contextlib.ExitStack()

    def __enter__(self) -> "StopOnSignal":
        self._handled.enter_context(handled(self._request))
        return self

    def __exit__(self, *exception: object) -> None:
        self._handled.close()

    @property
    def ending(self) -> Terminated:
        """Return the exception that ends the run; its exit code is that of the first signal."""
        return Terminated(exit_code(self._asked[0])) if self._asked else Terminated()

    @property
    def due(self) -> bool:
        """Return True if the step that ends now is the last one."""
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        count_once(number)
        if number in self._asked or not self._training:
            raise Terminated(exit_code(number))
        self._asked.append(number)
        self.requested = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        if self.requested:
            raise self.ending

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last_of_epoch = control.should_training_stop or float(state.epoch or 0).is_integer()
        if self.due and not last_of_epoch:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.due:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.due:
            raise self.ending


def metric_function(task: Task, metrics: MetricSet) -> Callable[[transformers.EvalPrediction], dict[str, float]]:
    """Return the function that the Trainer calls after an evaluation to get scalars by name."""

    def compute_metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return metrics.scalars(dict(task.metric_inputs(prediction.predictions, prediction.label_ids)))  # pyright: ignore

    return compute_metrics


def early_stopping(patience: int | None, threshold: float) -> list[TrainerCallback]:
    """Return the callback for `trainer.early_stopping_patience`, if that is set."""
    return [] if patience is None else [transformers.EarlyStoppingCallback(patience, threshold)]


def trainer_class(config_target: str, allowed: list[str]) -> type[Trainer]:
    """Return the class that `trainer._target_` names.

    Raises:
        ConfigError: it is not a subclass of hfexp's own Trainer, whose checkpoints restore every weight.
    """
    from hfexp.core.targets import locate

    found = locate(config_target, "trainer._target_", allowed)
    if not (isinstance(found, type) and issubclass(found, Trainer)):
        raise ConfigError(f"trainer._target_={config_target} must be a subclass of hfexp.training.trainer.Trainer")
    return found
