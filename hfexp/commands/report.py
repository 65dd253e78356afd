"""The command `hfexp report`, which draws the report of a run from its record, with all pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.commands.parser import StoreParser
from hfexp.commands.records import RUN
from hfexp.core.console import quiet_libraries, say
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.outside import DamagedRecord, read_yaml
from hfexp.tracking.run_directory import RunState, describe_changes, held_run
from hfexp.tracking.runs import SWEEP, RunRecord, best_run_of_sweep, find_one, home_of
from hfexp.tracking.store import tracking_uri

if TYPE_CHECKING:
    from hfexp.core.config import Config

NEEDED = ("seed", "task", "model", "dataset", "transform", "metrics", "security")
"""Sections of the recorded config from which the data is read again."""


def main(argv: list[str]) -> int:
    """Draw the report of a finished run anew, and put it into the run's directory and into MLflow."""
    parser = StoreParser(
        "report",
        "Draw the report of a finished run with all pictures, e.g. of a job of a sweep, which draws none unless it is "
        "the best so far. The run's data is read again, for the samples that the report shows.",
    )
    parser.add_argument("run", help=f"{RUN}, or sweep=NAME for the best run of a sweep")
    args = parser.parse_intermixed_args(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    is_sweep = args.run.startswith(SWEEP)
    run = best_run_of_sweep(uri, args.run.removeprefix(SWEEP)) if is_sweep else find_one(uri, args.run)
    home = home_of(run, Path(args.output_dir))
    if home is None:
        raise ConfigError(
            f"{run.name} was not trained in {args.output_dir} on this machine, so its scores are not here"
        )
    quiet_libraries()
    with held_run(home) as state:
        if state is None:
            raise ConfigError(f"{run.name} is still running; its report is drawn when it ends")
        draw(run, home, state)
    _deliver(uri, run, home / "artifacts")
    say(f"report: {home / 'artifacts' / 'report.html'}")
    return 0


def draw(run: RunRecord, home: Path, state: RunState) -> None:
    """Draw the report of a run that this process holds.

    Raises:
        ConfigError: the run has no final scores, or its data has changed.
    """
    from hfexp.core.machine import begin_collection
    from hfexp.experiment.preflight import load_inputs, process_splits
    from hfexp.tracking.lineage import split_digests
    from hfexp.tracking.report.canvas import Pictures
    from hfexp.tracking.report.facts import read_stored
    from hfexp.tracking.report.figures import draw_samples
    from hfexp.tracking.report.report import draw_report

    begin_collection()  # the slow imports are done by now
    try:
        facts, scores = read_stored(home)
    except FileNotFoundError as error:
        reason = "it was pruned" if state.pruned_step is not None else f"it is {state.status}, or of an older version"
        raise ConfigError(f"{run.name} has no final scores to draw: {reason}") from error
    except DamagedRecord as error:
        raise ConfigError(str(error)) from error
    config = recorded_config(home)
    inputs = load_inputs(config)
    changes = describe_changes(state.splits, split_digests(inputs.dataset))
    if changes:
        raise ConfigError(f"the data of {run.name} has changed since ({changes}): the report would show other rows")
    splits = process_splits(config, inputs.dataset, inputs.task, inputs.processor, inputs.transforms)
    drawn = Pictures(home / "artifacts")
    draw_samples(splits["train"], inputs.task, inputs.processor, drawn)
    draw_report(facts, scores, inputs.id2label, splits, inputs.task, inputs.processor, drawn)


def recorded_config(home: Path) -> "Config":
    """Read from the config of the user's own run what its data is made by.

    Raises:
        ConfigError: the file is missing or damaged, or does not fit this version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from hfexp.core.compose import importable_cwd
    from hfexp.core.config import Config, to_config

    importable_cwd()
    path = home / "config.yaml"
    try:
        recorded: Any = read_yaml(path)
        sections = {name: recorded[name] for name in NEEDED}
        return to_config(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(sections)))
    except (FileNotFoundError, TypeError, KeyError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not the config of a run of this version: {first_line(error)}") from error


def _deliver(uri: str, run: RunRecord, artifacts: Path) -> None:
    """Put the files of the report into MLflow; without a store, they stay in the run's directory."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient(uri).log_artifacts(run.run_id, str(artifacts))
    except MlflowException as error:
        raise RunError(f"the report is in {artifacts}, but MLflow did not take it: {first_line(error)}") from error
