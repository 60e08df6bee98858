"""MLflow is away for a part of a search, or all of it: the view is completed from the ledger."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from dato.strategy import Strategy
from launch.__main__ import main
from search.evaluate.protocol import EvaluationProtocol
from search.ledger import Ledger, read_ledger
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.publish.mlflow_runs import Tracker
from search.records import UNACCELERATED
from search.run.driver import Driver
from search.run.pools import InProcessPool
from search.run.settings import SearchPlan
from search.run.simulate import ToyEvaluator


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    before = mlflow.get_tracking_uri()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(uri).create_experiment("dato/embedded", artifact_location=(tmp_path / "artifacts").as_uri())
    yield uri
    mlflow.set_tracking_uri(before)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def lines_of(folder: Path, uri: str) -> list[str]:
    """The lines of a ledger whose search logs to `uri`."""
    first, *others = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(first)
    row["config"]["mlflow"]["uri"] = uri
    return [json.dumps(row) + "\n", *others]


def runs(uri: str) -> tuple[Run, list[Run]]:
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("dato/embedded").experiment_id], max_results=1000)
    (parent,) = [r for r in found if r.data.tags["dato.kind"] == "search"]
    return parent, [r for r in found if r.data.tags["dato.kind"] == "candidate"]


def test_a_view_is_completed_and_nothing_is_written_twice(database: str, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    whole = lines_of(folder, database)
    half = next(i for i, line in enumerate(whole) if '"event":"generation"' in line) + 4
    (folder / "ledger.jsonl").write_text("".join(whole[:half]))
    assert main(["sync", f"folder={folder}"]) == 0
    assert "results so far, 1 generations" in capsys.readouterr().out
    parent, some = runs(database)
    assert parent.info.status == "KILLED"
    (folder / "ledger.jsonl").write_text("".join(whole))
    record = read_ledger(folder / "ledger.jsonl")
    for _ in range(2):
        assert main(["sync", f"folder={folder}"]) == 0
        parent, children = runs(database)
        assert parent.info.status == "FINISHED"
        assert len(some) < len(children) == len(record.results)
        history = MlflowClient(database).get_metric_history(parent.info.run_id, "hypervolume")
        assert [m.value for m in sorted(history, key=lambda m: m.step)] == record.hypervolumes
        front = {r.data.tags["dato.candidate"] for r in children if r.data.tags.get("dato.front") == "true"}
        assert front == {str(c.number) for c, _ in record.front()}


def test_a_server_that_is_away_stops_no_search_and_sync_says_what_to_do(
    nowhere: str, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = mlflow.get_tracking_uri()
    ledger = Ledger(tmp_path / "ledger.jsonl", "away", {}, {})
    try:
        with caplog.at_level(logging.WARNING, "search.publish.mlflow_runs"):
            record = Driver(
                ledger=ledger,
                algorithm=Nsga2(space=SearchSpace(steps=8), population=4, seed=0),
                plan=SearchPlan(generations=2, population=4),
                protocol=EvaluationProtocol(images=4, batch=4),
                pool=InProcessPool(ToyEvaluator()),
                measure=lambda shards: shards[0],  # type: ignore[arg-type,return-value]
                baselines={UNACCELERATED: Strategy.full(8)},
                watchers=[Tracker(experiment="away", uri=nowhere)],
            ).run()
        assert record.finished
        assert len(record.results) == 8
        assert caplog.text.count("the search goes on") == 1
        folder = make_search(tmp_path / "toy")
        (folder / "ledger.jsonl").write_text("".join(lines_of(folder, nowhere)))
        assert main(["sync", f"folder={folder}"]) != 0
        assert "check that the server runs and may be written to" in capsys.readouterr().err
    finally:
        ledger.close()
        mlflow.set_tracking_uri(before)


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", f"folder={tmp_path}"]) != 0
    assert "which holds no ledger.jsonl; give the folder of a search" in capsys.readouterr().err


def test_a_search_that_began_without_mlflow_has_a_view_made(database: str, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    first, *others = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(first)
    row["config"]["mlflow"]["enabled"] = False  # and was resumed with it on, which the ledger does not say
    (folder / "ledger.jsonl").write_text("".join([json.dumps(row) + "\n", *others]))
    assert main(["sync", f"folder={folder}", f"uri={database}"]) == 0
    said = capsys.readouterr().out
    assert "began with mlflow.enabled=false" in said
    assert database in said
    parent, children = runs(database)
    assert parent.info.status == "FINISHED"
    assert len(children) == 24


@pytest.mark.parametrize(("words", "message"), [(["uri=foo://x"], "uri is 'foo://x', which is no MLflow address"), (["ury=x"], "it takes folder="), ([], "needs folder=...")])
def test_bad_words(words: list[str], message: str, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    assert main(["sync", *([f"folder={folder}"] if words else []), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("command", "words"), [("export", ["folder={toy}"]), ("import", ["source=paper-b1", "name=m"])])
def test_the_registry_of_an_unknown_address_is_refused(command: str, words: list[str], make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = make_search(tmp_path / "toy")
    assert main([command, *(w.format(toy=toy) for w in words), "to=registry", "uri=foo://x"]) == 2
    assert "uri is 'foo://x', which is no MLflow address; give a server" in capsys.readouterr().err


def test_a_search_that_runs_is_not_synced_beside_itself(database: str, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy", stop="running")
    record = read_ledger(folder / "ledger.jsonl")
    ledger = Ledger(folder / "ledger.jsonl", record.search_id, record.config, record.environment)
    try:
        assert main(["sync", f"folder={folder}", f"uri={database}"]) == 1
        said = capsys.readouterr().err
        assert "ledger.jsonl is in use by another dato search" in said
        assert not Path("/proc/locks").exists() or f"process {os.getpid()}" in said
    finally:
        ledger.close()
    assert main(["sync", f"folder={folder}", f"uri={database}"]) == 0
