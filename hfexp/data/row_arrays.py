"""Conversion of a row to arrays of whole numbers (and single floats, as labels), as the cache keeps it, and back."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors

Row = dict[str, Any]
Arrays = dict[str, np.ndarray]

TENSORS = {torch.Tensor: "tensor", tv_tensors.Image: "image"}


class NotWholeNumbersError(Exception):
    """A row holds a value of a kind that the cache does not keep, such as a float tensor."""


def to_arrays(row: Row) -> tuple[Arrays, dict[str, str]]:
    """Convert a row to arrays, and return them with the kind that each field had."""
    pairs = {name: _to_array(name, value) for name, value in row.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def _to_array(name: str, value: Any) -> tuple[np.ndarray, str]:
    if isinstance(value, PIL.Image.Image) and value.mode in ("L", "RGB"):
        return np.asarray(value), f"PIL {value.mode}"
    # Exactly these classes: a subclass (boxes, masks, truth values) would not come back as itself.
    if (
        isinstance(value, torch.Tensor)
        and type(value) in TENSORS
        and not (value.is_floating_point() or value.is_complex())
    ):
        return value.numpy(), f"{TENSORS[type(value)]} {value.dtype} {value.ndim}"
    if type(value) is np.ndarray and value.dtype.kind in "iub":
        return value, f"array {value.dtype} {value.ndim}"
    if type(value) is int and abs(value) < 2**63:
        return np.asarray(value, dtype=np.int64), "number"
    if type(value) is float:
        return np.asarray(value, dtype=np.float64), "real"
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**31 for item in value):
        return np.asarray(value, dtype=np.int32), "numbers"
    raise NotWholeNumbersError(f"{name} is {type(value).__name__}, not an array of whole numbers")


def from_array(array: Any, kind: str) -> Any:
    """Convert an array back to the value that `to_arrays` was given."""
    if kind.startswith("PIL"):
        return PIL.Image.fromarray(array)
    if kind.startswith(("image", "tensor")):
        tensor = torch.from_numpy(np.asarray(array))
        return tv_tensors.Image(tensor) if kind.startswith("image") else tensor
    if kind in ("number", "real"):
        return array.item()
    return array.tolist() if kind == "numbers" else array
