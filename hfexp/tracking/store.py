"""The MLflow store: choose its URI, check it, and create it."""

import contextlib
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hfexp.core.console import status
from hfexp.core.errors import ConfigError, RunError
from hfexp.core.files import sqlite_address, sqlite_path
from hfexp.core.locks import SharedLock
from hfexp.core.provenance import file_name
from hfexp.core.secrets import mask_secrets

DATABASE = "mlflow.db"
DEFAULTS = {
    # MLflow's default is to retry a server that is away seven times, for minutes; the delivery does its own retries.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Settings of MLflow, unless the user has made them."""
FIRST_USE = 0x68666578705F6462
"""Key of the advisory lock under which a PostgreSQL store is created (`hfexp_db` in ASCII)."""
SERVER_SCHEMES = ("http", "https", "databricks")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(uri: str | None, output_dir: str) -> str:
    """Return `tracking.uri`, or `MLFLOW_TRACKING_URI`, or SQLite in the output directory.

    SQLite paths are made absolute, unless the URI has options.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(Path(output_dir, DATABASE))
    path = sqlite_path(uri)
    has_options = "?" in uri and "uri=true" not in uri
    return uri if path is None or has_options else sqlite_address(path.absolute())


def find_problem(uri: str) -> str | None:
    """Return why a store can't be used, as far as its URI and file show without opening it; None if it can."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file"):
        source = uri.removeprefix("file://")
        return (
            f"tracking.uri={uri}: MLflow no longer writes file stores; move it with `mlflow migrate-filestore "
            f"--source {source} --target sqlite:///mlflow.db`, then use tracking.uri=sqlite:///mlflow.db"
        )
    if scheme in ("http", "https"):
        return _address_problem(uri)
    if scheme not in (*SERVER_SCHEMES, *DATABASE_SCHEMES):
        return f"tracking.uri={uri}: unknown kind of store {scheme!r}; use sqlite:///FILE, postgresql://..., http://HOST:PORT"
    if scheme == "sqlite":
        path = sqlite_path(uri)
        return _sqlite_problem(path) if path else f"tracking.uri={uri} does not name a file; write sqlite:///FILE"
    return _driver_problem(uri) if scheme in DATABASE_SCHEMES else None


def _driver_problem(uri: str) -> str | None:
    """Return what is wrong with the URL of a database, or which driver of SQLAlchemy is not installed for it."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ArgumentError as error:
        return f"tracking.uri={mask_secrets(uri)}: {error}"
    except ImportError as error:
        hint = " (pip install 'hfexp[postgres]')" if error.name == "psycopg" else ""
        return f"tracking.uri={mask_secrets(uri)} needs a driver, the Python module {error.name}{hint}"
    return None


def _address_problem(uri: str) -> str | None:
    parts = urlsplit(uri)
    try:
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not parts.hostname or not port_is_valid:
        return f"tracking.uri={uri} is not the address of a server; write http://HOST:PORT"
    return None


def why_unreachable(uri: str) -> str | None:
    """Return why no server answers at an http(s) address within 5 s; None if one does, or for another store."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=5):
            return None
    except OSError as error:
        return f"no MLflow server answers at {uri} ({error})"


def _sqlite_problem(path: Path) -> str | None:
    try:
        if path.is_dir():
            return f"tracking.uri: {path} is a directory, not a SQLite file"
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\x00":
                    return f"tracking.uri: {path} is not a SQLite database"
    except OSError as error:
        return f"tracking.uri: {path} can't be read: {error.strerror}"
    return None


def why_not_writable(uri: str) -> str | None:
    """Return why this user can't record in a SQLite store, as far as the file's permissions show.

    SQLite writes beside its file, too.
    """
    path = sqlite_path(uri)
    if path is None:
        return None
    for place in (path, _lock_path(path), path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            return f"tracking.uri: you can't write to {place}; set output_dir, or tracking.uri=sqlite:///FILE"
    return None


def _lock_path(database: Path) -> Path:
    return database.with_name(f".{database.name}.lock")


def open_store(uri: str, output_dir: Path, experiment: str) -> tuple[Any, str]:
    """Open the store; create it and the experiment if needed. A lock on SQLite and PostgreSQL makes others wait.

    The experiment of a database gets an absolute artifact location: beside a SQLite file, else in the output
    directory. A server chooses its own.

    Returns:
        An `MlflowClient` and the experiment's id.
    """
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    database = sqlite_path(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        with SharedLock(_lock_path(database)):
            _create_database(database)
            client = mlflow.MlflowClient(uri)
            return client, _experiment_id(client, experiment, database.parent)
    with _database_lock(uri):
        client = mlflow.MlflowClient(uri)
        is_server = urlsplit(uri).scheme in SERVER_SCHEMES
        return client, _experiment_id(client, experiment, None if is_server else output_dir)


def is_shared(uri: str, output_dir: Path) -> bool:
    """Tell whether a store may be that of several output directories: it does not lie in this one."""
    path = sqlite_path(uri)
    return path is None or not path.resolve().is_relative_to(output_dir.resolve())


def flush_wal(uri: str) -> None:
    """Move what is in the `-wal` file into the SQLite file itself, so that a copy of the latter is complete."""
    database = sqlite_path(uri)
    if database is None or not database.is_file():
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def is_temporary(error: Exception) -> bool:
    """Return True if a database is unusable for now only: it is locked, or its server is away."""
    from sqlalchemy.exc import OperationalError

    code = getattr(error, "error_code", "")
    return isinstance(error, OperationalError) or code in ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


@contextlib.contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Hold PostgreSQL's advisory lock: MLflow 3.17 creates its tables without one (`SqlAlchemyStore.__init__`)."""
    if not uri.startswith("postgresql"):
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            key = {"key": FIRST_USE}
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), key)
    finally:
        engine.dispose()


def _create_database(database: Path) -> None:
    """Create a new SQLite store atomically; fail if MLflow creates it elsewhere.

    MLflow 3.17 runs its migrations on the file itself (`SqlAlchemyStore.__init__`). If they are killed, or meet a
    second process, they leave a database that is unusable for good.
    """
    import mlflow

    if database.exists() and database.stat().st_size:
        return
    status("creating the store")
    unfinished = database.with_name(f".{database.name}.new")
    unfinished.unlink(missing_ok=True)
    mlflow.MlflowClient(sqlite_address(unfinished)).search_experiments()
    if not unfinished.is_file():
        raise RunError(f"MLflow did not create its store at {database}; set tracking.uri to another place")
    with contextlib.closing(sqlite3.connect(unfinished)) as connection:
        # In WAL mode readers (`hfexp ui`, `hfexp compare`) don't block a writing run. The file keeps the setting.
        connection.execute("PRAGMA journal_mode=WAL")
    unfinished.rename(database)


def _experiment_id(client: Any, name: str, artifact_root: Path | None) -> str:
    """Return the experiment's id; create it if it does not exist, with its artifacts below the root."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # The tag makes MLflow's UI open on training runs rather than on traces.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            location = (artifact_root.absolute() / "artifacts" / file_name(name)).as_uri() if artifact_root else None
            return client.create_experiment(name, artifact_location=location, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another job created it meanwhile
    if experiment.lifecycle_stage == "deleted":
        raise ConfigError(f"tracking.experiment={name} was deleted in MLflow; restore it there or use another name")
    return experiment.experiment_id
