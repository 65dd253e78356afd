"""Predictions of a trained model on raw inputs, which are processed exactly as its validation split was.

Each task has one documented input and output:

* Image classification. Input: an encoded image (`bytes`; JPEG, PNG, WebP, ...), base64 text of one, a uint8 array
  (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image. File names and URLs are refused: a served model must not
  read files of its server. Output: `label` (str, the most probable class), `score` (float, its probability) and
  `probabilities` (list of floats, in the order of `id2label`).

* Text classification. Input: a text (`str`). Output: as above; if a text can have several classes, `labels` (list of
  str, the classes of the text, the most probable first) and `probabilities`. For pairs, the input is a mapping with
  `text` and `text_pair`, or its JSON text, as for every input of several fields.

* Multiple choice. Input: a mapping with `text`, `choices` (list of str) and maybe `text_pair`. Output: `choice` (str),
  `score` (float, its probability) and `scores` (list of floats, in the order of the choices).

* Question answering. Input: a mapping with `question` and `context`. Output: `text` (str, the best answer, empty if
  there is none), `score` (float), `start` and `end` (places in the context), and `candidates`, a list of mappings with
  the same fields, the best first.

* Token classification. Input: a text, or a list of words, which count as a text with spaces between them. Output:
  `entities`, a list of mappings with `type` (str), `score` (float), `start` and `end` (places in the text) and `text`.

* Filling of masks. Input: a text with `[MASK]`, or the tokenizer's own mask token, in place of words. Output: `text`
  (str) with the best fillers, and `fillers`, a list of mappings with `mask` (int, from 1), `token` and `score`.

* Summarization and translation. Input: a text (`str`). Output: `text` (str), which the model has written.

* Text generation. Input: a text to continue; for conversations, the user's message, or a list of messages (`role`,
  `content`). Output: `text` (str), which holds only the new text.

* Embeddings. Input: a text. Output: `vector` (list of floats).

* Rewards. Input: a text with its prompt, or messages. Output: `score` (float).

`Task.inference_row` defines the raw inputs of a task: it turns one into a row as the task's dataset stores it.
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

from hfexp.core.config import Config, TransformConfig
from hfexp.core.errors import ConfigError, DataError, first_line
from hfexp.core.hub import explain_hub_errors
from hfexp.core.outside import DamagedRecord, read_record
from hfexp.core.secrets import find_masked, mask_values
from hfexp.core.targets import instantiate, is_below, targets_in
from hfexp.data.dataset import Collator
from hfexp.data.row_arrays import Row
from hfexp.data.threads import map_in_threads
from hfexp.data.transforms import Transforms, apply, build_transforms
from hfexp.data.windows import cut
from hfexp.tasks.base import TEXT, WINDOWS, Task
from hfexp.tasks.images import row_of_images
from hfexp.training.adapters import load_saved
from hfexp.training.model import build_own

RECIPE_FILE = "hfexp.json"
"""File beside the weights that says how inputs are processed."""
FORMAT = 1
"""Format of the recipe file; hfexp reads this one and all earlier ones."""
TRUSTED_TARGETS = ("hfexp.tasks", "torchvision.transforms")
"""Modules that every recipe may build from; a recipe comes with a model, so it may come from a stranger."""
AHEAD = 16
"""Batches whose rows are sorted by length together."""
ALLOWED_VARIABLE = "HFEXP_ALLOWED_TARGETS"
"""Environment variable that allows further modules, separated by commas."""
REMOTE_CODE_VARIABLE = "HFEXP_TRUST_REMOTE_CODE"
"""Environment variable that, set to 1, lets served models run code that lies beside their weights."""


@dataclass(frozen=True)
class Trust:
    """The code that a saved model may run in addition to what hfexp ships."""

    targets: tuple[str, ...] = ()
    """Modules that its recipe may build from."""
    remote_code: bool = False
    """True allows code that lies beside the weights, as `auto_map` in the model's config names it."""


