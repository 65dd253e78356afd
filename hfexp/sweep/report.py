"""The page of a sweep: the table of its trials, and Optuna's pictures of them."""

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hfexp.core.console import duration
from hfexp.core.secrets import mask_secrets
from hfexp.sweep.table import Curve, TrialTable, command_of, error_of, measured, states, swept_keys
from hfexp.sweep.trials import State, Sweep, Trial, best
from hfexp.tracking.report.canvas import GREY, ORANGE, drawable_labels, guarded, style
from hfexp.tracking.report.page import Block, Code, Picture, Report, Section, Table, Text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

# A study in memory, as Optuna's plots read one. The sweep's own study may be far away, knows the learning curves only
# with a pruner, and takes the numbers of a grid for categories.


WIDE = 30.0
"""Ratio of the largest to the smallest value above which a parameter has a logarithmic axis."""


def study_of(sweep: Sweep, curves: Mapping[int, Sequence[Curve]]) -> "Study":
    """Build a study of the sweep's trials in memory.

    Args:
        curves: learning curves by trial number, one for each run of the trial.
    """
    import optuna

    keys = swept_keys(sweep)
    names = dict(zip(keys, _labels(keys, LONGEST_NAME), strict=True))
    columns = {key: _column([t.params[key] for t in sweep.trials if key in t.params]) for key in keys}
    trials = {trial.number: trial for trial in sweep.trials}
    study = optuna.create_study(directions=[optuna.study.StudyDirection[name.upper()] for name in sweep.directions])
    for number in range(max(trials, default=-1) + 1):  # Optuna counts; a study that machines share may have gaps
        trial = trials.get(number) or Trial(number, {}, (), State.failed)
        state = _state(trial)
        study.add_trial(
            optuna.create_trial(
                state=state,
                values=_values(trial) if state == optuna.trial.TrialState.COMPLETE else None,
                params={names[key]: columns[key][1](value) for key, value in trial.params.items()},
                distributions={names[key]: columns[key][0] for key in trial.params},
                intermediate_values=_mean(curves.get(number, ())),
            )
        )
    return study


def _values(trial: Trial) -> tuple[float, ...] | None:
    """Return the values that a trial is ranked by."""
    return trial.objective or trial.values


def _state(trial: Trial) -> Any:
    """Return Optuna's state of a trial; one whose values are not finite counts as failed, as it has no place."""
    from optuna.trial import TrialState

    values = _values(trial)
    if trial.state is State.finished and values is not None and all(map(math.isfinite, values)):
        return TrialState.COMPLETE
    return {State.pruned: TrialState.PRUNED, State.running: TrialState.RUNNING}.get(trial.state, TrialState.FAIL)


def _column(values: Sequence[Any]) -> "tuple[BaseDistribution, Callable[[Any], Any]]":
    """Return the distribution of a parameter with these values, and what turns one of them into Optuna's."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        low, high = min(values), max(values)
        log = 0 < low < high / WIDE
        if all(isinstance(value, int) for value in values):
            return IntDistribution(low, high, log=log), int
        return FloatDistribution(low, high, log=log), float
    texts = sorted(set(map(_text, values)))
    labels = dict(zip(texts, _labels(texts, LONGEST_VALUE), strict=True))
    return CategoricalDistribution(tuple(labels.values())), lambda value: labels[_text(value)]


def _text(value: Any) -> str:
    return mask_secrets(value if isinstance(value, str) else json.dumps(value, default=str))


def _labels(texts: Sequence[str], limit: int) -> list[str]:
    """Return distinct labels; a `$` must not start a formula, which the ticks of a logarithmic axis are."""
    return [label.replace("$", r"\$") for label in drawable_labels(texts, limit)]


def _mean(curves: Sequence[Curve]) -> Curve:
    """Average the curves of a trial's runs, at each step over the runs that have reached it."""
    reached: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve.items():
            reached.setdefault(step, []).append(value)
    return {step: sum(values) / len(values) for step, values in reached.items()}


