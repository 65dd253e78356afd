"""The report of a run that has ended, drawn anew from its record, with all pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.core.errors import ConfigError, first_line
from hfexp.core.outside import DamagedRecord, read_yaml
from hfexp.tracking.journal import Journal
from hfexp.tracking.recovery import deliver_rest
from hfexp.tracking.run_directory import RunState, describe_changes

if TYPE_CHECKING:
    from hfexp.core.config import Config

NEEDED = ("seed", "task", "model", "dataset", "transform", "metrics", "security")
"""Sections of the recorded config from which the data is read again."""


def redraw(home: Path, state: RunState, uri: str, output_dir: Path) -> None:
    """Draw the report of a run, and put it into MLflow if the run is recorded there.

    Args:
        home: its run directory, whose lock the caller holds.

    Raises:
        ConfigError: the run has no final scores, or its data has changed.
        Exception: the store can't be reached; `hfexp sync` delivers the report later.
    """
    _draw(home, state)
    journal = Journal(home)
    if journal.begun():
        journal.append("artifacts", path="artifacts", name=None)
        deliver_rest(home, state, uri, output_dir)


def _draw(home: Path, state: RunState) -> None:
    """Draw the report of a run from its record and its data, which is read again, into its directory."""
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
        raise ConfigError(f"{home.name} has no final scores to draw: {reason}") from error
    except DamagedRecord as error:
        raise ConfigError(str(error)) from error
    config = recorded_config(home)
    inputs = load_inputs(config)
    changes = describe_changes(state.splits, split_digests(inputs.dataset))
    if changes:
        raise ConfigError(f"the data of {home.name} has changed since ({changes}): the report would show other rows")
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
