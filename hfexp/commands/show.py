"""`hfexp show data` and `hfexp show model`: look at what a command would train on, and at what it would train."""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from hfexp.core.console import build_table, cell, print_table, say
from hfexp.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from datasets import DatasetDict

    from hfexp.core.config import Config
    from hfexp.experiment.context import Inputs
    from hfexp.tasks.base import Task

ROWS = 10
"""Rows of each split that are printed."""
SIZED = 200
"""Rows, evenly spaced, whose sizes are summed up."""
CLASSES = 30
"""Classes that are printed; the largest ones, if there are more."""
WIDEST = 48
"""Characters of a text in a cell."""


def main(argv: list[str]) -> int:
    """Print what the data or the model of a command looks like; nothing is trained or recorded."""
    from hfexp.core.compose import split_config_dir

    parser = argparse.ArgumentParser(
        prog="hfexp show",
        usage="hfexp show data [--picture FILE] [KEY=VALUE ...]\n       hfexp show model [KEY=VALUE ...]",
        description="Show what `hfexp KEY=VALUE ...` would train on (splits, columns, classes, rows) or what it would "
        "train (layers, parameters, inputs). Nothing is trained or recorded.",
    )
    parser.add_argument("what", choices=("data", "model"))
    parser.add_argument("--picture", metavar="FILE", help="write training images as the model sees them to FILE.png")
    words, config_dir = split_config_dir(argv)
    args, overrides = parser.parse_known_intermixed_args(words)
    flag = next((word for word in overrides if word.startswith("-")), None)
    if flag is not None:
        raise ConfigError(f"hfexp show has no flag {flag}")
    if args.picture is not None and (args.what != "data" or Path(args.picture).suffix != ".png"):
        raise ConfigError("--picture FILE belongs to `hfexp show data`, and FILE must end in .png")
    if args.what == "model":
        _show_model(overrides, config_dir)
    else:
        _show_data(overrides, config_dir, args.picture)
    return 0


def _config(overrides: list[str], config_dir: str | None, is_whole: bool) -> "Config":
    """Compose the config; one that is whole has a model and a dataset that suit its task."""
    from hfexp.core import compose
    from hfexp.core.config import to_config
    from hfexp.core.console import quiet_libraries
    from hfexp.experiment.choices import check_choices
    from hfexp.tracking.runs import resolve_models

    cfg, choices = compose.compose(*resolve_models(overrides), config_dir=config_dir)
    config = to_config(cfg)
    if is_whole:
        check_choices(config, choices)
    quiet_libraries()
    return config


# The data: splits, columns, classes, sizes and rows.


def _show_data(overrides: list[str], config_dir: str | None, picture: str | None) -> None:
    from hfexp.core.targets import instantiate
    from hfexp.data.splits import drop_bad_samples, load_dataset
    from hfexp.experiment.preflight import load_inputs

    config = _config(overrides, config_dir, is_whole=picture is not None)
    inputs = load_inputs(config) if picture is not None else None
    if inputs is not None:
        task, dataset, dropped = inputs.task, inputs.dataset, inputs.dropped
    else:  # no model is needed, or looked for
        allowed = config.security.allowed_targets
        task = instantiate(config.task, "task", allowed)
        dataset, dropped = drop_bad_samples(load_dataset(config.dataset, task, allowed), config.dataset, task)
    _print_splits(dataset, dropped)
    _print_columns(dataset, task)
    _print_classes(dataset, task)
    _print_rows(dataset, task)
    if inputs is not None and picture is not None:
        _draw(config, inputs, Path(picture))


def _print_splits(dataset: "DatasetDict", dropped: dict[str, int]) -> None:
    from hfexp.data.dataset import show_rows

    table = build_table("split", "rows", *(["unreadable"] if any(dropped.values()) else []))
    for split, rows in dataset.items():
        counts = [f"{dropped.get(str(split), 0):,}"] if any(dropped.values()) else []
        table.add_row(cell(split), cell(show_rows(rows)), *map(cell, counts))
    print_table(table)


def _print_columns(dataset: "DatasetDict", task: "Task") -> None:
    """Print the columns that the task reads, and the sizes of what is in them."""
    looked_at, classes = list(_some(next(iter(dataset.values())), task, SIZED)), task.id2label(dataset) or {}
    table = build_table("column", "holds")
    for name in task.columns:
        is_class = name == task.label_column and classes
        holds = f"{len(classes)} classes" if is_class else _sizes([row.get(name) for row in looked_at])
        table.add_row(cell(name), cell(holds))
    say()
    print_table(table)


