"""Check that a saved MLflow model answers as the model in memory does."""

import sys
from collections.abc import Iterable

import numpy as np
import pandas

from hfexp.core.errors import RunError
from hfexp.inference.mlflow_model import SavedModel, input_column, quiet_mlflow
from hfexp.inference.predictor import Predictor, load_recipe, trusting

TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Largest difference allowed between the model in memory and the saved one, by the precision of the weights: absolute
for numbers up to 1, as probabilities are, and relative for larger ones.

Both compute the same, but not always with the same kernels: loading chooses the fastest attention available.
"""


def verify_model(saved: SavedModel, predictor: Predictor, examples: Iterable[bytes | str]) -> None:
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
            frame = pandas.DataFrame({input_column(predictor.task): inputs})
            table = loaded.predict(frame, predictor.options or None)
    except Exception as error:
        raise RunError(f"the saved model {saved.path} can't be used: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = paths
    difference = _difference(expected, table)
    tolerance = TOLERANCE.get(str(next(predictor.model.parameters()).dtype).removeprefix("torch."), 1e-4)
    if not difference <= tolerance:
        raise RunError(f"the saved model {saved.path} differs by {difference:.2g} from the answers in memory")


def _difference(expected: pandas.DataFrame, found: pandas.DataFrame) -> float:
    """Return the largest difference of numbers; answers without numbers must be equal, else it is infinite."""
    largest, numbers = 0.0, False
    for name, column in expected.items():
        if name not in found:
            return float("inf")
        ours, theirs = (np.asarray(values.tolist()) for values in (column, found[name]))
        if ours.dtype.kind == "f":
            numbers = True
            same_shape = ours.shape == theirs.shape
            scale = np.maximum(np.abs(ours), 1)  # relative above 1, as numbers may be of any size
            largest = max(
                largest, float((np.abs(ours - theirs) / scale).max(initial=0)) if same_shape else float("inf")
            )
    same = expected.equals(found[list(expected.columns)])
    return largest if numbers or same else float("inf")
