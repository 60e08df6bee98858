"""Which store an MLflow address means, and whether it is there: MLflow itself makes an empty one where it was only asked to read."""

from __future__ import annotations

import sqlite3
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks", "databricks-uc", "uc")
"""Of tracking URIs; a plain path is one too, and plug-ins bring others."""


class StoreError(ValueError):
    """An address of MLflow that cannot be used: the message says what is there and what to do."""


def check_address(uri: str, key: str) -> None:
    """Refuse an address of a kind that MLflow does not have. Looks at nothing but the text.

    Args:
        uri: A tracking URI.
        key: What it was given as, for the message.

    Raises:
        StoreError: Its scheme is unknown.
    """
    scheme = _scheme(uri)
    if not uri.strip() or (scheme and scheme not in SCHEMES and scheme not in {e.name for e in entry_points(group="mlflow.tracking_store")}):
        raise StoreError(
            f"{key} is {uri!r}, which is no MLflow address; give a server (http://host:5000), a database (sqlite:///mlflow.db, postgresql://user@host/name) or a folder"
        )


def require_store(uri: str) -> None:
    """Refuse a local address where no MLflow store is, before MLflow makes one. Raises `StoreError`."""
    path = local_path(uri)
    if path is None:
        return
    way_out = "run in the folder where the search ran, or set MLFLOW_TRACKING_URI to the server or database that holds it"
    if _scheme(uri) != "sqlite":
        if not path.is_dir():
            raise StoreError(f"there is no MLflow folder at {path}; {way_out}")
    elif not path.is_file():
        raise StoreError(f"there is no MLflow database at {path}; {way_out}")
    elif not _holds_a_registry(path):
        raise StoreError(f"{path} is no database of MLflow; {way_out}")


def local_path(uri: str) -> Path | None:
    """The file or folder of a local store or artifact; None for what is on a server or in memory."""
    scheme, parts = _scheme(uri), urlsplit(uri)
    if scheme == "sqlite":
        _, _, name = uri.partition(":///")
        return Path(unquote(name.partition("?")[0])).absolute() if name else None
    if scheme in ("", "file") and not uri.startswith("databricks"):
        return Path(unquote(parts.path) if scheme else uri).absolute()
    return None


def _scheme(uri: str) -> str:
    head, there, _ = uri.partition(":")
    return head.partition("+")[0].lower() if there and "/" not in head else ""


def _holds_a_registry(path: Path) -> bool:
    try:
        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5)
        try:
            return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'registered_models'").fetchall())
        finally:
            database.close()
    except sqlite3.OperationalError:
        return True  # it is locked: MLflow waits, and says so
    except sqlite3.DatabaseError:
        return False
