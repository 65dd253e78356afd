"""The Optuna storage of a sweep: connections for the sweeper and its jobs, and retries while the database is away."""

import json
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialUserAttributeModel
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.files import sqlite_address
from hfexp.core.secrets import mask_secrets

DATABASE = "study.db"
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
        storage_class = PatientStorage if patient else RDBStorage
        return storage_class(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True})
    except ImportError as error:
        hint = " (pip install 'hfexp[postgres]')" if "psycopg" in str(error) else ""
        raise ConfigError(f"search.storage={mask_secrets(url)} needs a driver: {first_line(error)}{hint}") from error


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


for _name in (
    "_create_new_trial", "_get_trials", "_set_trial_param", "get_trial", "set_trial_state_values",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "get_study_directions",
    "get_study_user_attrs", "get_study_system_attrs", "set_study_user_attr", "set_study_system_attr",
    "get_trial_id_from_study_id_trial_number",
):  # fmt: skip
    setattr(PatientStorage, _name, _patiently(getattr(RDBStorage, _name)))