NO_TRUST = Trust()
_trust: ContextVar[Trust] = ContextVar("trust", default=NO_TRUST)


@dataclass(frozen=True)
class Recipe:
    """The config nodes that say how the inputs of a model are processed."""

    task: dict[str, Any]
    prepare: list[Any]
    evaluate: list[Any]
    id2label: dict[int, str] | None
    model: dict[str, Any] | None = None
    """Config node that builds the model, if the user's own code does."""

    def foreign_targets(self) -> list[str]:
        """List the `_target_`s that whoever loads the model must allow and have installed."""
        targets = targets_in([self.task, self.prepare, self.evaluate, self.model])
        return sorted(target for target in targets if not is_below(target, TRUSTED_TARGETS))


@dataclass
class _Steps:
    """The `transform` section of the recipe file."""

    prepare: list[Any]
    evaluate: list[Any]


@dataclass
class _Content:
    """The content of the recipe file."""

    task: dict[str, Any]
    transform: _Steps
    id2label: dict[int, str] | None
    model: dict[str, Any] | None = None
    format: int = 1


def recipe_of(config: Config, id2label: dict[int, str] | None) -> Recipe:
    """Return the part of a config that decides how a validation row becomes a model input, with secrets masked."""
    task, prepare, evaluate, build = mask_values(
        [config.task, config.transform.prepare, config.transform.evaluate, config.model.build]
    )
    return Recipe(task, prepare, evaluate, id2label, build)


def save_recipe(directory: Path, recipe: Recipe) -> None:
    """Write the recipe beside the weights that it belongs to."""
    content = {
        "format": FORMAT,
        "task": recipe.task,
        "transform": {"prepare": recipe.prepare, "evaluate": recipe.evaluate},
        "id2label": recipe.id2label,
        "model": recipe.model,
    }
    (directory / RECIPE_FILE).write_text(json.dumps(content, indent=1))


def load_recipe(directory: Path) -> Recipe:
    """Read the recipe of a saved model, without building anything.

    Raises:
        ConfigError: there is no recipe, or it can't be read.
    """
    try:
        content = read_record(directory / RECIPE_FILE, _Content)
    except FileNotFoundError as error:
        raise ConfigError(f"{directory} has no {RECIPE_FILE}: it was not saved by hfexp") from error
    except DamagedRecord as error:
        raise ConfigError(str(error)) from error
    if content.format > FORMAT:
        raise ConfigError(f"{directory / RECIPE_FILE} is from a newer hfexp (format {content.format}); update hfexp")
    return Recipe(content.task, content.transform.prepare, content.transform.evaluate, content.id2label, content.model)


@contextlib.contextmanager
def trusting(targets: Iterable[str] = (), remote_code: bool = False) -> Iterator[None]:
    """Trust `targets`, and code beside the weights if `remote_code` is set, for models loaded inside the block."""
    token = _trust.set(Trust(tuple(targets), remote_code))
    try:
        yield
    finally:
        _trust.reset(token)


