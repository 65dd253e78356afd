"""Save a trained model as an MLflow model, and load it for `mlflow.pyfunc.load_model` and `mlflow models serve`.

The model's directory holds:
    MLmodel             flavors python_function (this module) and, where the task has a pipeline, transformers
    model/              weights, processor, recipe and model card: `from_pretrained` reads this directory
    components/         the processor once more, where MLflow's transformers flavor looks for it
    code/hfexp/         this package, so that the model loads where it is not installed
    requirements.txt, python_env.yaml, conda.yaml, input_example.json
"""

import contextlib
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from hfexp.core.errors import ConfigError, DataError, RunError
from hfexp.core.machine import installed_packages
from hfexp.inference.predictor import Predictor, Recipe, load_predictor, load_recipe, save_recipe, trusting
from hfexp.tasks.base import Task
from hfexp.training import adapters
from hfexp.training.adapters import base_of, class_of, is_adapted

WEIGHTS = "model"
"""Folder of the weights inside an MLflow model."""
PACKAGES = (
    "datasets", "hydra-core", "mlflow", "numpy", "omegaconf", "pandas", "pillow", "safetensors", "torch",
    "torchvision", "transformers",
)  # fmt: skip
"""Distributions that a saved model needs to load and to predict."""


class ServedModel:
    """The Python model that MLflow loads; it predicts on tables, lists and arrays of raw inputs."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """Return one row of predictions per input; `hfexp.inference` documents both.

        Raises:
            MlflowException: an input can't be read, or an option is wrong (a server answers with status 400).
        """
        from mlflow.exceptions import MlflowException

        try:
            self.predictor.task.check_options(params or {})
            return self.predictor.predict(_values(model_input, self.predictor.task), params or {})
        except (DataError, ConfigError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def get_raw_model(self) -> Any:
        """Return the Transformers model, for `PyFuncModel.get_raw_model`."""
        return self.predictor.model


def _load_pyfunc(path: str) -> ServedModel:
    """Load a model for MLflow, which calls this function of the `loader_module` by its name."""
    return ServedModel(load_predictor(Path(path)))


def input_fields(task: Task) -> dict[str, Any]:
    """Return the columns of the raw inputs and their types.

    A single one is named as the task calls it, or as the first of its columns that is not the label.
    """
    first = next(name for name in task.columns if name != task.label_column)
    return dict(task.raw_fields) or {task.raw_column or first: task.raw_type}


def input_table(task: Task, inputs: list[Any]) -> pandas.DataFrame:
    """Return raw inputs as a table, as MLflow passes them to a model."""
    return pandas.DataFrame(inputs if task.raw_fields else {next(iter(input_fields(task))): inputs})


def _values(model_input: Any, task: Task) -> list[Any]:
    """Extract the raw inputs from what MLflow passes: a table, a dict of columns, a list of rows, or plain values."""
    if task.raw_fields:
        return _mappings(model_input)
    column = next(iter(input_fields(task)))
    if isinstance(model_input, pandas.DataFrame | dict):
        if column not in model_input:
            raise DataError(f"there is no column {column!r}; the columns are: {', '.join(map(str, model_input))}")
        model_input = model_input[column]
    if isinstance(model_input, np.ndarray) and model_input.dtype == np.uint8:
        return list(model_input) if model_input.ndim == 4 else [model_input]
    values = list(np.atleast_1d(model_input)) if isinstance(model_input, np.ndarray) else model_input
    values = [values] if isinstance(values, str | bytes) else values
    return [value[column] if isinstance(value, dict) and column in value else value for value in values]


def _mappings(model_input: Any) -> list[Any]:
    """Extract raw inputs of several fields."""
    if isinstance(model_input, dict):
        is_table = all(isinstance(values, list | np.ndarray) for values in model_input.values())
        model_input = pandas.DataFrame(model_input) if is_table else [model_input]
    rows = model_input.to_dict("records") if isinstance(model_input, pandas.DataFrame) else list(model_input)
    return [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
        if isinstance(row, dict)
        else row
        for row in rows
    ]


@dataclass(frozen=True)
class SavedModel:
    """An MLflow model on disk."""

    path: Path
    flavors: tuple[str, ...]
    """`python_function` and maybe `transformers`; empty for a user's own torch module, which gets no MLmodel."""

    @property
    def weights(self) -> Path:
        """Return the directory that `from_pretrained` reads."""
        return self.path / WEIGHTS


