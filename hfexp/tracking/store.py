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

    The experiment gets an absolute artifact location beside the database.

    Returns:
        An `MlflowClient` and the experiment's id.
    """
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = tracking_uri(config.tracking.uri, config.output_dir)
    if not uri.startswith("sqlite:///"):
        client = mlflow.MlflowClient(uri)
        return client, _experiment_id(client, experiment, None)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock")):
        _create_database(database)
        client = mlflow.MlflowClient(uri)
        location = (database.parent / "artifacts" / experiment).as_uri()
        return client, _experiment_id(client, experiment, location)


def _create_database(database: Path) -> None:
    """Make a fresh SQLite store whole or not at all.

    MLflow 3.17 runs its migrations on the file itself (`SqlAlchemyStore.__init__`): killed or met by a second process
    meanwhile, they leave a database that can't be used any more.
    """
    import mlflow

    if database.exists() and database.stat().st_size:
        return
    unfinished = database.with_name(f".{database.name}.new")
    unfinished.unlink(missing_ok=True)
    mlflow.MlflowClient(f"sqlite:///{unfinished}").search_experiments()
    unfinished.rename(database)


def _experiment_id(client: Any, name: str, artifact_location: str | None) -> str:
    """The experiment's id; it is created if it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # The tag tells MLflow's pages to open on training runs rather than on traces.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return client.create_experiment(name, artifact_location=artifact_location, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another job was faster
    if found.lifecycle_stage == "deleted":
        raise ConfigError(f"tracking.experiment={name} was deleted in MLflow; restore it there or use another name")
    return found.experiment_id
