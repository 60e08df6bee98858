"""The filters in search/publish/README.md, each against a real store of a finished search of the model that ships."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from search.ledger import read_ledger
from search.measurements import Measurement
from search.publish.mlflow_runs import Tracker
from search.records import SearchRecord

ROOT = Path(__file__).parents[3]
ROWS = re.findall(r"^\| ([^|]+) \| ``(.+?)`` \|$", (ROOT / "search" / "publish" / "README.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MlflowClient, str, SearchRecord]]:
    folder, before = tmp_path_factory.mktemp("queries"), mlflow.get_tracking_uri()
    uri, record = f"sqlite:///{folder / 'mlflow.db'}", read_ledger(ROOT / "analysis" / "results" / "search" / "ledger.jsonl")
    # It had no failure: one more candidate, which has one.
    number = len(record.candidates)
    record.candidates[number] = replace(record.candidates[0], number=number)
    record.results[number] = Measurement(error="RuntimeError: out of memory")
    client = MlflowClient(uri)
    experiment = client.create_experiment("embedded", artifact_location=(folder / "artifacts").as_uri())
    tracker = Tracker(experiment="embedded", uri=uri)
    tracker.complete(record, [])
    yield client, experiment, record
    mlflow.set_tracking_uri(before)


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 7


@pytest.mark.parametrize(("asked", "query"), ROWS, ids=[asked[:40] for asked, _ in ROWS])
def test_a_filter_finds_something(asked: str, query: str, logged: tuple[MlflowClient, str, SearchRecord]) -> None:
    client, experiment, record = logged
    commit = record.environment["git"]["commit"]
    given = re.sub(r"(git\.commit` = )'\.\.\.'", rf"\1'{commit}'", query)
    given = re.sub(r"(dato\.search_id` = )'[^']*'", rf"\1'{record.search_id}'", given)
    assert "..." not in given, "every place to fill in is filled in here"
    assert client.search_runs([experiment], given, max_results=1), asked