# The pictures: those of `optuna.visualization.matplotlib`.


LONGEST_NAME, LONGEST_VALUE = 40, 16
MOST_KEYS = 12
"""Most parameters in the picture of parallel coordinates."""
SLICES = 3
"""Most parameters in one picture of slices, which has them side by side."""
MOST_COLOURS = 20
"""Most curves with a colour each; of more, the best are orange and the others grey."""
FEWEST_FOR_IMPORTANCE = 4

Plot = Callable[[], Any]
"""Draws with pyplot, and returns the axes."""


def draw(sweep: Sweep, curves: Mapping[int, Sequence[Curve]], curve_metric: str) -> dict[str, bytes]:
    """Draw all pictures that there is data for, as PNG by name; one that fails is left out with a warning."""
    import optuna

    from hfexp.sweep.study import quiet

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawings = {}
    with quiet(), guarded("pictures"):
        for name, plot in _plots(sweep, study_of(sweep, curves), curve_metric).items():
            with guarded(name):
                drawings[name] = _png(plot)
    return drawings


def _plots(sweep: Sweep, study: "Study", curve_metric: str) -> dict[str, Plot]:
    """Choose the pictures that there is data for."""
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    goals = _labels(sweep.objectives, LONGEST_NAME)
    target = None if len(goals) == 1 else lambda trial: trial.values[0]
    goal = {"target": target, "target_name": goals[0]}
    chosen: dict[str, Plot] = {}
    if complete and len(goals) == 1:
        chosen["history"] = partial(plots.plot_optimization_history, study, **goal)
    elif complete:
        two = {"target_names": goals[:2], "targets": lambda trial: trial.values[:2]}
        chosen["front"] = partial(plots.plot_pareto_front, study, **two)
    if any(trial.intermediate_values for trial in trials):
        chosen["learning_curves"] = partial(_learning_curves, study, sweep, curve_metric)
    names = list(dict.fromkeys(name for trial in complete for name in trial.params))
    columns = {name: [trial.params[name] for trial in complete if name in trial.params] for name in names}
    varied = [name for name, values in columns.items() if len(set(values)) > 1]
    if varied:
        chosen["parallel_coordinates"] = partial(_parallel, study, varied[:MOST_KEYS], goal)
    for start in range(0, len(varied), SLICES):
        name = f"slices_{1 + start // SLICES}" if start else "slices"
        chosen[name] = partial(_slices, study, varied[start : start + SLICES], goal)
    everywhere = [name for name in varied if len(columns[name]) == len(complete)]
    if len(complete) >= FEWEST_FOR_IMPORTANCE and len(everywhere) > 1:
        chosen["importances"] = partial(_importances, study, everywhere, goal)
    return chosen


def _learning_curves(study: "Study", sweep: Sweep, metric: str) -> Any:
    from optuna.visualization.matplotlib import plot_intermediate_values

    axes = plot_intermediate_values(study)
    axes.set_ylabel(_labels([metric], LONGEST_NAME)[0])
    if len(axes.lines) > MOST_COLOURS:
        lines = {line.get_label(): line for line in axes.lines}
        best_lines = [lines.pop(f"Trial{trial.number}", None) for trial in best(sweep.trials, sweep.directions)]
        for line in lines.values():
            line.set(color=GREY, alpha=0.4)
        for line in filter(None, best_lines):
            line.set(color=ORANGE, alpha=1.0, zorder=3)
        axes.legend(handles=[*filter(None, best_lines)][:MOST_COLOURS])
    return axes


def _slices(study: "Study", params: list[str], goal: Mapping[str, Any]) -> Any:
    import matplotlib
    import numpy
    from optuna.visualization.matplotlib import plot_slice

    with matplotlib.rc_context({"figure.figsize": (9.6, 4.2)}):  # Optuna takes half of the width for each parameter
        axes: Any = plot_slice(study, params, **goal)
    for each in numpy.ravel(axes):
        each.tick_params("x", rotation=30)
    return axes