def load_predictor(directory: Path, allowed: Iterable[str] = (), device: str | None = None) -> "Predictor":
    """Load a saved model (`save_pretrained` of model and processor, and a recipe) with its processing.

    Args:
        allowed: modules that its recipe may build from, in addition to hfexp's own, torchvision's transforms and
            those that the environment variable HFEXP_ALLOWED_TARGETS names.
        device: device for the model; by default the GPU if there is one.

    Raises:
        ConfigError: the recipe names other modules, or it or the processor can't be read.
    """
    import transformers

    recipe = load_recipe(directory)
    masked = find_masked([recipe.task, recipe.prepare, recipe.evaluate, recipe.model])
    if masked is not None:
        raise ConfigError(
            f"{directory / RECIPE_FILE}: {masked} was a secret, which is not saved, so the model can't be built"
        )
    trusted = [*allowed, *_trust.get().targets, *filter(None, os.environ.get(ALLOWED_VARIABLE, "").split(","))]
    for target in recipe.foreign_targets():
        if not is_below(target, trusted):
            module = target.rpartition(".")[0]
            raise ConfigError(
                f"{directory / RECIPE_FILE} builds {target}; if you trust this model, set {ALLOWED_VARIABLE}={module}"
            )
    task: Task = instantiate(recipe.task, "task", trusted)
    remote_code = _trust.get().remote_code or os.environ.get(REMOTE_CODE_VARIABLE) == "1"
    with explain_hub_errors("model", str(directory)):
        try:
            processor = getattr(transformers, task.processor_class).from_pretrained(
                directory, local_files_only=True, trust_remote_code=remote_code
            )
        except OSError as error:
            raise ConfigError(f"the processor in {directory} can't be read: {first_line(error)}") from error
        task.fit_processor(processor)
        if recipe.model is not None:
            model = build_own(recipe.model, task, recipe.id2label, trusted)
            safetensors.torch.load_model(model, directory / "model.safetensors")
        else:
            model = load_saved(getattr(transformers, task.model_class), directory, remote_code)
    config = TransformConfig(prepare=recipe.prepare, evaluate=recipe.evaluate)
    transforms = build_transforms(config, processor, recipe.id2label, trusted)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model, processor, task, transforms, recipe.id2label)


