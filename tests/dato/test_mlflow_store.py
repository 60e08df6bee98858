"""Reading from MLflow makes nothing, and says where something is that was moved."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from dato.card import write_card
from dato.mlflow_store import StoreError, ask, check_address, local_path, require_store
from dato.strategy import Strategy, StrategyError


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, without any MLflow."""
    before = mlflow.get_tracking_uri()
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    yield folder
    mlflow.set_tracking_uri(before)


@pytest.mark.parametrize("source", ["models:/dato-embedded@fastest", "models:/dato-embedded/1", "runs:/0123456789abcdef/winners"])
def test_reading_makes_no_database(there: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    with pytest.raises(StrategyError, match=rf"there is no MLflow database at {there}/mlflow.db; run in the folder where the search ran, or set MLFLOW_TRACKING_URI"):
        Strategy.load(source)
    assert list(there.iterdir()) == []
    for uri, message in {f"sqlite:///{there}/other.db": "no MLflow database at", (there / "store").as_uri(): "no MLflow folder at", str(there / "store"): "no MLflow folder at"}.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(StrategyError, match=message):
            Strategy.load(source)
    assert list(there.iterdir()) == []
    (there / "other.db").write_bytes(b"")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there}/other.db")
    with pytest.raises(StrategyError, match="is no database of MLflow"):
        Strategy.load(source)
    assert (there / "other.db").stat().st_size == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://x")
    with pytest.raises(StrategyError, match="cannot read"):
        Strategy.load(source)


def test_a_moved_folder_is_told_apart_from_a_model_that_is_none(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    strategy = Strategy.uniform(6, 3)
    client = MlflowClient(f"sqlite:///{old}/mlflow.db")
    run = client.create_run(client.create_experiment("e", artifact_location=str(old / "mlruns")))
    client.log_artifacts(run.info.run_id, str(write_card(strategy, tmp_path / "card")), "winners")
    client.create_registered_model("m")
    client.create_model_version("m", f"{run.info.artifact_uri}/winners", run_id=run.info.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}/mlflow.db")
    sources = ("models:/m/1", f"runs:/{run.info.run_id}/winners")
    for source in sources:
        assert Strategy.load(source) == strategy
    shutil.move(old, new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/mlflow.db")
    for source in sources:
        with pytest.raises(StrategyError, match=rf"its files were stored at {old}/mlruns/.*, where nothing is.*put it back, or link the old place to the new one"):
            Strategy.load(source)
    old.symlink_to(new)  # the way out that the message names
    for source in sources:
        assert Strategy.load(source) == strategy


@pytest.mark.parametrize("uri", ["sqlite:///a.db", "sqlite+pysqlite:///a.db", "sqlite:////a.db?timeout=5", "postgresql:///name", "postgresql+psycopg://me@host/name", "http://host:5000", "https://host", "databricks", "databricks://profile"])
def test_addresses_that_mlflow_has(uri: str) -> None:
    assert check_address(uri, "uri") is None  # and raises nothing


@pytest.mark.parametrize(
    ("uris", "why"),
    [
        (["foo://x", "htp://host:5000", "", " ", "s3://bucket", "sqlte:///a.db", "ftp://a", "uc:x", "databricks-uc", "a\0b", "http://[::1", "http://host:port"], "(is no MLflow address|in which MLflow writes no more)"),
        (["mlr", "./mlruns", "/a/b", "file:///a", "file:a"], "a folder, in which MLflow writes no more"),
        (["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://", "sqlite:///file::memory:?uri=true", "sqlite:///a?mode=memory&uri=true"], "in memory, of which nothing is kept"),
        (["sqlite://a.db", "sqlite://folder/a.db"], "whose file comes after three slashes"),
        (["http://", "https:///x"], "which names no host"),
    ],
)  # fmt: skip
def test_addresses_under_which_nothing_is_kept(uris: list[str], why: str) -> None:
    for uri in uris:
        with pytest.raises(StoreError, match=rf"mlflow.uri is .*{why}.*; give a server \(http://host:5000\) or a database \(sqlite:///mlflow.db, "):
            check_address(uri, "mlflow.uri")


def test_a_folder_is_an_address_where_mlflow_was_told_to_write_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(StoreError, match="a folder"):
        check_address("mlruns", "uri")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_address("mlruns", "uri")


def test_a_database_that_does_not_answer_is_said(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(StoreError, match=rf"no MLflow database answers at postgresql.*port {port}.*refused"):
        ask(f"postgresql+psycopg://me@127.0.0.1:{port}/x")
    with pytest.raises(StoreError, match="needs pymysql, which is not installed: install the driver"):
        ask("mysql+pymysql://me@127.0.0.1:9/x")
    with pytest.raises(StoreError, match=r"no MLflow database answers at postgresql.*:port/x"):
        ask("postgresql+psycopg://me@127.0.0.1:port/x")


def test_a_file_that_is_no_database_of_mlflow_is_said_and_left_alone(tmp_path: Path) -> None:
    text, other, pipe = tmp_path / "s.json", tmp_path / "other.db", tmp_path / "pipe"
    text.write_text("{}" * 1000)
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE customers (name TEXT)")
        database.commit()
    os.mkfifo(pipe)
    before = {path: path.read_bytes() for path in (text, other)}
    for path, why in {text: "file is not a database", other: "holds customers, and MLflow would add its own tables", pipe: "it is a pipe", tmp_path: "it is a folder"}.items():
        with pytest.raises(StoreError, match=rf"{path}.*{why}.*; .*give a server"):
            ask(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=f"no MLflow database can be made at {text}/a.db: {text} is no folder"):
        ask(f"sqlite:///{text}/a.db")
    ask(f"sqlite:///{tmp_path}/new/folder/mlflow.db")  # MLflow makes it
    assert {path: path.read_bytes() for path in (text, other)} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.db", "pipe", "s.json"]


def test_a_locked_database_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "with spaces"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "m.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE experiments (name TEXT)")
        ask(f"sqlite:///{folder}/m.db")
        database.execute("BEGIN IMMEDIATE")
        for uri in (f"sqlite:///{folder}/m.db", f"sqlite:///{folder}/m.db".replace(" ", "%20")):
            with pytest.raises(StoreError, match="database is locked"):
                ask(uri, 0.1)


def test_reading_from_a_database_that_does_not_answer_is_said(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://me:very-secret@127.0.0.1:{closed.getsockname()[1]}/x")
    for source in ("models:/m@fastest", "runs:/0123456789abcdef/winners"):
        with pytest.raises(StrategyError, match=f"cannot read {source} from MLflow: no MLflow database answers") as refused:
            Strategy.load(source)
        assert "very-secret" not in str(refused.value)


def test_where_a_store_is() -> None:
    assert local_path("sqlite:////a/b%20c.db") == Path("/a/b c.db")
    assert local_path("sqlite:///c.db?timeout=5") == Path("c.db").absolute()
    assert local_path("file:///a%20b") == Path("/a b")
    assert local_path("http://host/a") is local_path("postgresql://host/a") is local_path("sqlite://") is local_path("databricks") is None
    require_store("http://nowhere.invalid")
