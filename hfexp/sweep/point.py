"""One point of a sweep as a job: trained once, and afterwards answered from its run directory."""

from dataclasses import replace
from pathlib import Path

from hfexp.core.config import Config, OnExisting
from hfexp.core.console import note, say
from hfexp.core.identity import local_files_fingerprint
from hfexp.core.provenance import Origin
from hfexp.tracking.membership import TrialKey, opening_of, run_directory_of, sweep_info_of
from hfexp.tracking.names import experiment_name
from hfexp.tracking.recovery import close_finished
from hfexp.tracking.restore import restore_point
from hfexp.tracking.run_directory import RunState, held_run, read_state
from hfexp.tracking.store import tracking_uri

Values = float | tuple[float, ...]


def run(config: Config, origin: Origin, began: float | None = None) -> Values:
    """Run or continue a point, or return its values if it has finished before.

    Args:
        began: as of `hfexp.experiment.run.run`.

    Returns:
        The values that the sweep optimises: a number, or one for each of its metrics.

    Raises:
        ConfigError: the point can't be run as asked.
    """
    point = TrialKey.parse(str(config.point))
    sweep_info = sweep_info_of(str(config.point))
    if sweep_info.key is not None and point.marker.exists():
        restore_point(_in_experiment_of_sweep(config, origin, point), origin, point, sweep_info)
    finished = finished_run(point)
    if finished and config.on_existing is not OnExisting.rerun:
        path, state = finished
        if state.data == local_files_fingerprint(config.dataset.source):
            _deliver_rest(path, config)
            say(f"  already finished in {path}: {', '.join(f'{value:.6g}' for value in state.values or [])}")
            return _as_returned(state.values or [])
        note(f"the data of {path.name} has changed since it was run: running it again")

    from hfexp.experiment import run as experiment

    result = experiment.run(_in_experiment_of_sweep(config, origin, point), origin, began)
    return _as_returned(result.values or [])


def finished_run(point: TrialKey) -> tuple[Path, RunState] | None:
    """Return run directory and state of a finished (or pruned) point; None if it has still to be run."""
    path = run_directory_of(point)
    state = read_state(path) if path else None
    if path is None or state is None or state.status != "finished" or state.values is None or state.point is None:
        return None
    return (path, state) if TrialKey.parse(state.point) == point else None


def _deliver_rest(path: Path, config: Config) -> None:
    """Deliver what a finished run has left because its process was killed meanwhile.

    Once the sweep knows the values, nobody looks into the directory any more, and the user may delete it.
    """
    if config.tracking.backend == "none":
        return
    with held_run(path) as state:
        if state is not None and not state.closed:
            uri = tracking_uri(config.tracking.uri, config.output_dir)
            close_finished(path, state, uri, Path(config.output_dir))


def _in_experiment_of_sweep(config: Config, origin: Origin, point: TrialKey) -> Config:
    """Put the run into the sweep's MLflow experiment: in a sweep over datasets, each would have one of its own."""
    opened = opening_of(point.directory)
    name = sweep_info_of(str(point)).experiment or (opened["experiment"] if opened else None)
    if name is None or experiment_name(config, origin) == name:
        return config
    return replace(config, tracking=replace(config.tracking, experiment=name))


def _as_returned(values: list[float]) -> Values:
    return values[0] if len(values) == 1 else tuple(values)
