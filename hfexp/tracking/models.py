"""MLflow models of a run: the trained model with its files, and the checkpoints by reference.

Everything here can be repeated after a crash or a lost connection: a model that exists already is found by its tag
`hfexp.model_key` and completed, not created a second time.
"""

import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.checkpoint import best_step, list_checkpoints
from hfexp.tracking.journal import Journal

KEY_TAG = "hfexp.model_key"
EXTERNAL_TAG = "mlflow.model.isExternal"
VERSIONS_TAG = "mlflow.modelVersions"
DIRECTORY_TAG = "hfexp.checkpoint_dir"
FINAL = "final"
"""Key of a run's final model."""
BEST_TAG = "hfexp.best"
BEST_ALIAS = "best"
METRICS_PER_BATCH = 1000
PAGE = 100


def deliver_model(
    client: Any,
    *,
    run_id: str,
    experiment_id: str,
    directory: Path,
    name: str,
    key: str,
    step: int,
    metrics: dict[str, float],
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    register: str | None = None,
) -> str:
    """Upload a directory as a model, link it to its run with its metrics, and register it if asked.

    Args:
        directory: an MLflow model with its file MLmodel, or plain files.
        name: name of the model, as in `runs:/<run_id>/<name>`.
        key: identifies the model within the run, also after an interruption.
        step: training step that the model comes from.
        metrics: metrics of the model; a value that the run has at this step already is not added to its history again.
        register: name in the model registry; the version gets the alias `best`.

    Returns:
        The model's id, for `models:/<id>`.
    """
    model = _find_model(client, experiment_id, run_id, key)
    if model is None:
        model = client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, tags={**(tags or {}), KEY_TAG: key}, params=params or {}
        )
    if not is_ready(model):
        _name_in_file(directory, model)
        client.log_model_artifacts(model.model_id, str(directory))
        client.finalize_logged_model(model.model_id, "READY")
    _link(client, run_id, {model.model_id: step})
    _log_metrics(client, run_id, {model.model_id: (step, metrics)})
    if register is not None:
        _register(client, model, run_id, register)
    return model.model_id


def register_final(client: Any, run_id: str, name: str) -> None:
    """Register the final model of a run, with the alias `best`.

    Raises:
        LookupError: the run has no complete model in the store (yet).
    """
    model = _find_model(client, client.get_run(run_id).info.experiment_id, run_id, FINAL)
    if model is None or not is_ready(model):
        raise LookupError(f"the run {run_id} has no model in the store yet")
    _register(client, model, run_id, name)


def fetch_final(client: Any, run_id: str, uri: str, place: str) -> Path:
    """Download the final model of a run.

    Args:
        uri: tracking URI of the store.
        place: directory to download to.

    Raises:
        MlflowException: the run has no final model, or it can't be downloaded.
    """
    from mlflow.artifacts import download_artifacts

    model = _find_model(client, client.get_run(run_id).info.experiment_id, run_id, FINAL)
    address = f"runs:/{run_id}/model" if model is None else model.artifact_location
    return Path(download_artifacts(address, dst_path=place, tracking_uri=uri))


def _find_model(client: Any, experiment_id: str, run_id: str, key: str) -> Any | None:
    """Find the oldest model of this run with the key."""
    models = [model for model in models_of(client, experiment_id, run_id) if model.tags.get(KEY_TAG) == key]
    return min(models, key=lambda model: model.creation_timestamp, default=None)


def models_of(client: Any, experiment_id: str, run_id: str) -> list[Any]:
    """List all models of a run that are not deleted."""
    models, token = [], None
    while True:
        page = client.search_logged_models(
            [experiment_id], f"source_run_id = '{run_id}'", max_results=PAGE, page_token=token
        )
        models += page
        token = page.token
        if not token:
            return models


def is_ready(model: Any) -> bool:
    return str(getattr(model.status, "value", model.status)) == "READY"


def _name_in_file(directory: Path, model: Any) -> None:
    """Write the model's id into MLmodel, by which MLflow connects a loaded model with the recorded one."""
    from mlflow.models import Model

    path = directory / "MLmodel"
    if not path.is_file():
        return
    spec = Model.load(str(path))
    spec.model_id = spec.model_uuid = model.model_id
    spec.run_id, spec.artifact_path = model.source_run_id, model.artifact_location
    spec.save(str(path))


