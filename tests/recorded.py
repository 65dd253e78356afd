"""A store of MLflow that tests fill with runs, without training."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any


class Store:
    """A store of MLflow with shortcuts to fill it."""

    def __init__(self, path: Path) -> None:
        import mlflow

        from hfexp.tracking import store

        store._create_database(path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")  # as MLflow makes it; one file, which tests copy
        self.path, self.uri, self.clock = path, f"sqlite:///{path}", 1_700_000_000_000
        self.client = mlflow.MlflowClient(self.uri)

    def experiment(self, name: str) -> str:
        return self.client.create_experiment(name, artifact_location=(self.path.parent / name).as_uri())

    def run(
        self,
        experiment: str,
        name: str,
        params: dict[str, Any] | None = None,
        metrics: dict[str, float | list[float]] | None = None,
        tags: dict[str, str] | None = None,
        status: str | None = "FINISHED",
    ) -> str:
        from mlflow.entities import Metric, Param, RunTag

        self.clock += 60_000
        run_id = self.client.create_run(experiment, run_name=name, start_time=self.clock).info.run_id
        points = [
            Metric(key, value, self.clock + step, step)
            for key, values in (metrics or {}).items()
            for step, value in enumerate(values if isinstance(values, list) else [values])
        ]
        self.client.log_batch(
            run_id,
            points,
            [Param(key, str(value)) for key, value in (params or {}).items()],
            [RunTag(key, value) for key, value in (tags or {}).items()],
        )
        if status:
            self.client.set_terminated(run_id, status, end_time=self.clock + 30_500)
        return run_id

    def place(self, run_id: str, status: str = "finished", kind: str = "run") -> Path:
        """Make the run directory of a run, and artifacts in the store."""
        from hfexp.tracking.run_directory import RunState, save_state

        run = self.client.get_run(run_id)
        parent = "sweeps" if kind == "sweep" else self.client.get_experiment(run.info.experiment_id).name
        home = self.path.parent / parent / run.info.run_name
        for name in ("artifacts", "model", "checkpoints/checkpoint-1"):
            (home / name).mkdir(parents=True)
            (home / name / "file").write_text(name)
        save_state(home, RunState(config_hash=run_id, status=status, run_id=run_id, kind=kind))
        self.client.set_tag(run_id, "hfexp.run_dir", str(home))
        self.client.log_artifact(run_id, str(home / "run.json"))
        return home

    def dataset(self, run_id: str, digest: str, context: str, profile: str | None) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = [InputTag("mlflow.data.context", context)]
        dataset = Dataset("digits", digest, "local", "{}", None, profile)
        self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])
