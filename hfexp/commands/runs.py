"""A recorded run in Python: its metrics, its pictures and its model."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.commands import evaluate as evaluation
from hfexp.commands import predict as command
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.outside import read_record
from hfexp.experiment.result import result_html
from hfexp.tracking.run_directory import STATE, read_state
from hfexp.tracking.runs import RunRecord, best_run_of_sweep, find_one, home_of, metric_history
from hfexp.tracking.store import tracking_uri

if TYPE_CHECKING:
    import pandas

    from hfexp.inference.load import LoadedModel


@dataclass
class LoadedRun:
    """A run as it was recorded; its model is loaded on first use."""

    name: str
    metrics: dict[str, float]
    params: dict[str, str] = field(repr=False)
    tags: dict[str, str] = field(repr=False)
    status: str
    run_id: str | None = None
    """Id of the run in MLflow; None if it was loaded from its directory."""
    uri: str | None = None
    """Tracking store of the run; None if it was loaded from its directory."""
    directory: Path | None = None
    """Run directory; None if it is not on this machine."""

    @functools.cached_property
    def _loaded(self) -> "LoadedModel":
        from hfexp.commands.predict import PredictSettings

        run = str(self.directory) if self.run_id is None else self.run_id
        return command.load(PredictSettings(run=run, uri=self.uri))

    @property
    def model(self) -> Any:
        """Return the final model."""
        return self._loaded.predictor.model

    @property
    def processor(self) -> Any:
        """Return the processor of the model."""
        return self._loaded.predictor.processor

    @property
    def report(self) -> Path | None:
        """Return the path of the run's HTML report; None if there is none on this machine."""
        path = self.directory / "artifacts" / "report.html" if self.directory else None
        return path if path is not None and path.is_file() else None

    def predict(
        self, inputs: Any = (), *args: str, skip_unreadable: bool = False, **settings: Any
    ) -> "pandas.DataFrame":
        """Predict with the run's model, which is loaded once; see `hfexp.predict`."""
        return command.predict_again(self._loaded, args, inputs, skip_unreadable, settings)

    def evaluate(self, *args: str, **settings: Any) -> "pandas.DataFrame":
        """Evaluate the run's model; see `hfexp.evaluate`."""
        run = str(self.directory) if self.run_id is None else self.run_id
        given = {"run": run, **({"uri": self.uri} if self.uri else {}), **settings}
        return evaluation.evaluate_table(*args, **given)

    def history(self, metric: str) -> "pandas.DataFrame":
        """Return all recorded values of a metric, in the columns `step` and `value`.

        Raises:
            ConfigError: the run has no such metric, or was loaded from its directory.
        """
        import pandas

        if self.run_id is None or self.uri is None:
            raise ConfigError(f"{self.name} was loaded from its directory; metric histories are only in MLflow")
        if metric not in self.metrics:
            raise ConfigError(
                f"the run has no metric {metric!r}.{did_you_mean(metric, self.metrics)} It has: {one_of(self.metrics)}"
            )
        return pandas.DataFrame(metric_history(self.uri, self.run_id, metric), columns=["step", "value"])

    def _repr_html_(self) -> str:
        return result_html(f"{self.name} ({self.status.lower()})", self.metrics, self.directory)


def load_run(
    run: str | Path | None = None, *, sweep: str | None = None, output_dir: str = "outputs", uri: str | None = None
) -> LoadedRun:
    """Load a recorded run.

    Args:
        run: id (or its beginning) or name of the run in MLflow, or its directory.
        sweep: name of a sweep, whose best run is loaded.
        output_dir: directory that holds the runs.
        uri: tracking store, if it is not the one in `output_dir`.

    Raises:
        ConfigError: there is no such run.
    """
    if run is None and sweep is None:
        raise ConfigError("no run is given: give its id, its name, its directory, or sweep=NAME")
    directory = Path(run).expanduser() if run is not None else None
    if directory is not None and directory.is_dir():
        return _load_directory(directory)
    store = tracking_uri(uri, output_dir)
    record = best_run_of_sweep(store, sweep) if sweep else find_one(store, str(run))
    return _load_record(record, store, Path(output_dir))


def _load_directory(directory: Path) -> LoadedRun:
    state = read_state(directory)
    if state is None:
        raise ConfigError(f"{directory} is not a run directory: it has no readable {STATE}")
    try:
        metrics = read_record(directory / "artifacts" / "results.json", dict[str, float])
    except FileNotFoundError:
        metrics = {}
    return LoadedRun(directory.resolve().name, metrics, {}, {}, state.status, directory=directory)


def _load_record(record: RunRecord, uri: str, output_dir: Path) -> LoadedRun:
    here = home_of(record, output_dir)
    values = (record.name, record.metrics, record.params, record.tags, record.status)
    return LoadedRun(*values, run_id=record.run_id, uri=uri, directory=here)
