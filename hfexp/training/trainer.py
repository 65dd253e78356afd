"""The Trainer: it resumes, stops on signals, samples by (seed, epoch), and reads streams."""

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from hfexp.core.errors import ConfigError
from hfexp.core.outside import read_record
from hfexp.data.dataset import ProcessedDataset
from hfexp.data.sampling import EpochSampler
from hfexp.data.streaming import EvaluationStream, TrainingStream, as_it_is
from hfexp.tasks.base import Task
from hfexp.tasks.metrics import MetricSet
from hfexp.training.callbacks import SetEpochCallback, StopWhenDiverged, TrainerMixin
from hfexp.training.checkpoints import CheckpointMixin
from hfexp.training.timing import TimingMixin
from hfexp.training.weighting import WeightedLosses

# Trainer mixin that reads streams.


@dataclass
class _StreamState:
    """State of a stream that a checkpoint keeps beside the Trainer's own."""

    batches_per_epoch: int | None


class StreamTraining(TrainerMixin):
    """Mixin for a Transformers `Trainer` that reads streams, and resumes at the batch where training stopped."""

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, **kwargs: Any) -> Any:
        from accelerate.data_loader import DataLoaderShard

        if isinstance(dataset, TrainingStream):
            collate = self._get_collator_with_removed_columns(self.data_collator, description=description)
            dataset.configure(self.args, batch_size, collate)
            # Accelerate's `prepare` is left out: it would divide the stream among the processes once more.
            return DataLoaderShard(dataset, self.accelerator.device, batch_size=None, collate_fn=as_it_is)
        if isinstance(dataset, EvaluationStream):
            if self.args.world_size > 1:
                return self._dispatching_loader(dataset, description, batch_size * self.args.world_size)
            dataset.batch_size = batch_size
        return super()._get_dataloader(dataset, description, batch_size, **kwargs)

    def _dispatching_loader(self, dataset: EvaluationStream, description: str, batch_size: int) -> Any:
        """Return a data loader in which the first process makes whole batches, and each process gets its part of them.

        By default Accelerate makes one batch per process in the first one and concatenates them, which fails for
        texts of different lengths (`accelerate` 1.15, `DataLoaderDispatcher._fetch_batches`).
        """
        from accelerate.data_loader import prepare_data_loader
        from torch.utils.data import DataLoader

        dataset.batch_size = batch_size
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description=description),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=self.args.world_size,
            process_index=self.args.process_index,
            split_batches=True,
            put_on_device=self.accelerator.device_placement,
            dispatch_batches=True,
        )

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
        stream = self.train_dataset
        if isinstance(stream, TrainingStream) and resume_from_checkpoint is not None:
            stream.consumed = position[1]
            path = Path(str(resume_from_checkpoint), self._stream_file)
            if path.is_file():
                stream.batches_per_epoch = read_record(path, _StreamState).batches_per_epoch
        return position

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, TrainingStream):
            facts = _StreamState(self.train_dataset.batches_per_epoch)
            Path(output_dir, self._stream_file).write_text(json.dumps(asdict(facts)))

    @property
    def _stream_file(self) -> str:
        return f"stream_{self.args.process_index}.json"


class Trainer(CheckpointMixin, TimingMixin, StreamTraining, StopWhenDiverged, WeightedLosses, transformers.Trainer):
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
            self.remove_callback(SetEpochCallback)
            self.add_callback(SetEpochCallback(sampler))
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


def metric_function(task: Task, metrics: MetricSet) -> Callable[[transformers.EvalPrediction], dict[str, float]]:
    """Return the function that the Trainer calls after an evaluation to get scalars by name."""

    def compute_metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return metrics.scalars(dict(task.metric_inputs(prediction.predictions, prediction.label_ids)))  # pyright: ignore

    return compute_metrics


def trainer_class(config_target: str, allowed: list[str]) -> type[Trainer]:
    """Return the class that `trainer._target_` names.

    Raises:
        ConfigError: it is not a subclass of hfexp's own Trainer, whose checkpoints restore every weight.
    """
    from hfexp.core.targets import locate

    target = locate(config_target, "trainer._target_", allowed)
    if not (isinstance(target, type) and issubclass(target, Trainer)):
        raise ConfigError(f"trainer._target_={config_target} must be a subclass of hfexp.training.trainer.Trainer")
    return target
