"""The command `hfexp compare`, which ranks recorded runs by a metric or shows two of them in detail."""

import argparse
import csv
import html
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfexp.commands.parser import StoreParser
from hfexp.commands.ranking import (
    DERIVED,
    FINAL,
    NUMBER,
    SEED,
    Ranking,
    average,
    cell_text,
    rank,
    replicates,
    represent,
    shorten_keys,
    telling,
)  # fmt: skip
from hfexp.core.console import one_line, plain, printable
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.tasks.cells import csv_cell
from hfexp.tracking.membership import RANKING
from hfexp.tracking.runs import RunRecord, choose_runs, is_sweep, read_runs
from hfexp.tracking.store import tracking_uri

TOP, MAX_PARAMS, MAX_METRICS = 20, 12, 6
WIDE = 200
"""Characters in a line of a table that goes to a file or a pipe."""
SHORT_ID = 8
ENDS = {"params": ".", "metrics": "_"}
"""What stands before the last part of a name: `trainer.args.learning_rate`, `test_accuracy`."""
NO_NUMBER = ("-", "nan", "inf", "-inf")
NO_ENVIRONMENT = re.compile(
    "hfexp.(config_hash|command|overrides|run_dir|run_key|pid|process|status.*|resumed|metric.*|pruned|sweep.*|trial|replicate)$"
)
"""Matches tags that say how a run was started and how it went; hfexp's other tags describe its environment."""


