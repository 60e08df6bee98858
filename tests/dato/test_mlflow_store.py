"""Reading from MLflow makes nothing, and says where something is that was moved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from dato.card import write_card
from dato.mlflow_store import StoreError, check_address, local_path, require_store
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


@pytest.mark.parametrize("uri", ["sqlite:///a.db", "sqlite+pysqlite:///a.db", "postgresql+psycopg://me@host/name", "http://host:5000", "https://host", "file:///a", "/a/b", "mlruns", "databricks", "databricks://profile"])
def test_addresses_that_mlflow_has(uri: str) -> None:
    assert check_address(uri, "uri") is None  # and raises nothing


@pytest.mark.parametrize("uri", ["foo://x", "htp://host:5000", "", " ", "s3://bucket", "sqlte:///a.db", "ftp://a"])
def test_addresses_that_it_does_not_have(uri: str) -> None:
    with pytest.raises(StoreError, match=r"which is no MLflow address; give a server .*, a database .* or a folder"):
        check_address(uri, "mlflow.uri")


def test_where_a_store_is() -> None:
    assert local_path("sqlite:////a/b%20c.db") == Path("/a/b c.db")
    assert local_path("sqlite:///c.db?timeout=5") == Path("c.db").absolute()
    assert local_path("file:///a%20b") == Path("/a b")
    assert local_path("http://host/a") is local_path("postgresql://host/a") is local_path("sqlite://") is local_path("databricks") is None
    require_store("http://nowhere.invalid")
