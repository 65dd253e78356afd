"""The command `hfexp compare`, which ranks recorded runs by a metric or shows two of them in detail."""

import argparse
import bisect
import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfexp.commands.parser import StoreParser
from hfexp.core.console import one_line, plain, printable
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.training_args import lower_is_better
from hfexp.tasks.cells import csv_cell
from hfexp.tracking.membership import RANKING
from hfexp.tracking.runs import RunRecord, choose_runs, is_sweep, metric_history, read_runs
from hfexp.tracking.store import tracking_uri

TOP, MAX_PARAMS, MAX_METRICS, MAX_CELL, MAX_CURVES, MAX_BARS = 20, 12, 6, 36, 8, 30
BOOKKEEPING = re.compile(r"tracking\.|(output_dir|name|on_existing)$")
"""Matches params that say where a run is recorded rather than what it does."""
MINOR = re.compile(r"_(runtime|per_second|samples|steps|time)$|^(epoch$|system/)")
FINAL = ("final_eval_", "test_")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
NO_NUMBER = ("-", "nan", "inf", "-inf")
NO_ENVIRONMENT = re.compile(
    "hfexp.(config_hash|command|overrides|run_dir|run_key|pid|process|status.*|resumed|metric.*|pruned|sweep.*|trial|replicate)$"
)
"""Matches tags that say how a run was started and how it went; hfexp's other tags describe its environment."""


@dataclass
class Ranking:
    """Runs ordered by a metric, best first, and the columns worth showing."""

    runs: list[RunRecord]
    ranks: list[int]
    """The rank of each run; runs with equal values share one, and so do runs without a value."""
    metric: str | None
    direction: str
    params: list[str]
    """Keys of the params whose values differ between the runs."""
    metrics: list[str]
    """Names of metrics; the ranking metric comes first."""
    of_sweep: bool = False
    """The runs are ordered as their sweep ranks its points, by what its search optimises."""


