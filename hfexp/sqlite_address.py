"""Addresses of SQLite files, as SQLAlchemy, MLflow and Optuna take them: written and read here alone."""

import importlib.metadata
from pathlib import Path
from urllib.parse import quote, unquote

PREFIX = "sqlite:///"
DRIVER = "sqlite+pysqlite:///"
"""The same to SQLAlchemy. MLflow 3.17 makes a directory of what follows the other one, as it is written
(`mlflow.store.db.utils._make_parent_dirs_if_sqlite`)."""
SPECIAL = frozenset("%?{}")
"""Characters that SQLAlchemy or Optuna (`RDBStorage._fill_storage_url_template`) do not take as they are."""


def sqlite_address(path: Path, read_only: bool = False) -> str:
    """Write the address of a SQLite file, whatever its name holds.

    Where it holds something special, it is one that SQLite itself reads (https://www.sqlite.org/uri.html).
    """
    if not (read_only or SPECIAL & set(str(path))):
        return f"{PREFIX}{path}"
    quoted = quote(str(path), errors="surrogateescape")
    quoted = quoted.replace("%", "%25") if _is_unquoted() else quoted
    return f"{DRIVER}file:{quoted}?{'mode=ro&' if read_only else ''}uri=true"


def sqlite_path(address: str) -> Path | None:
    """Read the file of an address; None if it is the address of something else."""
    prefix = next((known for known in (PREFIX, DRIVER) if address.startswith(known)), None)
    if prefix is None:
        return None
    text, _, query = address.removeprefix(prefix).partition("?")
    text = unquote(text) if "%" in text and _is_unquoted() else text
    if "uri=true" in query.split("&"):
        text = unquote(text.removeprefix("file:"), errors="surrogateescape")
    return Path(text)


def _is_unquoted() -> bool:
    """Tell whether SQLAlchemy reads `%3F` in an address as `?`, as it does since 2.1."""
    major, minor, *_ = importlib.metadata.version("sqlalchemy").split(".")
    return (int(major), int(minor)) >= (2, 1)
