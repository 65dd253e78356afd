"""Plots of `hfexp compare`: a metric against what differs between the runs, or its course over the steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.commands.ranking import DERIVED, NUMBER, SEED, Group, Ranking, base_of, cell_text, shorten_keys, telling
from hfexp.core.errors import ConfigError
from hfexp.tracking.runs import RunRecord, metric_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 7.0, 4.5
"""Inches; a plot of bars is as high as they need."""
BAR_HEIGHT = 0.3
DOTS_PER_INCH = 200
MAX_BARS, MAX_CURVES, MAX_SERIES, MAX_PARTS = 30, 10, 8, 3
MAX_TICKS = 6
LETTER = 0.62
"""Mean width of a letter of DejaVu Sans relative to its size, with a little room."""
LARGEST_LETTERS = 9.0
LEGEND_MARK = 0.5
"""Inches that a legend needs beside its labels."""
LOG_RATIO = 30
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def plot(
    ranking: Ranking,
    path: Path,
    uri: str,
    top: int,
    curves: bool = False,
    size: tuple[float, float] | None = None,
) -> None:
    """Draw the ranking's metric to a file: against the number that varies, as bars, or over the steps.

    Args:
        top: largest number of bars or curves.
        curves: draw the metric's course over the steps, not its final value.
        size: width and height in inches.

    Raises:
        ConfigError: no run has a value, or none has recorded the metric's course.
    """
    from matplotlib.figure import Figure

    from hfexp.tracking.report.canvas import style

    metric = ranking.metric or ""
    runs = [run for run in ranking.runs if math.isfinite(run.metrics.get(metric, math.nan))]
    if not runs:
        raise ConfigError(f"--plot {path}: no run has a value for {ranking.metric or 'any metric'}")
    with style():
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        if curves:
            figure.set_size_inches(size or (WIDTH, HEIGHT))
            _draw_curves(axes, runs[: min(top, MAX_CURVES)], ranking, path, uri)
        elif (param := _number_that_varies(runs, ranking)) is not None:
            figure.set_size_inches(size or (WIDTH, HEIGHT))
            _draw_points(axes, runs, ranking, param)
        else:
            _draw_bars(figure, axes, runs[: min(top, MAX_BARS)], ranking, size)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DOTS_PER_INCH)


def labels_of(runs: Sequence[RunRecord], ranking: Ranking, leave_out: Sequence[str] = ()) -> list[str]:
    """Name runs by what differs between them, e.g. `learning_rate 0.003, seed 1`, or by their names."""
    keys = [key for key in telling(ranking.params, list(runs)) if len({run.params.get(key) for run in runs}) > 1]
    keys = [key for key in keys if key not in leave_out and not DERIVED.match(key)][:MAX_PARTS]
    short = shorten_keys(keys, list(runs))
    labels = [
        ", ".join(f"{name} {cell_text(run.params.get(key))}" for key, name in zip(keys, short, strict=True))
        for run in runs
    ]
    if all(labels) and len(set(labels)) == len(labels):
        return labels
    names = [cell_text(run.name) for run in runs]
    return (
        names
        if len(set(names)) == len(names)
        else [f"{name} ({run.run_id[:8]})" for name, run in zip(names, runs, strict=True)]
    )


def _number_that_varies(runs: Sequence[RunRecord], ranking: Ranking) -> str | None:
    """Return the only numeric param with several values; the seed counts only if nothing else varies."""
    texts = {key: [run.params.get(key) or "" for run in runs] for key in telling(ranking.params, list(runs))}
    numeric = [key for key, values in texts.items() if all(map(NUMBER.fullmatch, values)) and len(set(values)) > 1]
    numeric = [key for key in numeric if not DERIVED.match(key)]
    own = [key for key in numeric if not SEED.match(key)] or numeric
    return own[0] if len(own) == 1 else None


def _interval(run: RunRecord, ranking: Ranking) -> float:
    """Return half of the 95 % interval of the run's metric; 0 for a single run."""
    group: Group | None = ranking.groups.get(run.run_id)
    ends = group.estimates[ranking.metric or ""].interval if group else None
    return (ends[1] - ends[0]) / 2 if ends else 0.0