def _link(client: Any, run_id: str, steps: dict[str, int]) -> None:
    """Link models to the run as outputs at their steps; MLflow allows each model one link."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
    new = [LoggedModelOutput(model_id, step) for model_id, step in steps.items() if model_id not in linked]
    if new:
        client.log_outputs(run_id, new)


def _log_metrics(client: Any, run_id: str, values: dict[str, tuple[int, dict[str, float]]]) -> None:
    """Log metrics of models; `values` has step and metrics by model id.

    MLflow adds a model's metric to its run, too. With the timestamp of the point that the run has already, it is the
    same point, so that nothing appears twice, however often this is called. A run that was killed while it recorded
    its end measures anew when it is resumed, and times differ; its model gets the values that the run has recorded.
    Values that aren't finite are left out: MLflow 3.17 would store a model's NaN as 0.0 in its database
    (`_log_model_metrics`).
    """
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    measured_at = {(name, step): float(value) for step, metrics in values.values() for name, value in metrics.items()}
    recorded = _recorded_points(client, run, measured_at)
    entries = []
    for model_id, (step, metrics) in values.items():
        for name, measured in metrics.items():
            times = recorded.get((name, step)) or {float(measured): run.info.start_time or 0}
            value = float(measured) if float(measured) in times else list(times)[-1]
            if math.isfinite(value):
                entries.append(Metric(name, value, times[value], step, model_id))
    for start in range(0, len(entries), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=entries[start : start + METRICS_PER_BATCH])


def _recorded_points(
    client: Any, run: Any, measured: dict[tuple[str, int], float]
) -> dict[tuple[str, int], dict[float, int]]:
    """Return the points that a run has of these metrics: by name and step, the time (ms since 1970) of each value.

    The newest point of each metric comes with the run. Only if that is another one, the history is requested.

    Args:
        measured: values by name and step.
    """
    newest = {metric.key: metric for metric in run.data._metric_objs}
    points: dict[tuple[str, int], dict[float, int]] = {}
    for (name, step), value in sorted(measured.items()):
        last = newest.get(name)
        if last is None:
            continue
        is_same = (last.step, last.value) == (step, value)
        for point in [last] if is_same else client.get_metric_history(run.info.run_id, name):
            points.setdefault((point.key, point.step), {})[point.value] = point.timestamp
    return points


def _register(client: Any, model: Any, run_id: str, name: str) -> None:
    """Create a version of the registered model `name` for this model, if it has none, with the alias `best`."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # With a database, MLflow 3.17 looks up a `models:/` source in the default store of the process.
    remote = str(client.tracking_uri).startswith(("http", "databricks"))
    source = f"models:/{model.model_id}" if remote else model.artifact_location
    # Compared by run and source: not every backend of the registry stores the model id of a version.
    known = [v for v in client.search_model_versions(f"run_id = '{run_id}'") if (v.name, v.source) == (name, source)]
    version = known[0] if known else client.create_model_version(name, source, run_id, model_id=model.model_id)
    client.set_registered_model_alias(name, BEST_ALIAS, str(version.version))
    entry = [{"name": name, "version": str(version.version)}]
    client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(entry)})


