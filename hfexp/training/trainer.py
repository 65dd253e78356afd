"""The Trainer: it resumes, stops on signals, samples by (seed, epoch), reads streams, and times itself."""

import contextlib
import functools
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import has_length

from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.outside import read_record
from hfexp.data.dataset import ProcessedDataset, WindowedDataset
from hfexp.data.sampling import EpochSampler, balanced_rows, preserved_rng, seed_cpu
from hfexp.data.streaming import EvaluationStream, TrainingStream, as_it_is
from hfexp.tasks.base import Task
from hfexp.tasks.metrics import MetricSet
from hfexp.training.auto_batch import AutoBatch
from hfexp.training.averaging import AveragedWeights
from hfexp.training.callbacks import SetEpochCallback, StopWhenDiverged, TrainerMixin
from hfexp.training.losses import Loss, divergence
from hfexp.training.rates import LearningRates
from hfexp.training.sharding import Sharding
from hfexp.training.soup import Soup
from hfexp.training.thawing import Thawing
from hfexp.training.weighting import IGNORED, WeightedLosses

# Time and memory of a training: seconds of waiting for data, of computing, and of evaluating and saving.


FILE = "timing.json"
"""File of a checkpoint that holds the `Sums`."""


@dataclass
class Sums:
    """Sums over a training up to a checkpoint, all its starts included: seconds, rows, and losses of steps."""

    seconds: float = 0.0
    data_seconds: float = 0.0
    aside_seconds: float = 0.0
    samples: int = 0
    loss: float = 0.0
    """Sum of the losses of the steps up to the last logged one."""
    unlogged_losses: list[float] = field(default_factory=list)
    """By process: the sum of its losses since then."""
    logged_step: int | None = None
    """Step of the last logged loss; None in a checkpoint from a version that has all losses in `loss`."""


