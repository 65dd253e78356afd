"""Which MLflow store, and how it comes into being."""

import logging
import os
import socket
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from hfexp.config import Config
from hfexp.errors import ConfigError

DATABASE = "mlflow.db"
SERVER_SCHEMES = ("http", "https", "databricks")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(uri: str | None, output_dir: str) -> str:
    """`tracking.uri`, else `MLFLOW_TRACKING_URI`, else SQLite in the output directory; SQLite paths made absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(output_dir).absolute() / DATABASE}"
    scheme, _, rest = uri.partition(":///")
    if scheme == "sqlite" and rest and not rest.startswith("/"):
        return f"sqlite:///{Path(rest).absolute()}"
    return uri


def find_problem(uri: str) -> str | None:
    """Why a store can't be used, as far as that shows without opening it."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file"):
        return (
            f"tracking.uri={uri}: MLflow no longer writes file stores; move it with "
            f"`mlflow migrate-filestore`, or use a database such as sqlite:///mlflow.db"
        )
    if scheme in ("http", "https"):
        return _server_problem(uri)
    if scheme not in (*SERVER_SCHEMES, *DATABASE_SCHEMES):
        return f"tracking.uri={uri}: unknown kind of store {scheme!r}; use sqlite:///FILE, postgresql://..., http://HOST:PORT"
    if scheme == "sqlite":
        return _sqlite_problem(Path(uri.partition(":///")[2]))
    return None


def _server_problem(uri: str) -> str | None:
    parts = urlsplit(uri)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=5):
            return None
    except (OSError, ValueError) as error:
        return f"tracking.uri={uri}: no MLflow server answers there ({error})"


def _sqlite_problem(path: Path) -> str | None:
    if path.is_dir():
        return f"tracking.uri: {path} is a directory, not a SQLite file"
    if path.is_file() and path.stat().st_size:
        try:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\x00":
                    return f"tracking.uri: {path} is not a SQLite database"
        except (OSError, sqlite3.Error) as error:
            return f"tracking.uri: {path} can't be read: {error}"
    return None


def open_store(config: Config, experiment: str) -> tuple[Any, str]:
    """Open the store, making it and the experiment if needed.

    Concurrent first use leaves a fresh SQLite store half-migrated (mlflow 3.17, `SqlAlchemyStore.__init__`), so
    it happens under a file lock. The experiment gets an absolute artifact location beside the database.

    Returns:
        An `MlflowClient` and the experiment's id.
    """
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = tracking_uri(config.tracking.uri, config.output_dir)
    output_dir = Path(config.output_dir).absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(output_dir / ".mlflow.lock"):
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"tracking.experiment={experiment} was deleted in MLflow; restore it there or use another name"
            )
        if found is not None:
            return client, found.experiment_id
        location = (output_dir / "artifacts" / experiment).as_uri() if uri.startswith("sqlite:") else None
        # Tells MLflow's pages to open on training runs rather than on traces.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return client, client.create_experiment(experiment, artifact_location=location, tags=tags)