def _parallel(study: "Study", params: list[str], goal: Mapping[str, Any]) -> Any:
    import matplotlib
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    width = 4.0 + 1.5 * len(params)
    with matplotlib.rc_context({"figure.figsize": (width, 4.8)}):
        axes = plot_parallel_coordinate(study, params, **goal)
    axes.set_xticklabels([goal["target_name"], *sorted(params)], ha="left")  # Optuna cuts them
    bar = axes.figure.axes[1]
    bar.set_position(bar.get_position().translated(1.0 / width, 0))  # it would cover the values of the last parameter
    return axes


def _importances(study: "Study", params: list[str], goal: Mapping[str, Any]) -> Any:
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization.matplotlib import plot_param_importances

    return plot_param_importances(study, FanovaImportanceEvaluator(seed=0), params, **goal)


def _png(plot: Plot) -> bytes:
    import matplotlib
    import numpy

    buffer = io.BytesIO()
    settings: dict[Any, Any] = {"axes.spines.top": True, "axes.spines.right": True, "text.parse_math": True}
    with style(), matplotlib.rc_context(settings), _pyplot():
        figure = numpy.ravel(plot())[0].figure
        figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


@contextlib.contextmanager
def _pyplot() -> Iterator[None]:
    """Let pyplot draw without windows; afterwards close its new figures, and restore the backend of the process."""
    import matplotlib
    from matplotlib import pyplot

    backend, before = matplotlib.get_backend(auto_select=False), pyplot.get_fignums()
    pyplot.switch_backend("agg")
    try:
        yield
    finally:
        for number in {*pyplot.get_fignums()} - {*before}:
            pyplot.close(number)
        if backend is not None:
            pyplot.switch_backend(backend)


# The page.


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


@dataclass(frozen=True)
class SweepPage:
    """The page of a sweep, in HTML and in Markdown."""

    sweep: Sweep
    table: TrialTable
    drawings: Mapping[str, bytes]
    """Pictures as PNG, by name."""
    followed: int
    """Number of trials with a learning curve in the pictures."""

    def html(self) -> str:
        """Render one HTML file with the pictures in it."""
        return self._report().html({f"{name}.png": png for name, png in self.drawings.items()})

    def markdown(self) -> str:
        """Render Markdown, which links to the pictures beside it."""
        return self._report().markdown()

    def _report(self) -> Report:
        pictures = [self._pictures(name, title) for name, title in TITLES.items()]
        sections = [self._best(), self._trials(), *pictures, self._failures(), self._definition()]
        return Report(self.sweep.name, self._lead(), sections)

    def _pictures(self, name: str, title: str) -> Section:
        names = [other for other in self.drawings if other == name or other.startswith(f"{name}_")]
        return Section(title, [Picture(f"{other}.png", title) for other in names])

    def _lead(self) -> str:
        counted = ", ".join(f"{count} {state}" for state, count in states(self.sweep).items() if count)
        goals = zip(self.sweep.objectives, self.sweep.directions, strict=False)
        goal = ", ".join(f"{direction} {metric}" for metric, direction in goals)
        spent = duration(self.sweep.seconds)
        return f"{self.sweep.method}, to {goal}: {counted or 'no trials yet'}; {spent}"

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

    def _trials(self) -> Section:
        table, indices = self.table, [n for n, column in enumerate(self.table.columns) if column not in NOT_SHOWN]
        header = short_names([table.columns[n] for n in indices])
        rows = [[_cell_text(row[n]) for n in indices] for row in table.rows]
        numbers = frozenset(n for n, c in enumerate(indices) if any(_is_number(row[c]) for row in table.rows))
        strong = frozenset({0} if table.rows and table.rows[0][0] == 1 else ())
        blocks: list[Block] = [Table(header, rows, numbers=numbers, strong=strong)] if rows else []
        if self.followed < len(rows):
            blocks.append(Text(f"The learning curves are those of the first {self.followed} of these trials."))
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