class Predictor:
    """A model with all steps from a raw input to an answer."""

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
        """Keep the model and what prepares its inputs.

        Args:
            id2label: names of the classes; None uses their ids.
            batch_size: rows that the model gets at once.
            options: options of `Task.respond`.
        """
        self.model = model
        self.processor = processor
        self.task = task
        self.id2label = id2label
        task.set_classes(id2label)
        self.batch_size = batch_size
        self.options = dict(options or {})
        self.transforms = transforms
        self.collate = Collator(task, processor, None, 0)
        operations = transforms.evaluation.fixed
        self.decode, done = task.decoder(operations)
        self.operations = operations[done:]

    def predict(self, inputs: Iterable[Any], options: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """Return one row per raw input, with the columns of `Task.answer_types`.

        Args:
            options: options of `Task.respond`, instead of the predictor's own.

        Raises:
            DataError: an input can't be read; the message names its row.
        """
        names = self.id2label or {}
        answers = [self.task.answer(output, names) for output in self._valid_outputs(inputs, options)]
        return pandas.DataFrame(answers, columns=None if answers else list(self.task.answer_types))

    def probabilities(self, inputs: Iterable[Any]) -> np.ndarray:
        """Return the probabilities of the classes, (N, num_labels) float32.

        Raises:
            DataError: an input can't be read; the message names its row.
        """
        outputs = list(self._valid_outputs(inputs))
        return np.stack(outputs) if outputs else np.zeros((0, len(self.id2label or {})), np.float32)

    def _valid_outputs(self, inputs: Iterable[Any], options: Mapping[str, Any] | None = None) -> Iterator[Any]:
        for number, output in enumerate(self.outputs(self.task.inference_row, inputs, options)):
            if isinstance(output, DataError):
                raise DataError(f"row {number}: {output}") from output
            yield output

    def outputs(
        self, to_row: Callable[[Any], Row], values: Iterable[Any], options: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """Yield the model's output for each value, in order, or the DataError of a value that can't be read.

        Several threads decode rows ahead of the model.

        Args:
            to_row: turns a value into a row as a dataset stores it.
            options: options of `Task.respond`, instead of the predictor's own.
        """
        was_training = self.model.training
        self.model.eval()
        at_once = self.batch_size * (AHEAD if self.task.varying_shapes else 1)
        rows = map_in_threads(lambda value: self._inputs(to_row, value), values)
        try:
            while window := list(itertools.islice(rows, at_once)):
                yield from self._predict_window(window, self.options if options is None else options)
        finally:
            self.model.train(was_training)

    def _predict_window(self, window: list[Row | DataError], options: Mapping[str, Any]) -> list[Any]:
        """Replace the rows of a window by the model's outputs; rows of similar length share a batch."""
        results: list[Any] = list(window)
        order = [index for index, row in enumerate(window) if not isinstance(row, DataError)]
        if self.task.varying_shapes:
            order.sort(key=lambda index: _length(window[index]))
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            outputs = self._respond([results[index] for index in indices], options)
            for index, output in zip(indices, outputs, strict=True):
                results[index] = output
        return results

    def _respond(self, rows: list[Row], options: Mapping[str, Any]) -> Sequence[Any]:
        if "stored" in rows[0]:
            return self._merged(rows, options)
        batch = self.collate(rows)
        batch.pop("labels", None)
        weights = next(self.model.parameters())
        with torch.inference_mode():
            batch = {
                name: as_weights(value, weights) if torch.is_tensor(value) else value for name, value in batch.items()
            }
            return self.task.respond(self.model, batch, self.processor, options)

    def _merged(self, rows: list[Row], options: Mapping[str, Any]) -> list[Any]:
        """Run the model on the windows of rows and merge their outputs.

        Args:
            rows: each the stored row and its `inputs` after the operations.
        """
        windows = [cut(row["inputs"]) for row in rows]
        inputs = [self.task.preprocess(window, self.processor) for of_row in windows for window in of_row]
        batches = [inputs[start : start + self.batch_size] for start in range(0, len(inputs), self.batch_size)]
        outputs = iter(np.concatenate([self.scores(batch)[0] for batch in batches]))
        return [
            self.task.merge(
                row["stored"], row["inputs"], np.stack(list(itertools.islice(outputs, len(of_row)))), options
            )
            for row, of_row in zip(rows, windows, strict=True)
        ]

    def scores(self, inputs: list[Row]) -> tuple[Any, torch.Tensor]:
        """Compute what the Trainer's evaluation keeps of some rows of model inputs.

        Returns:
            The model's reduced outputs, (B, ...), or a tuple of them and of what the task generates; and the labels,
            (B, ...).
        """
        task, batch, weights = self.task, self.collate(inputs), next(self.model.parameters())
        labels = batch["labels"]
        batch = {name: as_weights(value, weights) for name, value in batch.items()} | {
            "labels": labels.to(weights.device)
        }
        with torch.inference_mode():
            scores = task.preprocess_logits(task.forward(self.model, batch), batch["labels"]).cpu().numpy()
            if not task.generates:
                return scores, labels
            written = task.generate(self.model, batch, self.processor)
            return (scores, *(part.cpu().numpy() for part in written)), labels

    @row_of_images
    def _inputs(self, to_row: Callable[[Any], Row], value: Any) -> Row | DataError:
        """Turn one value into model inputs, as `ProcessedDataset` does for a split without randomness."""
        try:
            row = to_row(value)
            if self.task.label_column is not None and self.task.label_kind != TEXT:
                # Tasks compute `labels` of every row, so it needs a label; `_respond` removes them from the batch.
                row = {self.task.label_column: self.task.no_label, **row}
            inputs = self.decode(row)
            for operation in self.operations:
                inputs = apply(operation, inputs)
            if WINDOWS in inputs:
                return {"stored": row, "inputs": inputs}
            return self.task.preprocess(inputs, self.processor)
        except DataError as error:
            return error
        except (TypeError, ValueError, RuntimeError) as error:
            return DataError(str(error) or type(error).__name__)


def _length(row: Any) -> int:
    row = row.get("inputs", row)
    return max((len(value) for value in row.values() if isinstance(value, list)), default=0)


def as_weights(tensor: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Move a tensor to the device of the weights; floats also take their dtype."""
    return tensor.to(weights.device, weights.dtype if tensor.is_floating_point() else None)