def main(argv: list[str]) -> int:
    """Compare runs and print the result."""
    args = _parse(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    runs, named = choose_runs(uri, args.names, args.where)
    parents = _parents(runs) - set(named)
    shown = [run for run in runs if run.run_id not in parents]
    places = {} if args.metric or args.order else _places_in_sweep(uri, shown)
    ranking = rank(shown, args.metric, args.order, args.all, places)
    if len(args.names) == len(named) == len(runs) == 2:
        _show_pair(runs[0], runs[1], ranking, args.format)
        notes = []
    else:
        notes = _show_ranking(ranking, args.format, args.top, args.all)
        notes += [f"parents of sweeps are not shown (no params of their own): {len(parents)}"] if parents else []
    for note in notes + _wrong_accumulation(ranking.runs):
        print(printable(f"({note})"), file=sys.stdout if args.format in ("table", "md") else sys.stderr)
    if args.plot is not None:
        plot(ranking, Path(args.plot), uri, min(args.top or TOP, MAX_BARS))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = StoreParser("compare", "Compare recorded runs; two of them in detail.")
    names = "experiments, runs (name, id, last, best), or sweep=NAME (default: the newest experiment)"
    parser.add_argument("names", nargs="*", help=names)
    parser.add_argument("--metric", help="metric to rank by (default: the one that selects the best checkpoint)")
    parser.add_argument("--order", choices=("min", "max"), help="whether small or large values are best")
    parser.add_argument("--where", metavar="FILTER", help='filter as in MLflow, e.g. "metrics.test_accuracy > 0.9"')
    parser.add_argument("--top", type=int, help=f"number of runs to show (default: {TOP}; csv and json: all)")
    parser.add_argument("--format", choices=("table", "csv", "json", "md"), default="table")
    parser.add_argument("--plot", metavar="FILE", help="plot the metric to FILE (.png, .svg or .pdf)")
    parser.add_argument("--all", action="store_true", help="show all params that differ and all metrics")
    args = parser.parse(argv)
    if args.top is not None and args.top < 1:
        raise ConfigError(f"--top {args.top}: must be at least 1")
    if args.plot is not None and Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {args.plot}: the file name must end in .png, .svg or .pdf")
    return args


def _wrong_accumulation(runs: list[RunRecord]) -> list[str]:
    """Warn about runs of an older version that did not weight the losses of accumulated batches."""
    key = "trainer.args.gradient_accumulation_steps"
    ours = [run for run in runs if "hfexp.config_hash" in run.tags and "hfexp.loss_weighting" not in run.tags]
    names = [run.name for run in ours if run.params.get(key, "1") not in ("1", "None")]
    if not names:
        return []
    return [
        f"not comparable: {one_of(names, 3)} accumulated gradients in an older version, whose loss and gradients were "
        f"{key} times too large for most models (not ViT, ConvNeXt, Llama); run them again"
    ]


def _parents(runs: list[RunRecord]) -> set[str]:
    """Return the ids of sweeps' own runs, and of runs that have children but share no params with them."""
    children = [run for run in runs if "mlflow.parentRunId" in run.tags]
    keys = set().union(*(run.params for run in children))
    parents = {run.tags["mlflow.parentRunId"] for run in children}
    return {r.run_id for r in runs if is_sweep(r) or (r.run_id in parents and keys.isdisjoint(r.params))}


def _places_in_sweep(uri: str, runs: list[RunRecord]) -> dict[str, int]:
    """Return the place of each run's point in the ranking of the sweep, by run id; empty unless there is one sweep."""
    parents = {run.tags.get("mlflow.parentRunId", "") for run in runs}
    sweeps = read_runs(uri, run_ids=parents) if len(parents) == 1 and "" not in parents else []
    numbers = sweeps[0].tags.get(RANKING, "").split() if sweeps else []
    trials = {run.run_id: run.tags.get("hfexp.trial", "") for run in runs}
    return {run_id: (*numbers, trial).index(trial) for run_id, trial in trials.items()} if numbers else {}


def rank(
    runs: list[RunRecord],
    metric: str | None = None,
    order: str | None = None,
    full: bool = False,
    places: Mapping[str, int] | None = None,
) -> Ranking:
    """Order runs by a metric; runs with NaN or without a value come last.

    Args:
        metric: default: the one that most tags name, else final accuracy, a `best_eval_*` metric or one of all runs.
        order: `min` or `max`; default: as tagged, else by the metric's name.
        full: include bookkeeping params and minor metrics.
        places: ranks by run id, which take precedence over the metric; runs may share a rank.
    """
    counts = Counter(name for run in runs for name in run.metrics)
    if metric is not None and metric not in counts and runs:
        raise ConfigError(
            f"--metric {metric}: no run has this metric.{did_you_mean(metric, counts)} Available: {one_of(counts, 20)}"
        )
    metric = metric or _default_metric(runs, counts)
    direction = order or _direction(runs, metric or "")
    sign = 1 if direction == "min" else -1
    scores = {run.run_id: sign * run.metrics.get(metric or "", math.nan) for run in runs}
    by_score = {run_id: (1, 0.0) if math.isnan(score) else (0, score) for run_id, score in scores.items()}
    keys = {run_id: (places[run_id], 0.0) for run_id in by_score} if places else by_score
    ordered = sorted(runs, key=lambda run: (keys[run.run_id], by_score[run.run_id]))
    in_order = sorted(keys.values())
    ranks = [bisect.bisect_left(in_order, keys[run.run_id]) + 1 for run in ordered]
    varied = [k for k in set().union(*(r.params for r in runs)) if len({r.params.get(k) for r in runs}) > 1]
    params = sorted(key for key in varied if full or not BOOKKEEPING.match(key))
    return Ranking(ordered, ranks, metric, direction, params, _metric_names(counts, metric, full), bool(places))


def _default_metric(runs: list[RunRecord], counts: Counter[str]) -> str | None:
    tagged = Counter(run.tags["hfexp.metric"] for run in runs if run.tags.get("hfexp.metric") in counts)
    names = sorted(name for name in counts if not MINOR.search(name))
    best = [*({"final_eval_accuracy"} & set(names)), *(name for name in names if name.startswith("best_eval_"))]
    shared = [name for name in names if counts[name] == len(runs)]
    return next(iter([name for name, _ in tagged.most_common(1)] + best + shared + names), None)


def _base(metric: str) -> str:
    """Strip the prefix that says when a metric was taken: `final_eval_accuracy` becomes `accuracy`."""
    return re.sub(r"^((final_|best_)?eval_|test_)", "", metric)


def _direction(runs: list[RunRecord], metric: str) -> str:
    tags = [run.tags for run in runs if _base(run.tags.get("hfexp.metric", "")) == _base(metric)]
    tagged = [t["hfexp.metric_direction"] for t in tags if t.get("hfexp.metric_direction") in ("min", "max")]
    return next(iter(tagged), "min" if lower_is_better(metric) else "max")


def _metric_names(counts: Counter[str], metric: str | None, everything: bool) -> list[str]:
    names = sorted(name for name in counts if everything or not MINOR.search(name))
    main = [name for prefix in FINAL for name in names if name.startswith(prefix)]
    return list(dict.fromkeys([*([metric] if metric else []), *main, *(names if everything or not main else [])]))


def _show_ranking(ranking: Ranking, form: str, top: int | None, everything: bool) -> list[str]:
    """Print the runs, and return notes about the runs, params and metrics that are not shown."""
    readable, count, params, metrics = form in ("table", "md"), len(ranking.runs), ranking.params, ranking.metrics
    limit = top or (TOP if readable else count)
    notes = [f"{count - limit} more runs: --top {count} shows them"] if count > limit else []
    if readable and not everything:
        varied = sorted(params, key=lambda key: Counter(r.params.get(key) for r in ranking.runs).most_common(1)[0][1])
        for kind, names, most in (("params", varied, MAX_PARAMS), ("metrics", metrics, MAX_METRICS)):
            notes += [f"{len(names) - most} more {kind}: --all shows them"] if len(names) > most else []
        params, metrics = sorted(varied[:MAX_PARAMS]), metrics[:MAX_METRICS]
    objects = [
        {"rank": place, "run_id": run.run_id, "name": run.name, "status": run.status}
        | {"params": {key: run.params.get(key) for key in params}}
        | {"metrics": {name: run.metrics.get(name) for name in metrics}, "duration_seconds": run.seconds}
        for place, run in list(zip(ranking.ranks, ranking.runs, strict=True))[:limit]
    ]
    head = ["rank", "run_id", "name", "status", *params, *metrics, "duration_seconds"]
    rows = [[*(o[k] for k in head[:4]), *o["params"].values(), *o["metrics"].values(), o[head[-1]]] for o in objects]
    if form == "json":
        print_json(objects)
    elif form == "csv":
        print_csv([head, *rows])
    elif not rows:
        print("no run matches")
    else:
        best = f", by {ranking.metric} ({ranking.direction} is best)" if ranking.metric else ""
        best = ", ranked as in the sweep" if ranking.of_sweep else best
        experiments = one_of({run.experiment for run in ranking.runs}, 3)
        print(printable(f"{experiments}: {count} run{'s' * (count != 1)}{best}\n"))
        hidden = {2 if len({row[2] for row in rows}) < len(rows) else 1}  # run ids replace names that are not unique
        hidden |= {3} if {row[3] for row in rows} <= {"FINISHED"} else set()
        labels = ["rank", "run", "run", "status", *_shorten_keys(params, ranking.runs), *metrics, "seconds"]
        timed = [[*row[:-1], None if row[-1] is None else f"{row[-1]:.1f}"] for row in rows]
        print(_table(*([v for i, v in enumerate(row) if i not in hidden] for row in [labels, *timed]), form=form))
    return notes


def _show_pair(a: RunRecord, b: RunRecord, ranking: Ranking, form: str) -> None:
    """Print what differs between two runs: config, data and environment, final metrics."""
    names = [n for i, n in enumerate(ranking.metrics) if i == 0 or n.startswith(FINAL)]
    sections: dict[str, list[list[Any]]] = {
        "config": [["param", "a", "b"], *_differing(a.params, b.params, ranking.params)],
        "environment": [["item", "a", "b"], *_differing(_environment(a), _environment(b))],
        "metrics": [["metric", "a", "b", "difference"], *_differing(a.metrics, b.metrics, names)],
    }
    for row in sections["metrics"][1:]:
        row.append(None if None in row else row[2] - row[1])
    if form == "json":
        heads = [{"run_id": r.run_id, "name": r.name, "experiment": r.experiment, "status": r.status} for r in (a, b)]
        tables = {name: [dict(zip(rows[0], r, strict=True)) for r in rows[1:]] for name, rows in sections.items()}
        print_json({"runs": heads, **tables})
    elif form == "csv":
        rows = [[name, *row, *[None] * (4 - len(row))] for name, rows in sections.items() for row in rows[1:]]
        print_csv([["section", "name", "a", "b", "difference"], *rows])
    else:
        heads = [f"{letter}: {r.name} ({r.run_id}, {r.status})" for letter, r in (("A", a), ("B", b))]
        print(("\n\n" if form == "md" else "\n").join(map(plain if form == "md" else one_line, heads)))
        titles = ("Config", "Data and environment", "Final metrics")
        for title, (head, *rows) in zip(titles, sections.values(), strict=True):
            labels = [{"a": "A", "b": "B", "difference": "B - A"}.get(name, name) for name in head]
            table = _table(labels, *rows, form=form) if rows else "identical"
            print(f"\n{'## ' * (form == 'md')}{title}\n{chr(10) * (form == 'md')}{table}")


def _differing(a: dict[str, Any], b: dict[str, Any], keys: list[str] | None = None) -> list[list[Any]]:
    keys = sorted(a.keys() | b.keys()) if keys is None else keys
    return [[key, a.get(key), b.get(key)] for key in keys if str(a.get(key)) != str(b.get(key))]


def _environment(run: RunRecord) -> dict[str, str]:
    """Collect the data and environment of a run, one value per name."""
    values = {key: v for key, v in run.tags.items() if key.startswith("hfexp.") and not NO_ENVIRONMENT.match(key)}
    counts: Counter[str] = Counter()
    for dataset in run.inputs:
        context = dataset["context"] or "data"
        counts[context] += 1
        name = f"dataset {context}" if counts[context] == 1 else f"dataset {context} {counts[context]}"
        values |= {f"{name}: {key}": str(value) for key, value in dataset.items() if key in ("name", "digest", "rows")}
    return values


def _shorten_keys(keys: list[str], runs: list[RunRecord]) -> list[str]:
    """Shorten each key to its shortest ending that no other param of the runs has."""

    def endings(key: str) -> list[str]:
        parts = key.split(".")
        return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]

    counts = Counter(ending for key in set().union(*(run.params for run in runs)) for ending in endings(key))
    return [next((ending for ending in endings(key) if counts[ending] == 1), key) for key in keys]


