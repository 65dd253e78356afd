"""The result of a run: its numbers, its model, and how they are shown."""

import base64
import functools
import html
import json
import os
import shlex
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.core import __version__
from hfexp.core.compose import PROJECT_FILE, project
from hfexp.core.config import Config
from hfexp.core.console import build_table, cell, is_terminal, print_table, say
from hfexp.core.errors import RunError
from hfexp.core.files import sqlite_address, sqlite_path, write_private
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_secrets
from hfexp.core.training_args import TIMINGS

if TYPE_CHECKING:
    from hfexp.tracking.report.classes import ClassReport
    from hfexp.training.model import ModelSummary


# HTML of a result for notebooks: metrics, learning curves and the confusion matrix.


PICTURES = ("learning_curves.png", "confusion_matrix_test.png", "confusion_matrix_validation.png")
"""Artifacts of a run that are shown; of the two matrices, only the first that exists."""
SHOWN = ("best_eval_", "final_eval_", "test_")
"""Prefixes of the metrics that are shown, one column each."""


def result_html(title: str, metrics: Mapping[str, float], directory: Path | None) -> str:
    """Render a table of the final metrics, with one column per prefix of `SHOWN`, and the pictures of the run.

    Args:
        directory: the run directory; None shows no pictures.
    """
    names = sorted({name.removeprefix(prefix) for prefix in SHOWN for name in metrics if _is_shown(name, prefix)})
    moments = [prefix for prefix in SHOWN if any(f"{prefix}{name}" in metrics for name in names)]
    head = "".join(f"<th>{prefix.strip('_').replace('_', ' ')}</th>" for prefix in moments)
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        + "".join(f"<td>{_number(metrics.get(f'{prefix}{name}'))}</td>" for prefix in moments)
        + "</tr>"
        for name in names
    )
    pictures = "".join(_picture(path) for path in _pictures(directory))
    return f"<div><b>{html.escape(title)}</b><table><tr><th></th>{head}</tr>{rows}</table>{pictures}</div>"


