"""The page of a sweep: the table of its trials, and pictures in which one trial can be followed."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hfexp.core.secrets import mask_secrets
from hfexp.sweep.table import Curve, TrialTable, command_of, error_of, measured, states, swept_keys
from hfexp.sweep.trials import State, Sweep, Trial, best
from hfexp.tracking.report.canvas import BLUE, GREEN, GREY, ORANGE, drawable, guarded, panel, style, text_width
from hfexp.tracking.report.page import Block, Code, Picture, Report, Section, Table, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Positions of parameter values on an axis from 0 to 1, with tick labels.


WIDE = 30.0
"""Ratio of the largest to the smallest value above which the scale is logarithmic."""
MOST_TICKS = 12


@dataclass(frozen=True)
class Scale:
    """One axis of a picture."""

    name: str
    positions: list[float | None]
    """Position of each value, from 0 to 1; None for a missing value."""
    ticks: list[tuple[float, str]]


def scale_of(name: str, values: Sequence[Any]) -> Scale:
    """Place numbers by size, on a logarithmic scale if they span a wide range; space other values evenly, sorted."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in present):
        return _numeric(name, values, [float(value) for value in present])
    texts = [
        None if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
        for value in values
    ]
    distinct = sorted({text for text in texts if text is not None})
    positions = {text: (index + 0.5) / len(distinct) for index, text in enumerate(distinct)}
    every = max(1, -(-len(distinct) // MOST_TICKS))
    ticks = [(positions[text], text) for text in distinct[::every]]
    return Scale(name, [None if text is None else positions[text] for text in texts], ticks)


def _numeric(name: str, values: Sequence[Any], numbers: list[float]) -> Scale:
    logarithmic = is_wide(numbers)
    low, high = min(numbers), max(numbers)

    def position(value: float) -> float:
        if high == low:
            return 0.5
        if logarithmic:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    distinct = sorted(set(numbers))
    if len(distinct) > 5:
        middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
        distinct = [low, middle, high]
    ticks = [(position(value), f"{value:.4g}") for value in distinct]
    return Scale(name, [None if value is None else position(float(value)) for value in values], ticks)


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether values need a logarithmic scale: all are positive, and their ratio is above `WIDE`."""
    return bool(values) and 0 < min(values) < max(values) / WIDE


# Plots of a sweep's trials, in which every trial can be found by its number.


MOST_KEYS = 12
WIDTH, HEIGHT = 6.4, 3.4
"""Size of one picture in inches."""


@dataclass(frozen=True)
class PlotData:
    """Data of all pictures."""

    sweep: Sweep
    trials: Sequence[Trial]
    """The trials to draw, best first."""
    curves: Mapping[int, Sequence[Curve]]
    """Learning curves by trial number, one for each run of the trial."""
    curve_metric: str
    importances: Mapping[str, float]

    @cached_property
    def best(self) -> set[int]:
        return {trial.number for trial in best(self.sweep.trials, self.sweep.directions)}

    def value(self, trial: Trial, metric: int = 0) -> float | None:
        """Return the value that a trial is ranked by, or that a pruned one had reached; None without a finite one."""
        values = trial.objective or trial.values or next((run.values for run in trial.runs if run.values), None)
        return values[metric] if values and math.isfinite(values[metric]) else None

    def measured(self) -> list[tuple[Trial, float]]:
        """Return trials with a value, the best ones last, so that they are drawn on top of the others."""
        pairs = [(trial, self.value(trial)) for trial in reversed(self.trials)]
        return [(trial, value) for trial, value in pairs if value is not None]

    def colour(self, trial: Trial) -> str:
        if trial.number in self.best:
            return ORANGE
        return BLUE if trial.state is State.finished else GREY


@dataclass(frozen=True)
class Drawing:
    """One picture as PNG and as SVG."""

    png: bytes
    svg: bytes
    """Ids of a trial's elements end with `-t<number>`, by which the page's script finds them."""


def draw(data: PlotData) -> dict[str, Drawing]:
    """Draw all pictures that there is data for, by name; one that fails is left out with a warning."""
    drawings = {}
    with style():
        for name, function in PICTURES.items():
            with guarded(name):
                figure = function(data)
                if figure is not None:
                    drawings[name] = Drawing(_saved(figure, "png"), _saved(figure, "svg"))
    return drawings


def _saved(figure: "Figure", form: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    content = buffer.getvalue()
    return content[content.index(b"<svg") :] if form == "svg" else content


def history(data: PlotData) -> "Figure | None":
    """Plot values in the order of the trials, and the best so far; None with several metrics."""
    measured = sorted(data.measured(), key=lambda pair: pair[0].number)
    if not measured or len(data.sweep.directions) != 1:
        return None
    figure, axes = _axes("value by trial", "trial", data.sweep.objectives[0])
    better = max if data.sweep.directions[0] == "maximize" else min
    numbers: list[int] = []
    so_far: list[float] = []
    for trial, value in measured:
        _point(axes, "history", data, trial, trial.number, value)
        if trial.state is State.finished:
            numbers.append(trial.number)
            so_far.append(better([value, *so_far[-1:]]))
    axes.step(numbers, so_far, where="post", color=GREEN, linewidth=1.2, label="best so far", zorder=1)
    _value_scale(axes, [value for _, value in measured])
    axes.legend(loc="best")
    return figure


def front(data: PlotData) -> "Figure | None":
    """Plot the first two of several metrics against each other."""
    if len(data.sweep.metrics) < 2:
        return None
    figure, axes = _axes("Pareto front (orange)", *data.sweep.objectives[:2])
    for trial, value in data.measured():
        other = data.value(trial, 1)
        if other is not None:
            axes.plot([value], [other], "o", markersize=5, color=data.colour(trial), gid=_id("front", trial))
    return figure


def parallel(data: PlotData) -> "Figure | None":
    """Plot each trial as a line through its parameters to its value (parallel coordinates)."""
    measured = data.measured()
    scales = _scales(data, [trial for trial, _ in measured])
    if len(measured) < 2 or not scales:
        return None
    values = scale_of(data.sweep.objectives[0], [value for _, value in measured])
    columns = [*scales.values(), values]
    figure, axes = _axes("parameters and value", width=max(WIDTH, 1.2 + 1.3 * len(columns)), left=0.9)
    for row, (trial, _) in enumerate(measured):
        heights = [math.nan if scale.positions[row] is None else scale.positions[row] for scale in columns]
        wide = 2.0 if trial.number in data.best else 1.0
        axes.plot(
            range(len(columns)), heights, color=data.colour(trial), linewidth=wide, alpha=0.8, marker=".",
            gid=_id("parallel", trial),
        )  # fmt: skip
    for x, scale in enumerate(columns):
        axes.axvline(x, color=GREY, linewidth=0.7, zorder=0)
        for position, label in scale.ticks:
            axes.text(x - 0.04, position, drawable(label, 14), ha="right", va="center", fontsize=7)
    names = [drawable(scale.name.rpartition(".")[2], 20) for scale in columns]
    axes.set_xticks(range(len(columns)), names)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def slices(data: PlotData) -> "Figure | None":
    """Plot the value against each parameter by itself."""
    from matplotlib.figure import Figure

    measured = data.measured()
    scales = _scales(data, [trial for trial, _ in measured])
    if len(measured) < 2 or not scales:
        return None
    rows, columns = -(-len(scales) // 3), min(3, len(scales))
    figure = Figure(figsize=(0.9 + 2.6 * columns, 0.4 + 2.5 * rows))
    for number, scale in enumerate(scales.values()):
        row, column = divmod(number, 3)
        axes = panel(figure, 0.8 + 2.6 * column, 0.6 + 2.5 * (rows - 1 - row), 2.1, 1.7)
        for (trial, value), position in zip(measured, scale.positions, strict=True):
            if position is not None:
                _point(axes, f"slice{number}", data, trial, position, value)
        axes.set_xticks([position for position, _ in scale.ticks], [drawable(label, 10) for _, label in scale.ticks])
        axes.set_xlim(-0.05, 1.05)
        axes.set_title(drawable(scale.name, 30))
        axes.set_ylabel(drawable(data.sweep.objectives[0], 20) if column == 0 else "")
        _value_scale(axes, [value for _, value in measured])
    return figure


def importances(data: PlotData) -> "Figure | None":
    """Plot the share of the variance that each parameter accounts for (fANOVA; Hutter et al. 2014)."""
    if not data.importances:
        return None
    pairs = sorted(data.importances.items(), key=lambda pair: pair[1])
    left = 0.3 + text_width([drawable(name, 40) for name, _ in pairs])
    figure, axes = _axes("importance of parameters", "share of the variance", "", left=left, width=left + 4.5)
    axes.barh([drawable(name, 40) for name, _ in pairs], [share for _, share in pairs], color=BLUE)
    return figure


def learning_curves(data: PlotData) -> "Figure | None":
    """Plot the metric of each run during its training."""
    trials = [trial for trial in reversed(data.trials) if any(data.curves.get(trial.number, ()))]
    if not trials:
        return None
    figure, axes = _axes("learning curves", "step", data.curve_metric)
    for trial in trials:
        wide = 2.0 if trial.number in data.best else 0.9
        for run, curve in enumerate(data.curves[trial.number]):
            steps = sorted(curve)
            axes.plot(
                steps, [curve[step] for step in steps], color=data.colour(trial), linewidth=wide, marker=".",
                markersize=3, alpha=0.8, gid=f"curves{run}-t{trial.number}",
            )  # fmt: skip
    values = [v for t in trials for c in data.curves[t.number] for v in c.values() if math.isfinite(v)]
    _value_scale(axes, values)
    return figure


PICTURES: dict[str, Callable[[PlotData], "Figure | None"]] = {
    "history": history,
    "front": front,
    "learning_curves": learning_curves,
    "parallel_coordinates": parallel,
    "slices": slices,
    "importances": importances,
}


def _axes(
    title: str, x_label: str = "", y_label: str = "", *, left: float = 0.8, width: float = WIDTH
) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, HEIGHT))
    axes = panel(figure, left, 0.6, width - left - 0.2, HEIGHT - 1.0)
    axes.set_title(title)
    axes.set_xlabel(drawable(x_label, 60))
    axes.set_ylabel(drawable(y_label, 40))
    return figure, axes


def _point(axes: Any, plot: str, data: PlotData, trial: Trial, x: float, y: float) -> None:
    """Draw a trial as a point with the interval of its mean, or as a cross if it did not finish."""
    kind = "o" if trial.state is State.finished else "x"
    colour, name = data.colour(trial), _id(plot, trial)
    axes.plot([x], [y], kind, markersize=5, color=colour, gid=name)
    if trial.intervals:
        low, high = trial.intervals[0]
        axes.plot([x, x], [low, high], color=colour, linewidth=0.9, gid=f"interval-{name}")


def _scales(data: PlotData, trials: Sequence[Trial]) -> dict[str, Scale]:
    """Build scales of the first 12 parameters that differ between these trials, with the trials' positions on them."""
    columns = {key: [trial.params.get(key) for trial in trials] for key in swept_keys(data.sweep)}
    varied = {key: values for key, values in columns.items() if len(set(map(str, values))) > 1}
    return {key: scale_of(key, varied[key]) for key in list(varied)[:MOST_KEYS]}


def _value_scale(axes: Any, values: Sequence[float]) -> None:
    if is_wide(values):
        axes.set_yscale("log")


def _id(plot: str, trial: Trial) -> str:
    return f"{plot}-t{trial.number}"


TITLES = {
    "history": "Value by trial",
    "front": "Several metrics",
    "learning_curves": "Learning curves",
    "parallel_coordinates": "Parameters and value",
    "slices": "Each parameter",
    "importances": "Importance of parameters",
}

NOT_SHOWN = ("run_id",)
"""Columns of the table that the page leaves out, as people have no use for them."""

SCRIPT = """
(function () {
  var style = document.createElement('style');
  style.textContent = '.dim { opacity: 0.1 !important } tr.on td { background: var(--box) } ' +
    'tr[data-name], th { cursor: pointer } tr[data-name] td { white-space: nowrap } ' +
    '.scroll:has(tr[data-name]) { max-height: 70vh; overflow: auto }';
  document.head.appendChild(style);
  var rows = Array.from(document.querySelectorAll('tr[data-name]'));
  var marks = Array.from(document.querySelectorAll('svg g[id]')).map(function (mark) {
    var found = /-t(\\d+)$/.exec(mark.id);
    return { mark: mark, name: found ? found[1] : null };
  }).filter(function (item) { return item.name !== null; });
  var about = {};
  rows.forEach(function (row) {
    var heads = Array.from(row.closest('table').querySelectorAll('th'));
    about[row.dataset.name] = Array.from(row.cells).map(function (cell, n) {
      return cell.textContent ? heads[n].textContent + ': ' + cell.textContent : '';
    }).filter(Boolean).join('\\n');
  });
  var kept = null;
  function show(name) {
    marks.forEach(function (item) { item.mark.classList.toggle('dim', !(name === null || item.name === name)); });
    rows.forEach(function (row) { row.classList.toggle('on', row.dataset.name === name); });
  }
  function watch(element, name) {
    element.addEventListener('mouseenter', function () { show(name); });
    element.addEventListener('mouseleave', function () { show(kept); });
    element.addEventListener('click', function () { kept = kept === name ? null : name; show(kept); });
  }
  marks.forEach(function (item) {
    var title = document.createElementNS('http://www.w3.org/2000/svg', 'title');
    title.textContent = about[item.name] || 'trial: ' + item.name;
    item.mark.appendChild(title);
    watch(item.mark, item.name);
  });
  rows.forEach(function (row) { watch(row, row.dataset.name); });
  var table = rows.length ? rows[0].closest('table') : null;
  if (table) {
    Array.from(table.querySelectorAll('th')).forEach(function (head, column) {
      var up = false;
      head.addEventListener('click', function () {
        up = !up;
        function key(row) {
          var text = row.cells[column].textContent, number = parseFloat(text);
          return text === '' ? null : isNaN(number) ? text : number;
        }
        rows.sort(function (a, b) {
          var x = key(a), y = key(b);
          if (x === null || y === null) { return (x === null ? 1 : 0) - (y === null ? 1 : 0); }
          var numbers = typeof x === 'number' ? typeof y === 'number' : false;
          var order = numbers ? x - y : String(x).localeCompare(String(y));
          return up ? order : -order;
        });
        rows.forEach(function (row) { row.parentNode.appendChild(row); });
      });
    });
  }
}());
"""
"""Script of the HTML page. It has no `<` and no `&`, so that the page stays well-formed XML."""


@dataclass(frozen=True)
class SweepPage:
    """The page of a sweep, in HTML and in Markdown."""

    sweep: Sweep
    table: TrialTable
    drawings: Mapping[str, Drawing]
    drawn: int
    """Number of trials in the pictures."""

    def html(self) -> str:
        """Render HTML with a sortable table; pointing at a trial highlights it in the table and in all pictures."""
        images = {f"{name}.png": drawing.svg for name, drawing in self.drawings.items()}
        return self._report(SCRIPT).html(images)

    def markdown(self) -> str:
        """Render Markdown, which links to the pictures beside it."""
        return self._report("").markdown()

    def _report(self, script: str) -> Report:
        pictures = [Section(TITLES[name], [Picture(f"{name}.png", TITLES[name])]) for name in self.drawings]
        sections = [self._best(), self._trials(bool(script)), *pictures, self._failures(), self._definition()]
        return Report(self.sweep.name, self._lead(), sections, script)

    def _lead(self) -> str:
        counted = ", ".join(f"{count} {state}" for state, count in states(self.sweep).items() if count)
        goals = zip(self.sweep.objectives, self.sweep.directions, strict=False)
        goal = ", ".join(f"{direction} {metric}" for metric, direction in goals)
        hours = self.sweep.seconds / 3600
        return f"{self.sweep.method}, to {goal}: {counted or 'no trials yet'}; {hours:.2f} hours"

    def _best(self) -> Section:
        best_trials = best(self.sweep.trials, self.sweep.directions)
        blocks = []
        for trial in best_trials[:3]:
            blocks += [
                Text(f"Trial {trial.number}: {measured(self.sweep, trial)}"),
                Code(command_of(self.sweep, trial)),
            ]
        same = len(self.table.ties)
        if same:
            blocks.append(Text(f"Trials marked as ties ({same}) are as good as the best, as far as seeds can tell."))
        return Section("Best", blocks)

    def _trials(self, interactive: bool) -> Section:
        table, indices = self.table, [n for n, column in enumerate(self.table.columns) if column not in NOT_SHOWN]
        header = short_names([table.columns[n] for n in indices])
        rows = [[_cell_text(row[n]) for n in indices] for row in table.rows]
        names = [str(trial.number) for trial in table.trials] if interactive else []
        numbers = frozenset(n for n, c in enumerate(indices) if any(_is_number(row[c]) for row in table.rows))
        strong = frozenset({0} if table.rows and table.rows[0][0] == 1 else ())
        blocks: list[Block] = [Table(header, rows, numbers=numbers, strong=strong, names=names)] if rows else []
        if rows and self.drawn != len(rows):
            blocks.append(Text(f"The pictures show the first {self.drawn} of these {len(rows)} trials."))
        return Section("Trials", blocks)

    def _failures(self) -> Section:
        failed = [trial for trial in self.sweep.trials if trial.state is State.failed]
        rows = [[str(trial.number), str(trial.attempts), mask_secrets(error_of(trial) or "")] for trial in failed]
        return Section("Failures", [Table(("trial", "attempts", "reason"), rows)] if rows else [])

    def _definition(self) -> Section:
        rows = [[key, mask_secrets(text)] for key, text in self.sweep.space.items()]
        space = [Table(("key", "values"), rows, numbers=frozenset())] if rows else []
        return Section("Definition", [*space, Code(mask_secrets(self.sweep.command))])


def short_names(columns: Sequence[str]) -> list[str]:
    """Shorten each key to its last part where no other key has the same."""
    last = [column.rpartition(".")[2] for column in columns]
    return [short if last.count(short) == 1 else column for short, column in zip(last, columns, strict=True)]


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _cell_text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
