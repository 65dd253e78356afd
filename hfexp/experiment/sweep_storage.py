"""The Optuna storage of a sweep: connections for the sweeper and its jobs, and retries while the database is away."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import StudyUserAttributeModel, TrialUserAttributeModel
from sqlalchemy import create_engine, insert, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.files import sqlite_address
from hfexp.core.secrets import mask_secrets

DATABASE = "study.db"
FIRST_USE = 0x68666578705F7377
"""Key of the advisory lock under which the tables of a study are created (`hfexp_sw` in ASCII)."""
BUSY_SECONDS = 60
"""Seconds that a process waits for another process's write to SQLite."""
CONNECT_SECONDS = 10
"""Seconds that a PostgreSQL server has to accept a connection."""
AWAY_SECONDS = 120.0
"""Seconds that a sweep retries a database that has gone away."""
LONGEST_PAUSE = 5.0
"""Seconds between two of these retries; the first pauses are shorter."""


def storage_url(directory: Path, storage: str | None) -> str:
    """Return `search.storage`, or the URL of a SQLite file in the sweep's directory."""
    return storage or sqlite_address(directory / DATABASE)


def open_storage(url: str, patient: bool = False) -> RDBStorage:
    """Open Optuna's storage at an SQLAlchemy URL; close it with `close_storage`.

    Args:
        patient: retry for `AWAY_SECONDS` when the database goes away after it was reached.

    Raises:
        ConfigError: the Python driver that SQLAlchemy needs for this database is not installed.
        Exception: the database can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    timeouts = {"sqlite": {"timeout": BUSY_SECONDS}, "postgresql": {"connect_timeout": CONNECT_SECONDS}}
    connect_args = timeouts.get(url.partition(":")[0].partition("+")[0], {})
    try:
        options = {"connect_args": connect_args, "pool_pre_ping": True}
        if not patient:
            return RDBStorage(url, engine_kwargs=options)
        with _first_use(url):
            return PatientStorage(url, engine_kwargs=options)
    except ImportError as error:
        hint = " (pip install 'hfexp[postgres]')" if "psycopg" in str(error) else ""
        raise ConfigError(f"search.storage={mask_secrets(url)} needs a driver: {first_line(error)}{hint}") from error


@contextlib.contextmanager
def _first_use(url: str) -> Iterator[None]:
    """Let one process at a time create tables in PostgreSQL: Optuna 5 creates them without a lock."""
    if not url.startswith("postgresql"):
        yield
        return
    engine, key = create_engine(url, connect_args={"connect_timeout": CONNECT_SECONDS}), {"key": FIRST_USE}
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
            yield  # the end of the connection gives the lock back
    finally:
        engine.dispose()


def close_storage(storage: Any) -> None:
    """Close all connections of a storage, as `open_storage` returned it or as a study wraps it."""
    backend = getattr(storage, "_backend", storage)
    backend.remove_session()
    backend.engine.dispose()


def is_away(error: BaseException) -> bool:
    """Return True if the database can't be reached or is too busy, which may pass."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
    return lost or isinstance(cause, OperationalError | InterfaceError)


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method so that it is retried while the database is away.

    A write whose answer was lost is repeated. That stores the same value again, or leaves a trial without overrides,
    which `TrialStore.load` finds and completes.
    """

    @wraps(method)
    def call(self: "PatientStorage", *args: Any, **kwargs: Any) -> Any:
        began, pause, noted = time.monotonic(), 0.1, False
        while True:
            try:
                return method(self, *args, **kwargs)
            except (StorageInternalError, DBAPIError) as error:
                if not is_away(error):
                    raise
                reason = mask_secrets(first_line(error.__cause__ or error))
                if time.monotonic() - began > self.away_seconds:
                    raise RunError(f"search.storage: the database can no longer be reached: {reason}") from error
                if not noted and pause > 1:
                    note(f"can't reach search.storage, retrying: {reason}")
                    noted = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    return call


class PatientStorage(RDBStorage):
    """An RDBStorage that waits for a database that is away, so that the sweep goes on afterwards."""

    away_seconds = AWAY_SECONDS

    @_patiently
    def claim(self, trial_id: int, name: str, before: str, now: str) -> bool:
        """Set an attribute of a trial if it is still `before`: of several processes that try, one succeeds."""
        column = TrialUserAttributeModel
        same = (column.trial_id == trial_id, column.key == name, column.value_json == json.dumps(before))
        with self.engine.begin() as connection:
            changed = connection.execute(update(column).where(*same).values(value_json=json.dumps(now)))
        return changed.rowcount == 1

    @_patiently
    def claim_of_study(self, study_id: int, name: str, before: str | None, now: str) -> bool:
        """Set an attribute of the study if it is still `before` (None: not set): one of several processes succeeds.

        After a lost answer, the process that has succeeded is told that it has not, and reads the attribute.
        """
        column, value = StudyUserAttributeModel, json.dumps(now)
        same = (column.study_id == study_id, column.key == name, column.value_json == json.dumps(before))
        with self.engine.begin() as connection:
            if before is not None:
                return connection.execute(update(column).where(*same).values(value_json=value)).rowcount == 1
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(column).values(study_id=study_id, key=name, value_json=value))
        except IntegrityError:
            return False
        return True


for _name in (
    "_create_new_trial", "_get_trials", "_set_trial_param", "get_trial", "set_trial_state_values",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "get_study_directions",
    "get_study_user_attrs", "get_study_system_attrs", "set_study_user_attr", "set_study_system_attr",
    "get_trial_id_from_study_id_trial_number",
):  # fmt: skip
    setattr(PatientStorage, _name, _patiently(getattr(RDBStorage, _name)))