class TimingMixin(TrainerMixin):
    """Mixin for a Transformers `Trainer` that adds rates to its training logs, and totals to its last log.

    Each training loss comes with `samples_per_second` and, for text, `tokens_per_second` (padding included), both of
    all processes together and without the time of evaluations; and with `data_time_share`, the share of that time in
    which the model waited for data. The last log has `train_data_seconds`, `train_compute_seconds`,
    `train_evaluate_and_save_seconds`, `peak_memory_mb` of the process and, per accelerator, `peak_gpu_<i>_memory_mb`
    of torch's allocator.

    A resumed training continues the sums in its checkpoint: its last log covers all the steps that count.
    """

    _sums_before: "Sums | None" = None
    """Sums in the checkpoint that this start resumed from; None in a new training."""
    _data_seconds = 0.0
    _aside_seconds = 0.0
    """Seconds spent on logging, evaluating and saving."""
    _aside_since: float | None = None
    _samples = 0
    _tokens = 0
    _started_at: float | None = None
    _last_logged: tuple[float, float, float, int, int] | None = None
    """Time, data seconds, seconds aside, samples and tokens when the last loss was logged."""

    @property
    def seconds_before(self) -> float:
        """Return the seconds of training up to the checkpoint that this start resumed from."""
        return self._sums_before.seconds if self._sums_before else 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        if self._last_logged is None:
            self._started_at = start
            self._last_logged = (start, 0.0, 0.0, 0, 0)
            self._continue_losses()
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._data_seconds += time.perf_counter() - start
        for batch in batches:
            self._samples += find_batch_size(batch) or 0
            tokens = batch.get("input_ids") if hasattr(batch, "get") else None
            self._tokens += tokens.numel() if torch.is_tensor(tokens) else 0
        return batches, count

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Count the time of the block as logging, evaluating and saving, not as training."""
        if self._aside_since is not None:
            yield
            return
        self._aside_since = time.perf_counter()
        try:
            yield
        finally:
            self._aside_seconds += time.perf_counter() - self._aside_since
            self._aside_since = None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.aside():
            return super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._last_logged is not None:
            logs |= self._rates()
        elif "train_runtime" in logs:
            logs |= self._totals(logs)
        super().log(logs, start_time)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            with contextlib.suppress(FileNotFoundError):  # from a version without sums: only this start is known
                self._sums_before = read_record(Path(checkpoint, FILE), Sums)

    def _continue_losses(self) -> None:
        """Restore the losses of the checkpoint, which Transformers (5.23) forgets.

        The next logged loss is the mean since the last logged one, and not only of the steps since the checkpoint.
        """
        if self._sums_before is None:
            return
        self._total_loss_scalar = self._sums_before.loss
        self._tr_loss += self._unlogged_loss(self._sums_before)
        if self._sums_before.logged_step is not None:
            self._globalstep_last_logged = self._sums_before.logged_step

    def _unlogged_loss(self, sums: "Sums") -> float:
        """Return this process's losses since the last logged one; with another number of processes, the mean."""
        losses = sums.unlogged_losses
        if len(losses) == self.args.world_size:
            return losses[self.args.process_index]
        return sum(losses) / max(len(losses), 1)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        unlogged = self.accelerator.gather(self._tr_loss).flatten().tolist()  # pyright: ignore
        if self.args.should_save:
            sums = replace(self._sums(), unlogged_losses=unlogged, logged_step=self._globalstep_last_logged)
            Path(output_dir, FILE).write_text(json.dumps(asdict(sums)))

    def _sums(self) -> "Sums":
        """Return the sums of all starts so far."""
        before, now = self._sums_before or Sums(), time.perf_counter()
        elapsed = now - self._started_at if self._started_at is not None else 0.0
        aside = self._aside_seconds + (now - self._aside_since if self._aside_since is not None else 0.0)
        resumed_at_end = self._started_at is None
        return Sums(
            before.seconds + elapsed,
            before.data_seconds + self._data_seconds,
            before.aside_seconds + aside,
            before.samples + self._samples * self.args.world_size,
            before.loss + self._unlogged_loss(before) if resumed_at_end else self._total_loss_scalar,
        )

    def _rates(self) -> dict[str, float]:
        """Return the rates since the last logged loss."""
        now = (time.perf_counter(), self._data_seconds, self._aside_seconds, self._samples, self._tokens)
        assert self._last_logged is not None
        wall, data, aside, samples, tokens = (b - a for a, b in zip(self._last_logged, now, strict=True))
        self._last_logged = now
        busy = max(wall - aside, 1e-9)
        processes = self.args.world_size  # every process gets as many rows as this one
        rates = {"samples_per_second": processes * samples / busy, "data_time_share": min(data / busy, 1.0)}
        return rates | ({"tokens_per_second": processes * tokens / busy} if tokens else {})

    def _totals(self, logs: dict[str, float]) -> dict[str, float]:
        """Return the totals for the last log: of the whole training, earlier starts included.

        Transformers takes `train_runtime` from the time of day, which may be set during training, unlike this clock.
        """
        sums = self._sums()
        parts = {"train_data_seconds": sums.data_seconds, "train_evaluate_and_save_seconds": sums.aside_seconds}
        parts["train_compute_seconds"] = sums.seconds - sums.data_seconds - sums.aside_seconds
        runtime, unknown = max(sums.seconds, 1e-9), 0 if self._sums_before else self._initial_global_step
        steps = self.state.global_step - unknown
        whole = {
            "train_runtime": runtime,
            "train_samples_per_second": sums.samples / runtime,
            "train_steps_per_second": steps / runtime,
            "train_loss": sums.loss / max(steps, 1),
        }
        return {**whole, **parts, **peak_memory()}


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process and of its CUDA devices, in MB (2^20 bytes)."""
    # getrusage(2) counts kilobytes, but bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            peak[f"peak_gpu_{index}_memory_mb"] = torch.cuda.max_memory_allocated(index) / 2**20
    return peak


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


class Trainer(
    AutoBatch,
    Soup,
    TimingMixin,
    StreamTraining,
    StopWhenDiverged,
    Thawing,
    AveragedWeights,
    LearningRates,
    WeightedLosses,
    Sharding,
    transformers.Trainer,
):
    """The Transformers `Trainer` with checkpoints that restore all weights, timing, keyed sampling and soft labels."""

    soft_labels: bool = False
    """True if training batches may carry class probabilities (MixUp, CutMix) in place of class ids."""

    loss_function: Loss | None = None
    """Loss in place of the model's own."""

    r_drop: float = 0.0
    """Weight of the difference between the answers of two passes with other dropout."""

    balanced_sampling: bool = False
    """Draw equally many rows of each class."""

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

    def draw_rows(self, rows: Any, generator: torch.Generator) -> Any:
        """Draw the training rows of an epoch; a subclass can override this to sample them in its own way.

        Every process gets a generator in the same state, seeded by (seed, epoch), and so does a run that resumes.

        Args:
            rows: the training split, a `datasets.Dataset`.

        Returns:
            Indices of rows, as many as there are rows; the same index may occur several times, or not at all. None:
            `trainer.args.train_sampling_strategy` decides.
        """
        return None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if isinstance(dataset, ProcessedDataset) and strategy in ("random", "sequential", "group_by_length"):
            lengths = dataset.lengths(self.model.main_input_name) if strategy == "group_by_length" else []  # pyright: ignore
            args = self.args
            group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            draws = type(self).draw_rows is not Trainer.draw_rows
            draw = functools.partial(self.draw_rows, dataset.rows) if draws else None
            if self.balanced_sampling:
                draw = functools.partial(balanced_rows, torch.tensor(dataset.rows[str(dataset.task.label_column)][:]))
            sampler = EpochSampler(len(dataset), self.args.seed, strategy == "random", lengths, group, draw)
            self.remove_callback(SetEpochCallback)
            self.add_callback(SetEpochCallback(sampler))
            return sampler
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Return the rows in their order, in which the report and the windows of a row expect them.

        With `group_by_length`, Transformers (5.23) would draw another order, from the model's random numbers.
        """
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) else None

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the evaluation; outputs of windows are merged into those of their rows before metrics are computed."""
        dataset, compute = getattr(dataloader, "dataset", None), self.compute_metrics
        if not isinstance(dataset, WindowedDataset) or compute is None:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        merged: list[Any] = []

        def of_rows(prediction: Any) -> dict[str, float]:
            merged[:] = dataset.merged(prediction.predictions)
            return compute(transformers.EvalPrediction(*merged))

        self.compute_metrics = of_rows
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute
        return output._replace(predictions=merged[0], label_ids=merged[1])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch; with R-Drop, in training, its mean over two passes and their divergence.

        Both passes are one batch of twice the rows, whose dropout differs, as in the authors' code (dropreg/R-Drop).
        """
        if not (self.r_drop and model.training and "labels" in inputs):
            loss, outputs = self._loss_of_pass(model, inputs, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss
        twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
        labels = twice["labels"]
        loss, outputs = self._loss_of_pass(model, twice, num_items_in_batch)
        logits = logits_of(outputs)
        if self.loss_per_token:
            if self._loss_shifts_labels:
                logits, labels = logits[:, :-1], labels[:, 1:]
            logits = logits[labels != IGNORED]
        loss = loss + self.r_drop * divergence(logits)
        return (loss, outputs) if return_outputs else loss

    def _loss_of_pass(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Any, Any]:
        """Compute the loss of the model, the task or `loss_function`, or the cross entropy of class probabilities.

        Class probabilities are labels (B, num_labels). Where each token has a label, `loss_function` gets the labelled
        tokens of all rows in place of rows.
        """
        if self.task is not None and self.task.has_own_loss:
            outputs = self.task.forward(model, inputs)
            return self.task.loss(outputs, inputs), {"logits": outputs}
        labels = inputs.get("labels")
        if self.label_smoother is not None and labels is not None and self.task is not None:
            # Transformers smooths the labels outside the model, whose decoder then makes no inputs of its own of them.
            own = self.task.unlabelled(self.accelerator.unwrap_model(model), inputs)
            inputs = {**own, "labels": labels}
        is_soft = self.soft_labels and torch.is_tensor(labels) and labels.is_floating_point()
        if labels is None or not (is_soft or self.loss_function):
            return super().compute_loss(model, inputs, True, num_items_in_batch)  # pyright: ignore
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = logits_of(outputs)
        if self.loss_function is not None:
            counted = labels != IGNORED if self.loss_per_token else slice(None)
            logits, labels = logits[counted], labels[counted]
            # The mean over no tokens is undefined; such a batch, e.g. a filler of an uneven one, counts nothing.
            return self.loss_function(logits, labels) if len(labels) else logits.sum() * 0, outputs
        smoothing = float(self.args.label_smoothing_factor)
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing), outputs

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Run the prediction step, and let the model write its answers too if the task's metrics compare texts.

        Texts come as `Task.generate` returns them, behind the reduced outputs. Transformers' `Seq2SeqTrainer` does the
        same with `predict_with_generate`. Sampling draws the same numbers in each evaluation, and none of training's.
        """
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.task is None or not self.task.generates or outputs is None:
            return loss, outputs, labels
        bare, batch = self.accelerator.unwrap_model(model), self._prepare_inputs(inputs)
        with _own_draws(self.args.device, self.args.seed):
            texts = self.task.generate(bare, batch, self.processing_class)
        return loss, (outputs, *texts), labels


