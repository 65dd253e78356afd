"""Predictions of a trained model on raw inputs, which are processed exactly as its validation split was.

There is one documented input and output per task:

* Image classification. Input: an encoded image (`bytes`; JPEG, PNG, WebP, ...), base64 text of one, a uint8 array
  (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image. File names and URLs are no inputs: a served model must not
  read files of its server. Output: `label` (str, the most probable class), `score` (float, its probability) and
  `probabilities` (list of floats, in the order of `id2label`).

* Text classification. Input: a text (`str`). Output: as above; with several classes a text `labels` (list of str, the
  classes that are there, the most probable first) and `probabilities`.

* Text generation. Input: a text to be continued; for conversations, what the user says, or a list of messages (`role`,
  `content`). Output: `text` (str), only what is new.

A task says what its raw inputs are: `Task.inference_row` makes a row of one, as its dataset stores it.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import safetensors.torch
import torch

from hfexp.adapters import load_saved
from hfexp.config import Config, TransformConfig
from hfexp.errors import ConfigError, DataError, first_line
from hfexp.hub import explain_hub_errors
from hfexp.image_memory import row_of_images
from hfexp.model import build_own
from hfexp.outside import DamagedRecord, read_record
from hfexp.processing import Collator
from hfexp.row_arrays import Row
from hfexp.secrets import find_masked, mask_values
from hfexp.targets import instantiate, targets_in
from hfexp.tasks.base import Task
from hfexp.threads import map_in_threads
from hfexp.transforms import Transforms, apply, build_transforms

RECIPE_FILE = "hfexp.json"
FORMAT = 1
"""Of that file; a version reads its own and those before."""
TRUSTED_TARGETS = ("hfexp.tasks", "hfexp.images", "hfexp.text", "hfexp.language", "torchvision.transforms")
"""What a recipe may build by itself: it comes with a model, and so from outside."""
AHEAD = 16
"""Batches whose rows are sorted by their length."""
ALLOWED_VARIABLE = "HFEXP_ALLOWED_TARGETS"
"""Environment variable with further modules, separated by commas."""
REMOTE_CODE_VARIABLE = "HFEXP_TRUST_REMOTE_CODE"
"""Environment variable; 1: models that are served may run code that lies beside their weights."""


@dataclass(frozen=True)
class Trust:
    """What a saved model may run beside what hfexp ships."""

    targets: tuple[str, ...] = ()
    remote_code: bool = False
    """Code that lies beside the weights, as `auto_map` of their configuration names it."""


NO_TRUST = Trust()
_given: ContextVar[Trust] = ContextVar("trust", default=NO_TRUST)


@dataclass(frozen=True)
class Recipe:
    """How the inputs of a model are processed, as configuration nodes."""

    task: dict[str, Any]
    prepare: list[Any]
    evaluate: list[Any]
    id2label: dict[int, str] | None
    model: dict[str, Any] | None = None
    """What builds the model, if that is the user's own code."""

    def foreign_targets(self) -> list[str]:
        """`_target_`s that whoever loads the model must allow (and have)."""
        found = targets_in([self.task, self.prepare, self.evaluate, self.model])
        return sorted(target for target in found if not _is_below(target, TRUSTED_TARGETS))


@dataclass
class _Steps:
    """`transform` in the file."""

    prepare: list[Any]
    evaluate: list[Any]


@dataclass
class _Content:
    """The file."""

    task: dict[str, Any]
    transform: _Steps
    id2label: dict[int, str] | None
    model: dict[str, Any] | None = None
    format: int = 1


def recipe_of(config: Config, id2label: dict[int, str] | None) -> Recipe:
    """The part of a configuration that decides how a validation row becomes a model input."""
    task, prepare, evaluate, build = mask_values(
        [config.task, config.transform.prepare, config.transform.evaluate, config.model.build]
    )
    return Recipe(task, prepare, evaluate, id2label, build)