def _draw_points(axes: "Axes", runs: Sequence[RunRecord], ranking: Ranking, param: str) -> None:
    """Draw the metric against a numeric param: a series for each combination of what else differs."""
    metric = ranking.metric or ""
    others = [key for key in telling([param, *ranking.params], list(runs)) if key != param and not SEED.match(key)]
    others = [key for key in others if not DERIVED.match(key) and not _follows(key, param, runs)]
    series: dict[tuple[Any, ...], list[RunRecord]] = {}
    for run in runs:
        series.setdefault(tuple(run.params.get(key) for key in others), []).append(run)
    if not 1 < len(series) <= MAX_SERIES:
        series = {(): list(runs)}
    names = labels_of([members[0] for members in series.values()], ranking, [param]) if len(series) > 1 else [""]
    for name, members in zip(names, series.values(), strict=True):
        points = sorted((float(run.params[param]), run.metrics[metric], _interval(run, ranking)) for run in members)
        x, y, half = zip(*points, strict=True)
        joined = len(set(x)) == len(x)
        axes.errorbar(x, y, half if any(half) else None, fmt="o-" if joined else "o", capsize=3, alpha=0.8, label=name)
    numbers = [float(run.params[param]) for run in runs]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_RATIO:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=MAX_TICKS)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=shorten_keys([param], list(runs))[0], ylabel=_axis(ranking))
    if len(series) > 1:
        _add_legend(axes, names)


def _follows(key: str, param: str, runs: Sequence[RunRecord]) -> bool:
    """Return True if the value of `param` tells that of `key`, so that `key` tells no series apart."""
    pairs = {(run.params.get(param), run.params.get(key)) for run in runs}
    return len(pairs) == len({run.params.get(param) for run in runs})


def _draw_bars(
    figure: "Figure", axes: "Axes", runs: Sequence[RunRecord], ranking: Ranking, size: tuple[float, float] | None
) -> None:
    """Draw the metric of each run as a bar, the best one on top."""
    width, height = size or (WIDTH, max(2.0, BAR_HEIGHT * len(runs) + 1))
    figure.set_size_inches(width, height)
    values, half = [run.metrics[ranking.metric or ""] for run in runs], [_interval(run, ranking) for run in runs]
    bars = axes.barh(range(len(runs)), values, xerr=half if any(half) else None, capsize=3)
    labels = labels_of(runs, ranking)
    # A line of text is a fifth higher than its letters; the labels get half of the width.
    points = min(_letters(labels, width / 2), 72 * max(height - 1, 0.5) / len(runs) * 0.8)
    axes.set_yticks(range(len(runs)), labels, fontsize=points)
    axes.bar_label(bars, [cell_text(value) for value in values], padding=3, fontsize=points)
    axes.locator_params(axis="x", nbins=MAX_TICKS)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(xlabel=_axis(ranking))


def _draw_curves(axes: "Axes", runs: Sequence[RunRecord], ranking: Ranking, path: Path, uri: str) -> None:
    """Draw the metric over the steps; of averaged runs the mean, with the range of the runs around it."""
    key = f"eval_{base_of(ranking.metric or '')}"
    labels, drawn = labels_of(runs, ranking), False
    for run, label in zip(runs, labels, strict=True):
        group = ranking.groups.get(run.run_id)
        members = group.runs if group else [run]
        courses = [dict(metric_history(uri, member.run_id, key)) for member in members]
        steps = sorted(set.intersection(*map(set, courses)))
        if not steps:
            continue
        drawn = True
        (line,) = axes.plot(steps, [_mean(courses, step) for step in steps], marker=".", label=label)
        if len(courses) > 1:
            lowest, highest = ([end(course[step] for course in courses) for step in steps] for end in (min, max))
            axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)
    if not drawn:
        raise ConfigError(f"--plot {path}: no run has recorded {key} over the steps")
    axes.set(xlabel="step", ylabel=key)
    axes.locator_params(axis="x", nbins=MAX_TICKS, integer=True)
    if len(runs) > 1:
        _add_legend(axes, labels)


def _add_legend(axes: "Axes", labels: Sequence[str]) -> None:
    """Put the legend below the plot, in as many columns as its labels leave room for."""
    figure: Any = axes.figure
    width = figure.get_size_inches()[0]
    points = _letters(labels, width - LEGEND_MARK)
    needed = max(map(len, labels)) * points * LETTER / 72 + LEGEND_MARK
    columns = max(1, min(len(labels), int(width / needed)))
    figure.legend(loc="outside lower center", ncols=columns, fontsize=points)


def _letters(texts: Sequence[str], width: float) -> float:
    """Return the size in points at which the longest of the texts is at most this wide (inches)."""
    return min(LARGEST_LETTERS, width * 72 / (LETTER * max(map(len, texts), default=1)))


def _mean(courses: Sequence[Mapping[int, float]], step: int) -> float:
    return math.fsum(course[step] for course in courses) / len(courses)


def _axis(ranking: Ranking) -> str:
    averaged = any(len(group.runs) > 1 for group in ranking.groups.values())
    return f"{ranking.metric}{', mean and 95 % interval' if averaged else ''}"