def save_mlflow_model(
    model: Any,
    processor: Any,
    task: Task,
    recipe: Recipe,
    directory: Path,
    *,
    example: bytes | str | dict[str, Any],
    weights: Path | None = None,
    card: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> SavedModel:
    """Write the directory that this module's docstring describes; replace an existing one.

    Args:
        example: one raw input, encoded; MLflow keeps it as the input example.
        weights: directory where `save_pretrained` has already written model and processor; its files are reused.
        card: text of the model card.
        metadata: plain values for MLmodel.
    """
    from transformers import PreTrainedModel

    shutil.rmtree(directory, ignore_errors=True)
    target = directory / WEIGHTS
    target.mkdir(parents=True)
    if weights is None:
        save_weights(model, processor, target)
    else:
        shutil.copytree(weights, target, copy_function=_link_or_copy, dirs_exist_ok=True)
    save_recipe(target, recipe)
    if card is not None:
        (target / "README.md").write_text(card)
    if not isinstance(base_of(model), PreTrainedModel):
        return SavedModel(directory, ())
    return SavedModel(directory, _write_flavors(model, processor, task, directory, example, metadata))


def save_weights(model: Any, processor: Any, directory: Path) -> None:
    """Save model and processor for `from_pretrained`; save a user's own torch module as model.safetensors."""
    if hasattr(model, "save_pretrained"):
        adapters.save(model, directory)
    else:
        from safetensors.torch import save_model

        save_model(model, str(directory / "model.safetensors"))
    processor.save_pretrained(directory)


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link weights if the file system can (they are large and never written in place); copy other files."""
    try:
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_flavors(
    model: Any, processor: Any, task: Task, directory: Path, example: Any, metadata: dict[str, Any] | None
) -> tuple[str, ...]:
    """Write MLmodel and its companion files around the saved weights; return the names of the flavors."""
    staging = directory / ".envelope"
    with quiet_mlflow():
        import mlflow.pyfunc
        from mlflow.models import Model

        spec = Model()
        mlflow.pyfunc.save_model(
            path=str(staging),
            loader_module="hfexp.inference.mlflow_model",
            code_paths=[str(Path(__file__).parents[1])],
            mlflow_model=spec,
            signature=signature(task),
            input_example=input_table(task, [example]),
            pip_requirements=requirements(model),
            metadata=metadata,
        )
    for name in ("uv.lock", "pyproject.toml", ".python-version"):  # MLflow copies them from the current directory
        (staging / name).unlink(missing_ok=True)
    shutil.rmtree(staging / "code" / "hfexp" / "commands" / "project", ignore_errors=True)  # what `hfexp init` writes
    for path in staging.iterdir():
        path.rename(directory / path.name)
    staging.rmdir()
    spec.flavors["python_function"]["data"] = WEIGHTS
    flavor = _transformers_flavor(model, processor, task)
    if flavor is not None:
        (component,) = flavor["components"]
        place = directory / "components" / component
        place.mkdir(parents=True)
        processor.save_pretrained(place)
        if not any(place.iterdir()):  # timm's processor saves no file: its settings are in the model's config
            shutil.copy2(directory / WEIGHTS / "config.json", place)
        spec.add_flavor("transformers", **flavor)
    spec.model_size_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    spec.save(str(directory / "MLmodel"))
    return tuple(sorted(spec.flavors))


@contextlib.contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Silence MLflow's warnings about itself: deprecated pandas calls (models/utils.py) and hints for agents."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="mlflow")
        yield


def signature(task: Task) -> Any:
    """Return MLflow's signature: the types of the task's documented input, output and options."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    outputs = [ColSpec(_mlflow_kind(kind), name) for name, kind in task.answer_types.items()]
    options = [ParamSpec(name, _mlflow_type(value), value) for name, value in task.serving_options().items()]
    inputs = [
        ColSpec(_mlflow_kind(kind), name, required=name not in task.defaults)
        for name, kind in input_fields(task).items()
    ]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(options) if options else None)  # pyright: ignore


def _mlflow_kind(kind: Any) -> Any:
    """Return MLflow's type of a field of an input or answer, by its type in `Task.answer_types`."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Object, Property

    if isinstance(kind, dict):
        return Array(Object([Property(name, _mlflow_kind(part)) for name, part in kind.items()]))
    return {"doubles": Array(DataType.double), "strings": Array(DataType.string)}.get(kind) or DataType[kind]


def _mlflow_type(value: Any) -> Any:
    """Return MLflow's type of a plain value."""
    from mlflow.types import DataType

    types = {bool: DataType.boolean, int: DataType.long, float: DataType.double, str: DataType.string}
    return types[type(value)]


def requirements(model: Any) -> list[str]:
    """Return the packages that loading the model needs, at their installed versions (without parts such as `+cpu`)."""
    names = [*PACKAGES, *(["timm"] if "timm_wrapper" in class_of(model).__module__ else [])]
    names += ["peft"] if is_adapted(model) else []
    quantizer = getattr(base_of(model), "quantization_method", None)
    names += [str(getattr(quantizer, "value", quantizer))] if quantizer else []
    versions = installed_packages()
    # A package that is installed under another name (e.g. a faster build of pillow) gets no version.
    return [f"{name}=={versions[name].partition('+')[0]}" if name in versions else name for name in names]