def save_recipe(directory: Path, recipe: Recipe) -> None:
    """Write it beside the weights that it belongs to."""
    content = {
        "format": FORMAT,
        "task": recipe.task,
        "transform": {"prepare": recipe.prepare, "evaluate": recipe.evaluate},
        "id2label": recipe.id2label,
        "model": recipe.model,
    }
    (directory / RECIPE_FILE).write_text(json.dumps(content, indent=1))


def load_recipe(directory: Path) -> Recipe:
    """Read it; nothing is built.

    Raises:
        ConfigError: there is none, or it can't be read.
    """
    try:
        content = read_record(directory / RECIPE_FILE, _Content)
    except FileNotFoundError as error:
        raise ConfigError(f"{directory} has no {RECIPE_FILE}: it was not saved by hfexp") from error
    except DamagedRecord as error:
        raise ConfigError(str(error)) from error
    if content.format > FORMAT:
        raise ConfigError(f"{directory / RECIPE_FILE} is of a newer hfexp (format {content.format}): update hfexp")
    return Recipe(content.task, content.transform.prepare, content.transform.evaluate, content.id2label, content.model)


@contextlib.contextmanager
def trusting(targets: Iterable[str] = (), remote_code: bool = False) -> Iterator[None]:
    """Trust these modules, and code beside the weights, in models that are loaded inside the block."""
    token = _given.set(Trust(tuple(targets), remote_code))
    try:
        yield
    finally:
        _given.reset(token)


def load_predictor(directory: Path, allowed: Iterable[str] = (), device: str | None = None) -> "Predictor":
    """Load a saved model (`save_pretrained` of model and processor, and a recipe) with all that belongs to it.

    Args:
        allowed: modules that its recipe may build from, beside hfexp's own, torchvision's transforms and those
            that the environment variable HFEXP_ALLOWED_TARGETS names.
        device: where to; by default the GPU if there is one.

    Raises:
        ConfigError: the recipe names something else.
    """
    import transformers

    recipe = load_recipe(directory)
    masked = find_masked([recipe.task, recipe.prepare, recipe.evaluate, recipe.model])
    if masked is not None:
        raise ConfigError(
            f"{directory / RECIPE_FILE}: {masked} was a secret, which is not kept: the model can't be built"
        )
    trusted = [*allowed, *_given.get().targets, *filter(None, os.environ.get(ALLOWED_VARIABLE, "").split(","))]
    for target in recipe.foreign_targets():
        if not _is_below(target, trusted):
            module = target.rpartition(".")[0]
            raise ConfigError(
                f"{directory / RECIPE_FILE} builds {target}: if you trust this model, set {ALLOWED_VARIABLE}={module}"
            )
    task: Task = instantiate(recipe.task, "task", trusted)
    remote_code = _given.get().remote_code or os.environ.get(REMOTE_CODE_VARIABLE) == "1"
    with explain_hub_errors("model", str(directory)):
        try:
            processor = getattr(transformers, task.processor_class).from_pretrained(
                directory, local_files_only=True, trust_remote_code=remote_code
            )
        except OSError as error:
            raise ConfigError(f"{directory} has no processor that can be read: {first_line(error)}") from error
        if recipe.model is not None:
            model = build_own(recipe.model, task, recipe.id2label, trusted)
            safetensors.torch.load_model(model, directory / "model.safetensors")
        else:
            model = load_saved(getattr(transformers, task.model_class), directory, remote_code)
    config = TransformConfig(prepare=recipe.prepare, evaluate=recipe.evaluate)
    transforms = build_transforms(config, processor, recipe.id2label, trusted)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model, processor, task, transforms, recipe.id2label)