def main(argv: list[str]) -> int:
    """Compare runs and print the result."""
    args = _parse(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    runs, named = choose_runs(uri, args.names, args.where)
    parents = _parents(runs) - set(named)
    shown = [run for run in runs if run.run_id not in parents]
    sweep = None if args.metric or args.order else _sweep_of(uri, shown)
    metric, places = args.metric, {}
    if sweep:
        (metric, shown), places = _with_objective(sweep, shown), _places(sweep, shown)
    groups = average(shown) if args.mean else {}
    if any(len({places.get(run.run_id) for run in group.runs}) > 1 for group in groups.values()):
        places = {}  # the sweep has ranked the seeds one by one
    ranking = rank(represent(groups) if args.mean else shown, metric, args.order, args.all, places)
    ranking.groups = groups
    if not args.mean and len(args.names) == len(named) == len(runs) == 2:
        _show_pair(runs[0], runs[1], ranking, args.format)
        notes = []
    else:
        notes = _show_ranking(ranking, args.format, args.top, args.all, args.columns)
        notes += _replicates(ranking)
        notes += [f"parents of sweeps are not shown (no params of their own): {len(parents)}"] if parents else []
    for note in notes + _wrong_accumulation(ranking.runs):
        print(printable(f"({note})"), file=sys.stdout if args.format in ("table", "md") else sys.stderr)
    if args.plot is not None:
        from hfexp.commands.compare_plot import plot

        plot(ranking, Path(args.plot), uri, args.top or TOP, args.curves, args.size)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = StoreParser("compare", "Compare recorded runs; two of them in detail.")
    names = "experiments, runs (name, id, last, best), or sweep=NAME (default: the newest experiment)"
    parser.add_argument("names", nargs="*", help=names)
    parser.add_argument("--metric", help="metric to rank by (default: the one that selects the best checkpoint)")
    parser.add_argument("--order", choices=("min", "max"), help="whether small or large values are best")
    parser.add_argument("--where", metavar="FILTER", help='filter as in MLflow, e.g. "metrics.test_accuracy > 0.9"')
    parser.add_argument("--top", type=int, help=f"number of runs to show (default: {TOP}; csv and json: all)")
    parser.add_argument("--columns", type=_names, metavar="A,B", help="params and metrics to show, by name or its end")
    parser.add_argument("--all", action="store_true", help="show all params that differ and all metrics")
    parser.add_argument(
        "--mean",
        action="store_true",
        help="average runs that differ only in their seed; shows mean and 95 %% interval",
    )
    parser.add_argument("--format", choices=("table", "csv", "json", "md", "latex", "html"), default="table")
    parser.add_argument("--plot", metavar="FILE", help="plot the metric to FILE (.png, .svg or .pdf)")
    parser.add_argument("--curves", action="store_true", help="plot the metric's course over the steps instead")
    parser.add_argument("--size", type=_size, metavar="WxH", help="width and height of the plot in inches: 3.5x2.5")
    args = parser.parse(argv)
    if args.plot is None and (args.curves or args.size):
        raise ConfigError("--curves and --size describe a plot: give --plot FILE too")
    if args.top is not None and args.top < 1:
        raise ConfigError(f"--top {args.top}: must be at least 1")
    if args.plot is not None and Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {args.plot}: the file name must end in .png, .svg or .pdf")
    return args


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _size(text: str) -> tuple[float, float]:
    """Read `3.5x2.5`; raise argparse's error for anything else, and for sizes that no figure has."""
    match = re.fullmatch(r"(\d+\.?\d*)x(\d+\.?\d*)", text)
    size = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not all(1 <= side <= 100 for side in size):
        raise argparse.ArgumentTypeError(f"{text!r}: expected width x height in inches, each from 1 to 100: 3.5x2.5")
    return size


def _replicates(ranking: Ranking) -> list[str]:
    """Say what the numbers of averaged runs are, or that runs could be averaged."""
    if ranking.groups:
        repeats = sum(group.repeats for group in ranking.groups.values())
        notes = [f"earlier runs with the same seed are left out: {repeats}"] if repeats else []
        return ["mean of the runs that differ only in their seed ± half of the 95 % interval (Student's t)", *notes]
    if not any(map(SEED.match, ranking.params)):
        return []
    most = max((len(members) for members, _ in replicates(ranking.runs)), default=1)
    return [f"up to {most} runs differ only in their seed: --mean shows their mean and interval"] if most > 1 else []


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


def _sweep_of(uri: str, runs: list[RunRecord]) -> RunRecord | None:
    """Return the own run of the sweep that all of the runs belong to, if it has ranked them."""
    parents = {run.tags.get("mlflow.parentRunId", "") for run in runs}
    sweeps = read_runs(uri, run_ids=parents) if len(parents) == 1 and "" not in parents else []
    return sweeps[0] if sweeps and RANKING in sweeps[0].tags else None


def _places(sweep: RunRecord, runs: list[RunRecord]) -> dict[str, int]:
    """Return the place of each run's point in the ranking of the sweep, by run id."""
    numbers = sweep.tags[RANKING].split()
    trials = {run.run_id: run.tags.get("hfexp.trial", "") for run in runs}
    return {run_id: (*numbers, trial).index(trial) for run_id, trial in trials.items()}


def _with_objective(sweep: RunRecord, runs: list[RunRecord]) -> tuple[str | None, list[RunRecord]]:
    """Return the metric that the sweep's (first) objective is, None if no run has it, and the runs with that metric.

    Finished runs have it as `final_eval_*`, of the saved model, and pruned ones as `best_eval_*`: they save none.
    """
    name = sweep.params.get("search.metrics", "").partition(", ")[0]
    best, final = f"best_{name}", f"final_{name}"
    runs = [
        replace(run, metrics={best: run.metrics[final], **run.metrics}) if final in run.metrics else run
        for run in runs
    ]
    return next((metric for metric in (best, name) if any(metric in run.metrics for run in runs)), None), runs


def _show_ranking(
    ranking: Ranking, form: str, top: int | None, everything: bool, columns: Sequence[str] | None = None
) -> list[str]:
    """Print the runs, and return notes about the runs, params and metrics that are not shown."""
    count, is_data = len(ranking.runs), form in ("csv", "json")
    limit = top or (count if is_data else TOP)
    notes = [f"{count - limit} more runs: --top {count} shows them"] if count > limit else []
    if columns is not None:
        params, metrics = _pick(ranking, columns)
    else:
        params, metrics = telling(ranking.params, ranking.runs), ranking.metrics
    if form == "json":
        print_json(_objects(ranking, params, metrics, limit))
    elif form == "csv":
        print_csv(_flat(_objects(ranking, params, metrics, limit)))
    elif not count:
        print("no run matches")
    else:
        chosen = everything or columns is not None
        width: float = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
        width = width if form == "table" else math.inf
        table = _columns(ranking, params, metrics, limit, width)
        if not chosen:
            table, left_out = _fit(table, width)
            kinds = [(kind, sum(column.kind == kind for column in left_out)) for kind in ("param", "metric")]
            notes += [
                f"{n} more {kind}{'s' * (n > 1)}: --columns NAME,... or --all shows them" for kind, n in kinds if n
            ]
        _print_titled(
            _title(ranking), [[c.heading for c in table], *zip(*(c.cells for c in table), strict=True)], form
        )
    return notes


def _title(ranking: Ranking) -> str:
    best = f", by {ranking.metric} ({ranking.direction} is best)" if ranking.metric else ""
    best = ", ranked as in the sweep" if ranking.of_sweep else best
    experiments, count = one_of({run.experiment for run in ranking.runs}, 3), len(ranking.runs)
    what = "configuration" if ranking.groups else "run"
    return printable(f"{experiments}: {count} {what}{'s' * (count != 1)}{best}")


def _pick(ranking: Ranking, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find the params and metrics that a user names, in that order, by their names or the ends of those.

    Raises:
        ConfigError: no run has such a param or metric.
    """
    known = {kind: set().union(*(getattr(run, kind) for run in ranking.runs)) for kind in ("params", "metrics")}
    picked: dict[str, list[str]] = {"params": [], "metrics": []}
    for name in columns:
        kinds = [
            (kind, key)
            for kind, keys in known.items()
            for key in sorted(keys, key=lambda key: (not key.startswith(FINAL), len(key), key))
            if key == name or key.endswith(f"{ENDS[kind]}{name}")
        ]
        exact = [(kind, key) for kind, key in kinds if key == name] or kinds
        if not exact:
            names = sorted(set().union(*known.values()))
            raise ConfigError(f"--columns {name}: no run has such a param or metric.{did_you_mean(name, names)}")
        picked[exact[0][0]].append(exact[0][1])
    metrics = [name for name in picked["metrics"] if name != ranking.metric]
    return picked["params"], [*([ranking.metric] if ranking.metric else []), *metrics]


def _objects(ranking: Ranking, params: list[str], metrics: list[str], limit: int) -> list[dict[str, Any]]:
    """Return the first runs as plain values; the metrics of averaged runs as mean and ends of the interval."""
    objects = []
    for place, run in list(zip(ranking.ranks, ranking.runs, strict=True))[:limit]:
        group = ranking.groups.get(run.run_id)
        values: dict[str, Any] = {name: run.metrics.get(name) for name in metrics}
        head: dict[str, Any] = {"rank": place, "run_id": run.run_id}
        if group is not None:
            head = {"rank": place, "run_ids": [member.run_id for member in group.runs]}
            for name in values.keys() & group.estimates.keys():
                low, high = group.estimates[name].interval or (None, None)
                values[name] = {"mean": group.estimates[name].mean, "low": low, "high": high}
        head |= {"name": run.name, "status": run.status, "params": {key: run.params.get(key) for key in params}}
        objects.append(head | {"metrics": values, "duration_seconds": run.seconds})
    return objects


def _flat(objects: list[dict[str, Any]]) -> list[list[Any]]:
    """Return the objects as a table: an interval as three columns, several ids in one cell."""
    rows = []
    for item in objects:
        row: dict[str, Any] = {"rank": item["rank"]}
        row |= {"run_id": item["run_id"]} if "run_id" in item else {"run_ids": " ".join(item["run_ids"])}
        row |= {"name": item["name"], "status": item["status"]}
        row |= {f"params.{key}" if key in row else key: value for key, value in item["params"].items()}
        for name, value in item["metrics"].items():
            ends = {f"{name}_{end}": value[end] for end in ("low", "high")} if isinstance(value, dict) else {}
            row |= {name: value["mean"], **ends} if isinstance(value, dict) else {name: value}
        rows.append({**row, "duration_seconds": item["duration_seconds"]})
    head = list(dict.fromkeys(name for row in rows for name in row))
    return [head, *([row.get(name) for name in head] for row in rows)]


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    heading: str
    cells: list[str]
    kind: str = ""
    """`param` or `metric`; empty for a column that every table has."""


def _columns(ranking: Ranking, params: list[str], metrics: list[str], limit: int, width: float) -> list[Column]:
    """Return the columns of the first runs, the most telling ones first."""
    ranks, runs = ranking.ranks[:limit], ranking.runs[:limit]
    columns = [Column("rank", [str(place) for place in ranks]), Column("run", _run_names(runs, width))]
    if ranking.groups:
        columns.append(Column("runs", [str(len(ranking.groups[run.run_id].runs)) for run in runs]))
    if {run.status for run in runs} - {"FINISHED"}:
        columns.append(Column("status", [run.status for run in runs]))
    first = [Column(name, [_value(ranking, run, name) for run in runs], "metric") for name in metrics]
    own = [key for key in params if not DERIVED.match(key)]
    short = dict(zip(params, shorten_keys(params, ranking.runs), strict=True))
    shown = {key: Column(short[key], [cell_text(run.params.get(key)) for run in runs], "param") for key in params}
    columns += [replace(column, kind="") for column in first[:1]]
    new, same = ([c for c in first[1:] if (c.cells == first[0].cells) is is_same] for is_same in (False, True))
    columns += [shown[key] for key in own] + new + same + [shown[key] for key in params if key not in own]
    seconds = [None if run.seconds is None else f"{run.seconds:.1f}" for run in runs]
    return [*columns, Column("seconds", [cell_text(value) for value in seconds])]


def _run_names(runs: list[RunRecord], width: float) -> list[str]:
    """Return the runs' names, or the beginnings of their ids if a name is not unique or takes a third of the line."""
    names = [one_line(run.name) for run in runs]
    if len(set(names)) == len(names) and max(map(len, names)) <= width / 3:
        return names
    ids = [run.run_id for run in runs]
    lengths = range(SHORT_ID, max(map(len, ids)))
    return [run_id[: next((n for n in lengths if len({i[:n] for i in ids}) == len(ids)), None)] for run_id in ids]


def _value(ranking: Ranking, run: RunRecord, name: str) -> str:
    group = ranking.groups.get(run.run_id)
    value = group.estimates.get(name) if group else None
    if value is None or value.interval is None:
        return cell_text(run.metrics.get(name))
    low, high = value.interval
    return f"{cell_text(value.mean)} ± {cell_text((high - low) / 2)}"


def _fit(columns: list[Column], width: float) -> tuple[list[Column], list[Column]]:
    """Return the columns that a line of this width holds, and the params and metrics that are left out."""
    kept, left_out, counts = [], [], Counter[str]()
    limits = {"param": MAX_PARAMS, "metric": MAX_METRICS - 1}
    free = width + len(SPACE) - sum(_width(column) for column in columns if not column.kind)
    for column in columns:
        fits = not column.kind or (counts[column.kind] < limits[column.kind] and _width(column) <= free)
        counts[column.kind] += fits
        free -= _width(column) if column.kind and fits else 0
        (kept if fits else left_out).append(column)
    return kept, left_out


def _width(column: Column) -> int:
    return max(map(len, [column.heading, *column.cells])) + len(SPACE)


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
        mark = {"latex": "% ", "html": "<p>"}.get(form, "")
        shown = {"md": plain, "html": lambda head: html.escape(one_line(head))}.get(form, one_line)
        print(("\n\n" if form == "md" else "\n").join(f"{mark}{shown(head)}" for head in heads))
        titles = ("Config", "Data and environment", "Final metrics")
        for title, (head, *rows) in zip(titles, sections.values(), strict=True):
            labels = [{"a": "A", "b": "B", "difference": "B - A"}.get(name, name) for name in head]
            texts = [[cell_text(value) for value in row] for row in [labels, *rows]]
            table = _table(*texts, form=form) if rows else "identical"
            title = f"<h2>{title}</h2>" if form == "html" else title
            mark = {"md": "## ", "latex": "% "}.get(form, "")
            print(f"\n{mark}{title}\n{chr(10) * (form == 'md')}{table}")


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


SPACE = "  "
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", **{character: f"\\{character}" for character in "&%$#_"},
})  # fmt: skip