def pipeline_name(task: Task) -> str | None:
    """Return the name of the Transformers pipeline for the task, such as `text-generation`; None without one."""
    from transformers.pipelines import SUPPORTED_TASKS

    for name, entry in SUPPORTED_TASKS.items():
        if any(auto_class.__name__ == task.model_class for auto_class in entry["pt"]):
            return name
    return None


def _transformers_flavor(model: Any, processor: Any, task: Task) -> dict[str, Any] | None:
    """Return the flavor that `mlflow.transformers.save_model` would write into MLmodel; None if it does not apply.

    hfexp does not call that function: it would fetch a model card and a licence from the Hub, build a pipeline (which
    moves the model to another device), and write the weights a second time.
    """
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.pipelines import SUPPORTED_TASKS

    classes = {
        "image_processor": ImageProcessingMixin,
        "tokenizer": transformers.PreTrainedTokenizerBase,
        "feature_extractor": transformers.FeatureExtractionMixin,
    }
    component = next((name for name, cls in classes.items() if isinstance(processor, cls)), None)
    name = pipeline_name(task)
    if name is None or component is None or is_adapted(model):  # MLflow would take the adapter for a whole model
        return None
    return {
        "transformers_version": transformers.__version__,
        "task": name,
        "instance_type": str(SUPPORTED_TASKS[name]["impl"]).rpartition(".")[2],
        "pipeline_model_type": class_of(model).__name__,
        "source_model_name": str(model.name_or_path),
        "model_binary": WEIGHTS,
        "torch_dtype": str(model.dtype),
        "components": [component],
        f"{component}_type": type(processor).__name__,
    }


# Check that a saved MLflow model answers as the model in memory does.


TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Largest difference allowed between the model in memory and the saved one, by the precision of the weights: absolute
for numbers up to 1, as probabilities are, and relative for larger ones.

Both compute the same, but not always with the same kernels: loading chooses the fastest attention available.
"""


def verify_model(saved: SavedModel, predictor: Predictor, examples: Iterable[Any]) -> None:
    """Load the directory as MLflow does, and compare its answers with those of the model in memory.

    Raises:
        RunError: the answers differ, or the model can't be loaded or used.
    """
    inputs = list(examples)
    expected = predictor.predict(inputs)
    trusted = load_recipe(saved.weights).foreign_targets()  # safe: this process wrote the recipe
    paths = list(sys.path)  # MLflow prepends code/ and leaves it there
    try:
        with trusting(trusted), quiet_mlflow():
            import mlflow.pyfunc

            loaded = mlflow.pyfunc.load_model(str(saved.path))
            loaded.get_raw_model().to(next(predictor.model.parameters()).device)
            table = loaded.predict(input_table(predictor.task, inputs), predictor.options or None)
    except Exception as error:
        raise RunError(f"the saved model {saved.path} can't be used: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = paths
    difference = _difference(expected, table)
    tolerance = TOLERANCE.get(str(next(predictor.model.parameters()).dtype).removeprefix("torch."), 1e-4)
    if not difference <= tolerance:
        raise RunError(f"predictions of the saved model {saved.path} differ by {difference:.2g} from those in memory")


def _difference(expected: pandas.DataFrame, actual: pandas.DataFrame) -> float:
    """Return the largest difference of numbers; answers without numbers must be equal, else it is infinite."""
    largest, numbers = 0.0, False
    for name, column in expected.items():
        if name not in actual:
            return float("inf")
        if any(isinstance(value, list) for value in column):  # of structures, or of unequal lengths
            numbers, largest = True, max(largest, _distance(column.tolist(), actual[name].tolist()))
            continue
        ours, theirs = (np.asarray(values.tolist()) for values in (column, actual[name]))
        if ours.dtype.kind == "f":
            numbers = True
            same_shape = ours.shape == theirs.shape
            scale = np.maximum(np.abs(ours), 1)  # relative above 1, as numbers may be of any size
            largest = max(
                largest, float((np.abs(ours - theirs) / scale).max(initial=0)) if same_shape else float("inf")
            )
    same = expected.equals(actual[list(expected.columns)])
    return largest if numbers or same else float("inf")


def _distance(ours: Any, theirs: Any) -> float:
    """Return the largest difference of numbers in two structures; infinity if anything else differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return max((_distance(value, theirs[name]) for name, value in ours.items()), default=0.0)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return max(map(_distance, ours, theirs), default=0.0)
    if isinstance(ours, float) and isinstance(theirs, float):
        distance = abs(ours - theirs) / max(abs(ours), 1)
        return float("inf") if math.isnan(distance) else distance
    return 0.0 if ours == theirs else float("inf")
