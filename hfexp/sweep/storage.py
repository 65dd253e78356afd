"""The database of a study: how it is reached, by a sweep and by its jobs, and how sweepers share it."""

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

from hfexp.errors import ConfigError, RunError, first_line
from hfexp.screen import note
from hfexp.secrets import mask_secrets
from hfexp.sqlite_address import sqlite_address

DATABASE = "study.db"
BUSY_SECONDS = 60
"""That a process waits for another one's write to SQLite."""
CONNECT_SECONDS = 10
"""For a database server to answer."""
AWAY_SECONDS = 120.0
"""That a sweep waits for a database which has gone away."""
LONGEST_PAUSE = 5.0


def storage_url(directory: Path, storage: str | None) -> str:
    """`search.storage`, or a SQLite file in the sweep's directory."""
    return storage or sqlite_address(directory / DATABASE)


def open_storage(url: str, patient: bool = False) -> RDBStorage:
    """Optuna's storage at an SQLAlchemy URL; close it with `close_storage`.

    Args:
        patient: once it was reached, wait if it goes away.

    Raises:
        ConfigError: the Python module is missing through which SQLAlchemy speaks to this database.
        Exception: the database can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {"sqlite": {"timeout": BUSY_SECONDS}, "postgresql": {"connect_timeout": CONNECT_SECONDS}}
    connect_args = kinds.get(url.partition(":")[0].partition("+")[0], {})
    try:
        kind = PatientStorage if patient else RDBStorage
        return kind(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True})
    except ImportError as error:
        hint = " (pip install 'hfexp[postgres]')" if "psycopg" in str(error) else ""
        raise ConfigError(f"search.storage={mask_secrets(url)} needs a driver: {first_line(error)}{hint}") from error


def close_storage(storage: Any) -> None:
    """Let go of all connections; `storage`: as opened, or as a study has it."""
    backend = getattr(storage, "_backend", storage)
    backend.remove_session()
    backend.engine.dispose()


def is_away(error: BaseException) -> bool:
    """Whether the database can't be reached, or is too busy, which may pass."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
    return lost or isinstance(cause, OperationalError | InterfaceError)


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """Try again while the database is away.

    What was written although its answer was lost is written again: the same value, or a trial without words, which
    the ledger finds and completes.
    """

    @wraps(method)
    def call(self: "PatientStorage", *args: Any, **kwargs: Any) -> Any:
        began, pause, said = time.monotonic(), 0.1, False
        while True:
            try:
                return method(self, *args, **kwargs)
            except (StorageInternalError, DBAPIError) as error:
                if not is_away(error):
                    raise
                reason = mask_secrets(first_line(error.__cause__ or error))
                if time.monotonic() - began > self.away_seconds:
                    raise RunError(f"search.storage: the database can't be reached any more: {reason}") from error
                if not said and pause > 1:
                    note(f"search.storage can't be reached, waiting: {reason}")
                    said = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    return call


class PatientStorage(RDBStorage):
    """Waits for a database that is away, instead of ending the sweep above it."""

    away_seconds = AWAY_SECONDS

    @_patiently
    def claim(self, trial_id: int, name: str, before: str, now: str) -> bool:
        """Change an attribute of a trial if it still is what it was: of several that try, one does it."""
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