def _print_titled(title: str, rows: Sequence[Sequence[str]], form: str) -> None:
    """Print a table below its title: in LaTeX a comment, in HTML the caption."""
    if form == "latex":
        print(f"% {one_line(title)}; needs \\usepackage{{booktabs}}\n{_table(*rows, form=form)}")
    elif form == "html":
        print(_table(*rows, form=form).replace("<table>", f"<table>\n<caption>{html.escape(title)}</caption>", 1))
    else:
        print(f"{title}\n\n{_table(*rows, form=form)}")


def _table(*cells: Sequence[str], form: str) -> str:
    """Return rows of texts, the first of which holds the headings, as text, Markdown, LaTeX or HTML."""
    columns = list(zip(*cells, strict=True))
    right = [all(c in NO_NUMBER or NUMBER.match(c) for c in column[1:]) for column in columns]
    if form == "md":
        lines = ["| " + " | ".join(map(plain, row)) + " |" for row in cells]
        return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])
    if form == "latex":
        head, *body = [" & ".join(text.translate(LATEX) for text in row) + r" \\" for row in cells]
        kinds = "".join("r" if r else "l" for r in right)
        return "\n".join([rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *body,
                          r"\bottomrule", r"\end{tabular}"])  # fmt: skip
    if form == "html":
        tags = ["th", *["td"] * len(cells)]
        lines = [
            "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row)
            for tag, row in zip(tags, cells, strict=False)
        ]
        return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])
    widths = [max(map(len, column)) for column in columns]
    lines = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in cells]
    return "\n".join(SPACE.join(line).rstrip() for line in lines)


def print_csv(rows: Iterable[Iterable[Any]]) -> None:
    """Print CSV, in which no text is a formula to a spreadsheet or moves the cursor of a terminal."""
    texts = [[printable(value) if isinstance(value, str) else value for value in row] for row in rows]
    csv.writer(sys.stdout, lineterminator="\n").writerows(map(csv_cell, row) for row in texts)


def print_json(content: Any) -> None:
    """Print JSON, with null in place of NaN and infinity, which JSON does not have."""
    print(json.dumps(json.loads(json.dumps(content), parse_constant=lambda constant: None), indent=1))