def _some(rows: Any, task: "Task", count: int) -> Iterator[dict[str, Any]]:
    """Yield at most `count` decoded rows, evenly spaced; of a stream the first ones."""
    if not hasattr(rows, "__len__"):
        yield from (task.decode(dict(row)) for row in itertools.islice(iter(rows), count))
        return
    step = -(-len(rows) // count)
    yield from (task.decode(dict(rows[index])) for index in range(0, len(rows), max(step, 1)))


def _sizes(values: list[Any]) -> str:
    """Sum up values of one column: the range of image sizes, text lengths or numbers."""
    values = [value for value in values if value is not None]
    first = next(iter(values), None)
    if hasattr(first, "size") and hasattr(first, "mode"):
        sizes = sorted((value.size for value in values), key=lambda size: size[0] * size[1])
        least, most = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        return f"images of {least} pixels" if least == most else f"images of {least} to {most} pixels"
    if isinstance(first, str):
        lengths = [len(value) for value in values]
        return f"texts of {min(lengths):,} to {max(lengths):,} characters, median {median(lengths):,.0f}"
    if isinstance(first, float):
        return f"numbers from {min(values):.4g} to {max(values):.4g}"
    lengths = [len(value) for value in values if hasattr(value, "__len__")]
    return f"lists of {min(lengths)} to {max(lengths)}" if lengths else type(first).__name__


def _print_classes(dataset: "DatasetDict", task: "Task") -> None:
    from hfexp.tracking.lineage import class_counts

    kept = {str(split): rows for split, rows in dataset.items() if hasattr(rows, "__len__")}
    counts = {split: found for split, rows in kept.items() if (found := class_counts(rows, task))}
    if not counts:
        return
    first = next(iter(counts.values()))
    names = list(first) if len(first) <= CLASSES else sorted(first, key=lambda name: -first[name])[:CLASSES]
    say()
    table = build_table("class", *counts)
    for name in names:
        table.add_row(cell(repr(name)), *(cell(f"{counts[split].get(name, 0):,}") for split in counts))
    print_table(table)
    if len(first) > len(names):
        say(f"(and {len(first) - len(names)} smaller classes)")


def _print_rows(dataset: "DatasetDict", task: "Task") -> None:
    """Print the first rows of the first split."""
    split: Any
    rows: Any
    split, rows = next(iter(dataset.items()))
    from hfexp.data.labels import readable

    label, has_classes = task.label_column or "", task.id2label(dataset) is not None
    table = build_table(f"{split} row", *task.columns)
    shown = [rows[index] for index in range(min(ROWS, len(rows)))] if hasattr(rows, "__len__") else rows.take(ROWS)
    for number, row in enumerate(shown):
        decoded = task.decode(dict(row))
        if has_classes:
            names = readable(rows.features[label], row[label])
            decoded[label] = "no label" if names is None else ", ".join(names) if isinstance(names, list) else names
        table.add_row(cell(number), *(cell(_shown(decoded.get(column))) for column in task.columns))
    say()
    print_table(table)


def _shown(value: Any) -> str:
    if hasattr(value, "size") and hasattr(value, "mode"):
        return f"{value.size[0]} x {value.size[1]} {value.mode}"
    text = " ".join(str(value).split())
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _draw(config: "Config", inputs: "Inputs", path: Path) -> None:
    """Write a sheet of training images as the model sees them."""
    from hfexp.experiment.preflight import process_splits
    from hfexp.tracking.report.canvas import Pictures
    from hfexp.tracking.report.figures import draw_samples

    rows = process_splits(config, inputs.dataset, inputs.task, inputs.processor, inputs.transforms)["train"]
    with tempfile.TemporaryDirectory() as directory:
        pictures = Pictures(Path(directory))
        draw_samples(rows, inputs.task, inputs.processor, pictures)
        made = pictures.made.get("samples.png")
        if made is None:
            raise RunError(f"--picture: {type(inputs.task).__name__} has no images to show")
        path.write_bytes(made)
    say(f"\n{path}: training images as the model sees them")


# The model: its parts, their parameters, and its inputs.


def _show_model(overrides: list[str], config_dir: str | None) -> None:
    from hfexp.experiment.preflight import build_skeleton, load_inputs, process_splits
    from hfexp.tracking.report.figures import shapes
    from hfexp.training.adapters import base_of, is_adapted
    from hfexp.training.model import build_model

    config = _config(overrides, config_dir, is_whole=True)
    inputs = load_inputs(config)
    for name, value in inputs.task.model_fields(inputs.id2label).items() if inputs.model_config is not None else ():
        setattr(inputs.model_config, name, value)
    model = build_skeleton(config, inputs.task, inputs.model_config)
    if model is None:  # the user's own, or timm's
        model, _ = build_model(config.model, inputs.task, inputs.id2label, config.security.allowed_targets)
    total, trained = _parameters(model)
    adapter = " with an adapter" if is_adapted(model) else ""
    say(f"{type(base_of(model)).__name__}{adapter}: {total:,} parameters, {trained:,} trained")
    table = build_table("part", "class", "parameters", "trained")
    for name, kind, part in _parts(model):
        table.add_row(cell(name), cell(kind), *(cell(f"{count:,}") for count in _parameters(part)))
    print_table(table)
    row = process_splits(config, inputs.dataset, inputs.task, inputs.processor, inputs.transforms)["train"][0]
    lengths = [f"{name} {len(value)}" for name, value in row.items() if isinstance(value, list | tuple)]
    say(f"first row: {shapes(row) or ', '.join(lengths)}")


def _parameters(module: Any) -> tuple[int, int]:
    """Return the number of parameters and of those that are trained; shared ones count once."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _parts(module: Any, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield name, class and module of the parts that hold parameters; equal layers of a list are one part."""
    from torch.nn import ModuleList, Sequential

    def is_list(one: Any) -> bool:
        return isinstance(one, ModuleList | Sequential) and len(one) > 1

    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if not any(True for _ in child.parameters()):
            continue
        if is_list(child):
            kinds = list(dict.fromkeys(type(layer).__name__ for layer in child))
            yield f"{path}.0-{len(child) - 1}", f"{len(child)} x {', '.join(kinds)}", child
        elif any(map(is_list, child.modules())):
            yield from _parts(child, path)
        else:
            yield path, type(child).__name__, child
