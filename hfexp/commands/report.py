"""The command `hfexp report`, which draws the report of a run from its record, with all pictures."""

from pathlib import Path

from hfexp.commands.parser import StoreParser
from hfexp.commands.records import RUN
from hfexp.core.console import quiet_libraries, say
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.tracking.run_directory import held_run
from hfexp.tracking.runs import SWEEP, best_run_of_sweep, find_one, home_of
from hfexp.tracking.store import tracking_uri


def main(argv: list[str]) -> int:
    """Draw the report of a finished run anew, and put it into the run's directory and into MLflow."""
    parser = StoreParser(
        "report",
        "Draw the report of a finished run with all pictures, e.g. of a job of a sweep, which draws none unless it is "
        "the best one. The run's data is read again, for the samples that the report shows.",
    )
    parser.add_argument("run", help=f"{RUN}, or sweep=NAME for the best run of a sweep")
    args = parser.parse_intermixed_args(argv)
    uri, output_dir = tracking_uri(args.uri, args.output_dir), Path(args.output_dir)
    is_sweep = args.run.startswith(SWEEP)
    run = best_run_of_sweep(uri, args.run.removeprefix(SWEEP)) if is_sweep else find_one(uri, args.run)
    home = home_of(run, output_dir)
    if home is None:
        raise ConfigError(
            f"{run.name} was not trained in {args.output_dir} on this machine, so its scores are not here"
        )
    quiet_libraries()
    from hfexp.experiment.redraw import redraw

    with held_run(home) as state:
        if state is None:
            raise ConfigError(f"{run.name} is still running; its report is drawn when it ends")
        try:
            redraw(home, state, uri, output_dir)
        except ConfigError:
            raise
        except Exception as error:
            raise RunError(f"the report is in {home / 'artifacts'}, but not in MLflow: {first_line(error)}") from error
    say(f"report: {home / 'artifacts' / 'report.html'}")
    return 0