@dataclass
class CheckpointLinks:
    """The checkpoint directories of a run as MLflow models that refer to them, without a copy.

    One object serves a run while it trains and remembers what is recorded; that of a resumed run reads it from the
    store once.
    """

    client: Any
    run_id: str
    experiment_id: str
    _linked: dict[int, str] | None = field(default=None, repr=False)
    """Model ids of the completely linked checkpoints, by step; None before the first update."""
    _best: int | None = field(default=None, repr=False)

    def update(
        self, checkpoints: dict[int, Path], metrics: dict[int, dict[str, float]], best_step: int | None
    ) -> None:
        """Bring the links in the store in line with the checkpoints on disk.

        Args:
            checkpoints: existing directories by step; links to others are deleted.
            metrics: evaluation metrics by step.
            best_step: step of the best checkpoint, which gets the tag `hfexp.best`.
        """
        if self._linked is not None and self._linked.keys() == checkpoints.keys() and self._best == best_step:
            return
        known = self._read()
        for step in sorted(known.keys() - checkpoints.keys()):
            self.client.delete_logged_model(known.pop(step).model_id)
        linked = self._linked or {}
        new = {step: path for step, path in sorted(checkpoints.items()) if step not in linked or step not in known}
        ids = {step: self._create(step, path, known.get(step)) for step, path in new.items()}
        if ids:
            _link(self.client, self.run_id, {model_id: step for step, model_id in ids.items()})
            measured = {model_id: (step, metrics.get(step, {})) for step, model_id in ids.items()}
            _log_metrics(self.client, self.run_id, measured)
        self._mark_best(known, ids, best_step)
        self._linked, self._best = {step: model.model_id for step, model in known.items()} | ids, best_step

    def _read(self) -> dict[int, Any]:
        """Read the links of this run from the store, by step."""
        models = models_of(self.client, self.experiment_id, self.run_id)
        prefix = f"{self.run_id}/checkpoint-"
        keys = {model.tags.get(KEY_TAG, ""): model for model in models}
        return {int(key.removeprefix(prefix)): model for key, model in keys.items() if key.startswith(prefix)}

    def _create(self, step: int, path: Path, known: Any | None) -> str:
        """Create or complete a link, as `mlflow.create_external_model` does; return its model id."""
        from mlflow.models.utils import get_external_mlflow_model_spec

        tags = {
            EXTERNAL_TAG: "true",
            KEY_TAG: f"{self.run_id}/checkpoint-{step}",
            DIRECTORY_TAG: str(path),
        }
        model = known or self.client.create_logged_model(
            self.experiment_id, name=f"checkpoint-{step}", source_run_id=self.run_id, tags=tags
        )
        if not is_ready(model):
            with tempfile.TemporaryDirectory() as place:
                get_external_mlflow_model_spec(model).save(str(Path(place, "MLmodel")))
                self.client.log_model_artifacts(model.model_id, place)
            self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def _mark_best(self, known: dict[int, Any], new: dict[int, str], best_step: int | None) -> None:
        """Move the tag `hfexp.best` to the best checkpoint."""
        marked = {step: model.model_id for step, model in known.items() if model.tags.get(BEST_TAG) == "true"}
        for step, model_id in marked.items():
            if step != best_step:
                self.client.set_logged_model_tags(model_id, {BEST_TAG: "false"})
        ids = {step: model.model_id for step, model in known.items()} | new
        if best_step in ids and best_step not in marked:
            self.client.set_logged_model_tags(ids[best_step], {BEST_TAG: "true"})


# Links from a run's record to its checkpoints on disk.


SECONDS_BETWEEN = 30.0
"""Least seconds between two updates: each checkpoint may replace another."""


class LinkedCheckpoints:
    """Keeps a run's links up to date with its checkpoint directory, with the metrics measured at each step."""

    def __init__(self, directory: Path, journal: Journal, links: CheckpointLinks) -> None:
        self.directory = directory
        self.journal = journal
        self.links = links
        self._updated_at = -math.inf
        self._measured: dict[int, dict[str, float]] = {}
        """Evaluation metrics by step."""
        self._read_until = 0
        self._last_step = 0

    def update(self, delivered_until: int, last: bool) -> None:
        """Link the checkpoints that are on disk, unless the last update was less than `SECONDS_BETWEEN` ago.

        Args:
            delivered_until: position in the journal up to which everything is delivered.
            last: no other call follows, so the update is made in any case.
        """
        if time.monotonic() - self._updated_at < SECONDS_BETWEEN and not last:
            return
        self._updated_at = time.monotonic()
        self._read_measured(delivered_until)
        steps = {int(path.name.rpartition("-")[2]): path for path in list_checkpoints(self.directory)}
        # The metrics of a newer checkpoint may not be delivered yet: a later call links it.
        known = {step: path for step, path in steps.items() if step <= self._last_step or last}
        self.links.update(known, self._measured, best_step(self.directory))

    def _read_measured(self, delivered_until: int) -> None:
        """Read the evaluations that were delivered since the last call."""
        for entry, after in self.journal.read(self._read_until):
            if after > delivered_until:
                return
            self._read_until = after
            if entry["kind"] == "metrics" and not any(name.startswith("system/") for name in entry["metrics"]):
                self._last_step = max(self._last_step, entry["step"])
                values = {name: value for name, value in entry["metrics"].items() if name.startswith("eval_")}
                if values:
                    self._measured[entry["step"]] = self._measured.get(entry["step"], {}) | values
