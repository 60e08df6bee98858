"""Which store an MLflow address means, whether it is there and whether it answers: MLflow makes an empty one where it should only read."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from dato.files import refuse_target

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SCHEMES = (*DATABASES, "http", "https", "file", "databricks")
"""Of tracking URIs; plug-ins bring others."""
ANSWER_S = 5
"""Seconds that a database may take to answer, or a sqlite file may be locked by others."""
_GIVE = "give a server (http://host:5000) or a database (sqlite:///mlflow.db, postgresql://host/name)"


class StoreError(ValueError):
    """An address of MLflow that cannot be used: the message says what is there and what to do."""


def check_address(uri: str, key: str) -> None:
    """Refuse an address under which MLflow keeps nothing. Looks at nothing but the text.

    Args:
        uri: A tracking URI.
        key: What it was given as, for the message.

    Raises:
        StoreError: Its scheme is unknown, it is a folder, or in memory, or is no complete address.
    """
    if wrong := _wrong(uri):
        raise StoreError(f"{key} is {uri!r}, {wrong}; {_GIVE}")


def _wrong(uri: str) -> str | None:
    scheme = _scheme(uri)
    if not uri.strip() or "\0" in uri or uri.startswith("databricks-uc") or (scheme and scheme not in SCHEMES and scheme not in {e.name for e in entry_points(group="mlflow.tracking_store")}):
        return "which is no MLflow address"
    if scheme in ("", "file") and uri != "databricks" and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        return "a folder, in which MLflow writes no more"
    if scheme == "sqlite":
        _, slashes, rest = uri.partition("://")
        name, _, query = rest.partition("?")
        if slashes and name.strip("/") and not name.startswith("/"):
            return "whose file comes after three slashes"
        if not name.strip("/") or ":memory:" in name or "mode=memory" in query:
            return "a database in memory, of which nothing is kept"
    try:
        host, _ = urlsplit(uri).hostname, urlsplit(uri).port
    except ValueError as error:  # no port, or half of an IPv6 address
        return f"which is no MLflow address ({error})"
    return "which names no host" if scheme in ("http", "https") and not host else None


def ask(uri: str, locked_s: float = ANSWER_S) -> None:
    """Raise now where a database refuses, is locked or is none: MLflow itself goes on asking for 102 seconds.

    Args:
        uri: A tracking or registry URI; only databases are asked. A sqlite file that is not there is one that MLflow may make.
        locked_s: Seconds that a sqlite file may be locked by others.

    Raises:
        StoreError: It does not answer, in the words of its driver, or MLflow could not keep anything in it.
    """
    scheme, path = _scheme(uri), local_path(uri)
    if scheme == "sqlite" and path:
        _ask_file(path, locked_s)
    elif scheme in DATABASES:
        _ask_server(uri, {"connect_timeout": ANSWER_S} if scheme in ("postgresql", "mysql") else {})


def _ask_file(path: Path, locked_s: float) -> None:
    if why := refuse_target(path):
        raise StoreError(f"{path} is no database of MLflow: {why}; {_GIVE}")
    if not path.exists():
        folder = next(p for p in path.parents if os.path.exists(p))
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise StoreError(f"no MLflow database can be made at {path}: {folder} is no folder that you may write; {_GIVE}")
        return
    try:
        with closing(sqlite3.connect(path, timeout=locked_s, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StoreError(f"the MLflow database {path} cannot be used ({error}); wait until nobody locks it, or {_GIVE}") from None
    if tables and "experiments" not in tables:
        raise StoreError(f"{path} is no database of MLflow, but holds {', '.join(sorted(tables)[:3])}, and MLflow would add its own tables; {_GIVE}")


def _ask_server(uri: str, settings: dict[str, int]) -> None:
    try:
        import sqlalchemy  # as MLflow does

        engine = sqlalchemy.create_engine(uri, connect_args={} if "connect_timeout" in uri else settings)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except ModuleNotFoundError as error:
        way = "pip install 'dato-search[postgres]'" if str(error.name).startswith("psycopg") else f"install the driver that brings {error.name}"
        raise StoreError(f"the MLflow database at {uri} needs {error.name}, which is not installed: {way}, or name a server (http://host:5000)") from None
    except Exception as error:  # whatever its driver raises
        said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise StoreError(f"no MLflow database answers at {uri} ({said}); start it, correct its address, or {_GIVE}") from None


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