def _is_shown(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and not name.endswith(TIMINGS)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _pictures(directory: Path | None) -> list[Path]:
    if directory is None:
        return []
    paths = [path for name in PICTURES if (path := directory / "artifacts" / name).is_file()]
    matrices = [path for path in paths if path.name.startswith("confusion")]
    return [path for path in paths if path not in matrices[1:]]


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    style = "max-width:48%;vertical-align:top"
    return f"<img alt='{html.escape(path.stem)}' style='{style}' src='data:image/png;base64,{data}'>"


SHOWN_GROUPS = ("model", "dataset", "transform", "trainer", "metrics", "tracking", "experiment", "debug")
"""Config groups whose chosen option is shown at the start, in this order."""


def show_choices(config: Config, origin: Origin) -> None:
    """Print the chosen options and the changed values, before anything slow is imported."""
    chosen = [f"{group} {origin.choices[group]}" for group in SHOWN_GROUPS if origin.choices.get(group)]
    say(f"hfexp {__version__}  {origin.choices.get('task', 'experiment')}, seed {config.seed}")
    own = project().config_dir
    if own is not None:
        say(f"  own options: {os.path.relpath(own)} (tool.hfexp in {PROJECT_FILE})")
    say(_wrapped(chosen))
    changed = [override.lstrip("+") for override in origin.overrides if "." in override.partition("=")[0]]
    if changed:
        changed[0] = f"changed: {changed[0]}"
        say(_wrapped(changed))


def _wrapped(items: list[str]) -> str:
    """Put items on an indented line; in a terminal, begin a new line between items, not where the terminal would."""
    width = shutil.get_terminal_size().columns if is_terminal() else 10**6
    kept = ", ".join(item.replace(" ", "\u00a0") for item in items)  # textwrap does not break at this space
    return textwrap.fill(
        kept,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\u00a0", " ")


def show_model(summary: "ModelSummary") -> None:
    """Print the model that was built, and which of its weights start random."""
    say(f"  model: {summary}")
    if summary.new_tensors:
        names = ", ".join(summary.new_tensors[:4]) + (", ..." if len(summary.new_tensors) > 4 else "")
        say(f"  new weights, not from the checkpoint: {names}")
    if summary.head:
        say(f"  {summary.head}")


def show_result(result: "Result") -> None:
    """Print the final table: metrics, baseline, weakest classes, and where everything is."""
    table = build_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a path that is cut can't be copied
    for name, value in _rows(result):
        table.add_row(cell(name), cell(value), style="bold" if name.startswith("best") else None)
    say()
    print_table(table, soft_wrap=True)


def _rows(result: "Result") -> list[tuple[str, str]]:
    rows = []
    name = result.task_metric
    if f"best_eval_{name}" in result.metrics:
        at = f"at step {result.best_step}, chosen by eval_{result.metric_name} {result.best_metric:.4f}"
        rows.append((f"best eval_{name}", f"{result.metrics[f'best_eval_{name}']:.4f}  ({at})"))
    for prefix, label in (("final_eval", "validation"), ("test", "test")):
        value = result.metrics.get(f"{prefix}_{name}")
        if value is not None:
            rows.append((f"{label} {name}", f"{value:.4f}  (the saved model)"))
    if f"final_eval_{name}" in result.metrics and f"test_{name}" not in result.metrics:
        rows.append(("test", "no test split: dataset.test_size=0.1 holds out a tenth of the training rows"))
    if result.pruned_step is not None:
        rows.append(("pruned", f"at step {result.pruned_step}, by its sweep"))
    if result.report is not None:
        rows.append(("baseline accuracy", f"{result.report.majority_share:.4f}  (always the most frequent class)"))
        worst = ", ".join(f"{label!r} {recall:.2f} ({count} rows)" for label, recall, count in result.report.worst())
        rows.append(("lowest recall", worst))
    rows.append(("time", f"{result.train_seconds:.1f} s of training, {result.seconds:.1f} s in all"))
    rows.append(("run", os.path.relpath(result.run_dir)))
    if result.tracking_uri:
        rows.append(("view", mask_secrets(_how_to_look(result.tracking_uri))))
    return rows


def _how_to_look(uri: str) -> str:
    """Return the command or address that shows this tracking store."""
    path = sqlite_path(uri)
    if path is None:
        return uri
    path = os.path.relpath(path)
    address = shlex.quote(sqlite_address(Path(path)))
    return "hfexp ui" if path == os.path.join("outputs", "mlflow.db") else f"hfexp ui --uri {address}"


RESULT = "result.json"


@dataclass
class Result:
    """The outcome of a run."""

    metrics: dict[str, float]
    """`best_*`, `final_eval_*` (the saved model on the validation split) and `test_*`."""
    metric_name: str
    """Metric that selects the best model, without a prefix."""
    task_metric: str
    """Metric by which the task is usually judged."""
    best_metric: float | None
    """Value of `metric_name` for the saved model: the one that selected it or, without `load_best_model_at_end`, that
    of the last model."""
    best_step: int | None
    """Training step of the saved model."""
    run_dir: Path
    run_id: str | None
    tracking_uri: str | None
    report: "ClassReport | None"
    seconds: float
    train_seconds: float
    values: list[float] | None
    """Objective values that a sweep optimises; None if the run is not a trial of a sweep."""
    pruned_step: int | None
    """Training step of the evaluation after which a sweep pruned the run."""
    processor: Any = field(repr=False)
    _model: Any = field(repr=False)
    _model_class: str = field(repr=False)
    _remote_code: bool = field(repr=False)

    @property
    def objective(self) -> float | None:
        """Return the value that a sweep optimises unless it names other metrics: `metric_name` of the saved model."""
        if self.best_metric is not None:
            return self.best_metric
        return self.metrics.get(f"final_eval_{self.metric_name}")

    def _repr_html_(self) -> str:
        return result_html(self.run_dir.name, self.metrics, self.run_dir)

    @functools.cached_property
    def model(self) -> Any:
        """Return the saved model, which is read from the run directory if other processes trained it.

        Raises:
            RunError: the user's own code built the model, so that hfexp can't read it back.
        """
        if self._model is not None:
            return self._model
        import transformers

        from hfexp.training.adapters import CONFIG_FILE, load_saved

        directory = self.run_dir / "model"
        if not any((directory / name).exists() for name in ("config.json", CONFIG_FILE)):
            raise RunError(f"the model was trained by other processes; its weights are in {directory}")
        return load_saved(getattr(transformers, self._model_class), directory, self._remote_code)


@dataclass
class StoredResult:
    """The content of `result.json` in a run directory: the part of a `Result` that would be lost with its process."""

    metrics: dict[str, float]
    metric_name: str
    best_metric: float | None
    best_step: int | None
    seconds: float
    train_seconds: float


def save_result(result: Result) -> None:
    """Write `result.json`, from which a later process can return the result again."""
    stored = StoredResult(**{entry.name: getattr(result, entry.name) for entry in fields(StoredResult)})
    write_private(result.run_dir / RESULT, json.dumps(asdict(stored), indent=1))