def _is_below(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


class Predictor:
    """A model with everything between a raw input and an answer."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Task,
        transforms: Transforms,
        id2label: dict[int, str] | None = None,
        batch_size: int = 32,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            id2label: names of the classes; None: their numbers.
            batch_size: rows that the model gets at once.
            options: of `Task.respond`.
        """
        self.model = model
        self.processor = processor
        self.task = task
        self.id2label = id2label
        self.batch_size = batch_size
        self.options = dict(options or {})
        self.transforms = transforms
        self.collate = Collator(task, processor, None, 0)
        operations = transforms.evaluation.fixed
        self.decode, done = task.decoder(operations)
        self.operations = operations[done:]

    def predict(self, inputs: Iterable[Any], options: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """One row per raw input, with the columns of `Task.answer_types`.

        Args:
            options: of `Task.respond`, in place of the predictor's own.

        Raises:
            DataError: an input can't be read; the message names its row.
        """
        names = self.id2label or {}
        answers = [self.task.answer(output, names) for output in self._sound(inputs, options)]
        return pandas.DataFrame(answers, columns=None if answers else list(self.task.answer_types))

    def probabilities(self, inputs: Iterable[Any]) -> np.ndarray:
        """Probabilities of the classes, (N, num_labels) float32.

        Raises:
            DataError: an input can't be read; the message names its row.
        """
        outputs = list(self._sound(inputs))
        return np.stack(outputs) if outputs else np.zeros((0, len(self.id2label or {})), np.float32)

    def _sound(self, inputs: Iterable[Any], options: Mapping[str, Any] | None = None) -> Iterator[Any]:
        for number, output in enumerate(self.outputs(self.task.inference_row, inputs, options)):
            if isinstance(output, DataError):
                raise DataError(f"row {number}: {output}") from output
            yield output

    def outputs(
        self, to_row: Callable[[Any], Row], values: Iterable[Any], options: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """What the model says to each value, in their order, or the DataError that tells why it was not asked.

        Rows are decoded by several threads, ahead of the model.

        Args:
            to_row: makes a row as a dataset stores it.
            options: of `Task.respond`, in place of the predictor's own.
        """
        was_training = self.model.training
        self.model.eval()
        at_once = self.batch_size * (AHEAD if self.task.varying_shapes else 1)
        rows = map_in_threads(lambda value: self._inputs(to_row, value), values)
        try:
            while window := list(itertools.islice(rows, at_once)):
                yield from self._window(window, self.options if options is None else options)
        finally:
            self.model.train(was_training)

    def _window(self, window: list[Row | DataError], options: Mapping[str, Any]) -> list[Any]:
        """The model's outputs in place of the rows; those of about one length go together."""
        found: list[Any] = list(window)
        order = [place for place, row in enumerate(window) if not isinstance(row, DataError)]
        if self.task.varying_shapes:
            order.sort(key=lambda place: _length(window[place]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            outputs = self._respond([found[place] for place in places], options)
            for place, output in zip(places, outputs, strict=True):
                found[place] = output
        return found

    def _respond(self, rows: list[Row], options: Mapping[str, Any]) -> Sequence[Any]:
        batch = self.collate(rows)
        batch.pop("labels", None)
        weights = next(self.model.parameters())
        with torch.inference_mode():
            batch = {name: as_weights(tensor, weights) for name, tensor in batch.items()}
            return self.task.respond(self.model, batch, self.processor, options)

    @row_of_images
    def _inputs(self, to_row: Callable[[Any], Row], value: Any) -> Row | DataError:
        """One value as model inputs, as `ProcessedDataset` does it for a split without randomness."""
        try:
            row = to_row(value)
            if self.task.label_column is not None:
                # Tasks make `labels` of every row; these are taken out of the batch again.
                row = {self.task.label_column: 0, **row}
            row = self.decode(row)
            for operation in self.operations:
                row = apply(operation, row)
            return self.task.preprocess(row, self.processor)
        except DataError as error:
            return error
        except (TypeError, ValueError, RuntimeError) as error:
            return DataError(str(error) or type(error).__name__)


def _length(row: Any) -> int:
    return max((len(value) for value in row.values() if isinstance(value, list)), default=0)


def as_weights(tensor: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """On the device of the weights; floats in their precision too."""
    return tensor.to(weights.device, weights.dtype if tensor.is_floating_point() else None)