def _table(*rows: list[Any], form: str) -> str:
    cells = [[_cell(value) for value in row] for row in rows]
    if form == "md":
        lines = ["| " + " | ".join(map(plain, row)) + " |" for row in cells]
        return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(c in NO_NUMBER or NUMBER.fullmatch(c) for c in column[1:]) for column in zip(*cells, strict=True)]
    lines = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    text = "-" if value is None else one_line(" ".join(str(value).split()))
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def print_csv(rows: Iterable[Iterable[Any]]) -> None:
    """Print CSV, in which no text is a formula to a spreadsheet or moves the cursor of a terminal."""
    texts = [[printable(value) if isinstance(value, str) else value for value in row] for row in rows]
    csv.writer(sys.stdout, lineterminator="\n").writerows(map(csv_cell, row) for row in texts)


def print_json(content: Any) -> None:
    """Print JSON, with null in place of NaN and infinity, which JSON does not have."""
    print(json.dumps(json.loads(json.dumps(content), parse_constant=lambda constant: None), indent=1))


def plot(ranking: Ranking, path: Path, uri: str, top: int = TOP) -> None:
    """Draw the metric against the only numeric param that varies, or as bars; for a few runs, draw its course too."""
    import matplotlib

    metric = ranking.metric or ""
    runs = [run for run in ranking.runs if math.isfinite(run.metrics.get(metric, math.nan))]
    if not runs:
        raise ConfigError(f"--plot {path}: no run has a value for {ranking.metric or 'any metric'}")
    key = f"eval_{_base(metric)}"
    histories = [metric_history(uri, r.run_id, key) for r in runs] if 2 <= len(ranking.runs) <= MAX_CURVES else []
    curves = [(run.name[:MAX_CELL], points) for run, points in zip(runs, histories, strict=False) if points]
    with matplotlib.rc_context({"text.parse_math": False}):  # a `$` in a name is not a formula
        figure = _draw_figure(ranking, runs, curves, key, top)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_figure(ranking: Ranking, runs: list[RunRecord], curves: list[tuple[str, Any]], key: str, top: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14 if curves else 8, 5), layout="constrained")
    axes, *others = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    _plot_values(axes, runs, ranking, top)
    for other in others:
        for name, points in curves:
            other.plot(*zip(*points, strict=True), marker=".", label=name)
        other.set(xlabel="step", ylabel=key)
        other.legend(fontsize="small")
    return figure


