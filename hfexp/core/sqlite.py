"""Addresses of SQLite files for SQLAlchemy, MLflow and Optuna; no other module builds or parses them."""

import importlib.metadata
from pathlib import Path
from urllib.parse import quote, unquote

PREFIX = "sqlite:///"
"""Beginning of an address that goes on with the path as it is."""
DRIVER = "sqlite+pysqlite:///"
"""Same as `PREFIX` to SQLAlchemy. MLflow 3.17 takes what follows `PREFIX` literally, quoting included, and creates
its parent directory (`mlflow.store.db.utils._make_parent_dirs_if_sqlite`)."""
SPECIAL = frozenset("%?{}")
"""Characters that SQLAlchemy or Optuna (`RDBStorage._fill_storage_url_template`) do not take literally."""


def sqlite_address(path: Path, read_only: bool = False) -> str:
    """Return the address of a SQLite file, whatever characters its path holds.

    With special characters in it, or for `read_only`, this is a SQLite URI (https://www.sqlite.org/uri.html).
    """
    if not (read_only or SPECIAL & set(str(path))):
        return f"{PREFIX}{path}"
    quoted = quote(str(path), errors="surrogateescape")
    quoted = quoted.replace("%", "%25") if _is_unquoted() else quoted
    return f"{DRIVER}file:{quoted}?{'mode=ro&' if read_only else ''}uri=true"


def sqlite_path(address: str) -> Path | None:
    """Return the file that an address names; None if the address is not one of SQLite."""
    prefix = next((known for known in (PREFIX, DRIVER) if address.startswith(known)), None)
    if prefix is None:
        return None
    text, _, query = address.removeprefix(prefix).partition("?")
    text = unquote(text) if "%" in text and _is_unquoted() else text
    if "uri=true" in query.split("&"):
        text = unquote(text.removeprefix("file:"), errors="surrogateescape")
    return Path(text)


def _is_unquoted() -> bool:
    """Return whether SQLAlchemy decodes `%3F` in an address to `?`, as it does since 2.1."""
    major, minor, *_ = importlib.metadata.version("sqlalchemy").split(".")
    return (int(major), int(minor)) >= (2, 1)
