"""The commands that keep recorded runs in order: `hfexp runs` lists them, `hfexp note` and `hfexp tag` mark them."""

import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from hfexp.commands.compare import print_csv, print_json
from hfexp.commands.parser import StoreParser
from hfexp.core.console import build_table, cell, duration, one_line, print_table, quiet_libraries, say
from hfexp.core.errors import ConfigError, RunError
from hfexp.core.files import bytes_below
from hfexp.core.secrets import mask_secrets, mask_values
from hfexp.data.cache import show_size
from hfexp.tracking.notes import NOTE, join_note, split_note
from hfexp.tracking.runs import RunRecord, choose_runs, find_run, home_of, is_sweep, read_runs
from hfexp.tracking.store import tracking_uri

OWNED_TAGS = ("hfexp.", "mlflow.")
"""Beginnings of tags that hfexp and MLflow themselves write."""
RUN = "the run's name or id or the beginning of one, or last, best, best:EXPERIMENT"
SHOWN = 20
"""Runs that a table shows without `--top`."""


@dataclass(frozen=True)
class Row:
    """One run as `hfexp runs` shows it."""

    started: str
    experiment: str
    name: str
    status: str
    objective: str
    time: str
    size: str
    note: str
    run_id: str


def runs(argv: list[str]) -> int:
    """List recorded runs, newest first."""
    parser = StoreParser("runs", "List the recorded runs, newest first.")
    parser.add_argument("names", nargs="*", help="experiments, runs or sweep=NAME (default: all runs)")
    parser.add_argument("--where", metavar="FILTER", help="filter as in MLflow, e.g. \"attributes.status = 'FAILED'\"")
    parser.add_argument("--top", type=int, help=f"number of runs to show (default: {SHOWN}; csv and json: all)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    args = parser.parse(argv)
    if args.top is not None and args.top < 1:
        raise ConfigError(f"--top {args.top}: must be at least 1")
    uri = tracking_uri(args.uri, args.output_dir)
    records = choose_runs(uri, args.names, args.where)[0] if args.names else read_runs(uri, where=args.where)
    records.sort(key=lambda run: run.start_time or 0, reverse=True)
    limit = args.top or (SHOWN if args.format == "table" else len(records))
    rows = [_row(run, Path(args.output_dir)) for run in records[:limit]]
    if args.format == "json":
        print_json([asdict(row) for row in rows])
    elif args.format == "csv":
        print_csv([list(Row.__dataclass_fields__), *map(astuple, rows)])
    else:
        _show(rows, len(records) - len(rows))
    return 0


def note(argv: list[str]) -> int:
    """Write a note on a run, which MLflow shows as its description; print the note if no text is given."""
    parser = StoreParser("note", "Write a note on a run, or print it; MLflow shows it in the run's description.")
    parser.add_argument("run", help=RUN)
    parser.add_argument("text", nargs="?", help='the note; "" removes it')
    args = parser.parse_intermixed_args(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    run = find_run(uri, args.run)
    own, summary = split_note(run.tags.get(NOTE, ""))
    if args.text is None:
        say(own)
        return 0
    _set_tag(uri, run, NOTE, join_note(args.text, summary))
    say(f"{run.name}: note {'written' if args.text else 'removed'}")
    return 0


def tag(argv: list[str]) -> int:
    """Set tags of a run, by which MLflow and `--where` find it; print the tags if none is given."""
    parser = StoreParser("tag", "Set tags of a run, which MLflow and --where find; without KEY=VALUE, print them.")
    parser.add_argument("run", help=RUN)
    parser.add_argument("tags", nargs="*", metavar="KEY=VALUE", help="a tag to set; KEY= removes it")
    args = parser.parse_intermixed_args(argv)
    pairs = [text.partition("=") for text in args.tags]
    for text, (key, equals, _) in zip(args.tags, pairs, strict=True):
        if not key or not equals:
            raise ConfigError(f"{text!r} is not KEY=VALUE")
        if key.startswith(OWNED_TAGS):
            raise ConfigError(f"{key}: tags that begin with {' or '.join(OWNED_TAGS)} belong to hfexp and MLflow")
    uri = tracking_uri(args.uri, args.output_dir)
    run = find_run(uri, args.run)
    for key, _, value in pairs:
        _set_tag(uri, run, key, value)
    shown = {key: value for key, value in run.tags.items() if not key.startswith(OWNED_TAGS)}
    shown = mask_values(shown | {key: value for key, _, value in pairs})
    for key in sorted(shown):
        if shown[key]:
            say(f"{key}={one_line(shown[key])}")
    return 0


def _set_tag(uri: str, run: RunRecord, key: str, value: str) -> None:
    """Set a tag of a run in its store; an empty value removes it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    quiet_libraries()
    try:
        client = MlflowClient(uri)
        if value:
            client.set_tag(run.run_id, key, mask_values({key: value})[key])
        elif key in run.tags:
            client.delete_tag(run.run_id, key)
    except MlflowException as error:
        raise RunError(f"{run.name}: the tag {key} can't be written: {' '.join(str(error).split())}") from error


def _row(run: RunRecord, output_dir: Path) -> Row:
    metric = run.tags.get("hfexp.metric", "")
    value = run.metrics.get(metric)
    home = home_of(run, output_dir)
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start_time / 1000)) if run.start_time else ""
    return Row(
        started=begun,
        experiment=run.experiment,
        name=f"{run.name} (sweep)" if is_sweep(run) else run.name,
        status=run.status,
        objective="" if value is None else f"{metric.removeprefix('final_')} {value:.4g}",
        time="" if run.seconds is None else duration(run.seconds),
        size="" if home is None else show_size(bytes_below(home)),
        note=mask_secrets(split_note(run.tags.get(NOTE, ""))[0].partition("\n")[0]),
        run_id=run.run_id,
    )


def _show(rows: list[Row], more: int) -> None:
    if not rows:
        say("no run matches")
        return
    columns = [
        name for name in Row.__dataclass_fields__ if name != "run_id" and any(getattr(row, name) for row in rows)
    ]
    table = build_table(*columns)
    for row in rows:
        table.add_row(*(cell(getattr(row, column)) for column in columns))
    print_table(table)
    if more:
        say(f"({more} more runs: --top {len(rows) + more} shows them)")