def _plot_values(axes: Any, runs: list[RunRecord], ranking: Ranking, top: int) -> None:
    values = [run.metrics[ranking.metric or ""] for run in runs]
    texts = {key: [run.params.get(key, "") for run in runs] for key in ranking.params}
    numbers = {key: [float(text) for text in t if NUMBER.fullmatch(text)] for key, t in texts.items()}
    numeric = {key: x for key, x in numbers.items() if len(x) == len(runs) and len(set(x)) > 1}
    # Leave the seed out, so that repetitions of one experiment lie above each other.
    numeric = {key: x for key, x in numeric.items() if not key.endswith("seed")} or numeric
    if len(numeric) == 1:
        [(param, x)] = numeric.items()
        axes.plot(x, values, "o", alpha=0.7)
        axes.set(xlabel=param, ylabel=ranking.metric, title=f"{len(runs)} runs")
        axes.set_xscale("log" if min(x) > 0 and max(x) / min(x) > 100 else "linear")
        return
    bars = axes.barh([f"{i}. {run.name[:MAX_CELL]}" for i, run in enumerate(runs[:top], 1)], values[:top])
    axes.bar_label(bars, fmt="%.4g", padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set(xlabel=ranking.metric, title=f"best {len(values[:top])} of {len(runs)} runs")