@contextlib.contextmanager
def _own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Draw random numbers of the CPU and of a GPU from a seed, and restore the generators after the block."""
    on_gpu = device.type == "cuda"
    with preserved_rng(), torch.random.fork_rng([device] if on_gpu else []):
        seed_cpu(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits of a model's output; in a tuple, they are the first part that is no single number."""
    return outputs["logits"] if isinstance(outputs, dict) else next(part for part in outputs if part.ndim)


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


def check_own(kind: type[Trainer], options: Mapping[str, Any], streams: bool, balanced: bool) -> list[str]:
    """Check what a Trainer of the user's own gets: its options, and rows that it can draw.

    Args:
        options: `trainer.options`, values for attributes that the class declares.
        streams: whether the rows are streamed.
        balanced: `trainer.balanced_sampling`.
    """
    bases = kind.__mro__[: kind.__mro__.index(Trainer)]
    declared = {name: value for base in reversed(bases) for name, value in vars(base).items() if name[0] != "_"}
    # What has `__get__` is a method or a property, which a value of the object would not replace.
    declared = {name: value for name, value in declared.items() if not hasattr(value, "__get__")}
    problems = [
        f"unknown key 'trainer.options.{name}'.{did_you_mean(name, declared)} "
        f"{kind.__name__} declares: {one_of(declared) or 'none'}"
        for name in options
        if name not in declared
    ]
    for name, value in options.items():
        types = (int, float) if isinstance(declared.get(name), float) else type(declared.get(name))
        if isinstance(declared.get(name), bool | int | float | str) and not isinstance(value, types):
            problems.append(f"trainer.options.{name}={value}: expected a {type(declared[name]).__name__}")
    if kind._get_train_sampler is not Trainer._get_train_sampler:
        problems.append(f"{kind.__name__} overrides _get_train_sampler; override draw_rows(rows, generator) instead")
    if balanced and kind.draw_rows is not Trainer.draw_rows:
        problems.append(
            f"trainer.balanced_sampling and {kind.__name__}.draw_rows both choose the rows: remove one of them"
        )
    if streams and kind.draw_rows is not Trainer.draw_rows:
        problems.append(f"{kind.__name__}.draw_rows can't draw the rows of a stream; set dataset.streaming=false")
    return problems
