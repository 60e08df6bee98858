"""A real sqlite MLflow: what a search looks like in it, and how to find things."""

from __future__ import annotations

import csv
import io
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from search.importance import importance, importance_metrics
from search.ledger import read_ledger
from search.records import SearchRecord
from search.tracking import Tracker, _made_with


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    address = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(address)
    MlflowClient(address).create_experiment("toy", artifact_location=(folder / "artifacts").as_uri())
    yield address
    mlflow.set_tracking_uri(before)


def track(record: SearchRecord, uri: str, children: str) -> None:
    tracker = Tracker(experiment="toy", uri=uri, children=children, front_page=lambda r: f"<p>{len(r.front())}</p>", summary=lambda r: {"evaluations": len(r.results), "speedup": float("nan")})
    tracker.started(SearchRecord(search_id=record.search_id, config=record.config, environment=record.environment))
    for number in record.results:
        tracker.measured(record, record.candidates[number])
    for generation in range(len(record.hypervolumes)):
        tracker.generation_done(record, generation)
    tracker.finished(record, {})


@pytest.fixture(scope="module")
def searches(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SearchRecord]:
    return {}


@pytest.fixture
def tracked(uri: str, searches: dict[str, SearchRecord], make_search: Callable[..., Path], tmp_path: Path) -> dict[str, SearchRecord]:
    for seed, children in enumerate(("all", "front", "none") if not searches else ()):
        searches[children] = read_ledger(make_search(tmp_path / children, seed=seed) / "ledger.jsonl")
        track(searches[children], uri, children)
    return searches


def find(query: str, **more: object) -> list[mlflow.entities.Run]:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], query, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("children", ["all", "front", "none"])
def test_which_candidates_have_runs(tracked: dict[str, SearchRecord], children: str) -> None:
    record = tracked[children]
    found = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'candidate'")
    front = {str(c.number) for c, _ in record.front()}
    expected = {"all": {str(n) for n in record.results}, "front": front, "none": set()}[children]
    assert {r.data.tags["dato.candidate"] for r in found} == expected
    assert {r.data.tags["dato.candidate"] for r in found if r.data.tags.get("dato.front") == "true"} == front & expected


def test_a_child_holds_its_strategy_and_figures(tracked: dict[str, SearchRecord]) -> None:
    record = tracked["all"]
    (failed,) = find(f"tags.`dato.search_id` = '{record.search_id}' and attributes.status = 'FAILED'")
    assert failed.data.tags["dato.error"] == "RuntimeError: out of memory"
    candidate, m = record.front()[0]
    (run,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.candidate` = '{candidate.number}'")
    plain = record.baselines["unaccelerated"][1]
    assert run.data.metrics["fid"] == m.fid
    assert run.data.metrics["speedup"] == pytest.approx(plain.latency_ms / m.latency_ms)
    assert run.data.metrics["with/calls_depth_12"] == m.calls_by_depth["12"]
    assert run.data.params["strategy"] == str(candidate.strategy)
    text = Path(run.info.artifact_uri.removeprefix("file://"), "strategy.json").read_text()
    assert text == candidate.strategy.to_json()
    assert run.data.metrics["with/feature_distance"] == m.feature_distance
    # What a person sorts by comes first in MLflow's columns, which are in the order of their names.
    assert sorted(run.data.metrics)[:4] == ["fid", "fid_difference", "latency_ms", "speedup"]


def test_the_parent_says_what_it_was_made_with(tracked: dict[str, SearchRecord]) -> None:
    record = tracked["all"]
    (parent,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'search'")
    assert parent.data.tags["dato.version.torch"] == record.environment["versions"]["torch"]
    assert parent.data.tags["dato.machine.cpus"] == "2"
    assert _made_with({"git": {"commit": "abc", "changed": True}}) == {
        "mlflow.source.name": "dato search", "mlflow.source.git.commit": "abc", "dato.changed": "True"
    }  # fmt: skip


def test_the_parent_is_renewed_every_generation(tracked: dict[str, SearchRecord]) -> None:
    record = tracked["none"]
    (parent,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'search'")
    client = MlflowClient()
    assert [m.value for m in client.get_metric_history(parent.info.run_id, "hypervolume")] == record.hypervolumes
    assert "speedup" not in parent.data.metrics  # no number where there is none
    assert parent.data.metrics["fastest_fid_difference_low"] < parent.data.metrics["fastest_fid_difference"]
    assert parent.data.metrics["fastest_feature_distance"] == record.winners["fastest"].fresh.feature_distance
    assert parent.data.metrics["fastest_psnr"] == 20
    known = {k: v for k, v in importance_metrics(importance(record)).items() if math.isfinite(v)}
    assert known.keys() >= {"importance_fid/r2", "importance_latency/r2"}
    assert {k: v for k, v in parent.data.metrics.items() if k.startswith("importance_")} == known
    folder = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert {"front.html", "importance.csv", "search.json"} <= {p.name for p in folder.iterdir()}
    assert len(list((folder / "fronts").glob("*.csv"))) == 3
    rows = list(csv.DictReader(io.StringIO((folder / "fronts" / "generation_002.csv").read_text())))
    assert [r["strategy"] for r in rows] == [str(c.strategy) for c, _ in record.front()]
    assert [float(r["feature_distance"]) for r in rows] == pytest.approx([m.feature_distance for _, m in record.front()], abs=1e-4)


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("tags.`dato.kind` = 'search' and tags.`dato.model` = 'embedded'", "attributes.start_time DESC"),
        ("tags.`dato.search_id` = '{id}' and tags.`dato.front` = 'true'", "metrics.latency_ms ASC"),
        ("tags.`dato.search_id` = '{id}' and metrics.fid_difference <= 60 and metrics.speedup > 1", "metrics.speedup DESC"),
        ("tags.`dato.model` = 'embedded' and tags.`dato.winner` LIKE '%fastest%'", "metrics.speedup DESC"),
        ("tags.`mlflow.source.git.commit` = 'abc' and tags.`dato.kind` = 'search'", "attributes.start_time DESC"),
        ("tags.`dato.kind` = 'candidate' and attributes.status = 'FAILED'", "attributes.start_time ASC"),
    ],
)
def test_the_queries_of_the_readme(tracked: dict[str, SearchRecord], query: str, order: str) -> None:
    assert find(query.format(id=tracked["all"].search_id), order_by=[order])


def test_a_search_that_goes_on_logs_nothing_twice(tracked: dict[str, SearchRecord], uri: str) -> None:
    before = len(find("tags.`dato.kind` = 'candidate'"))
    track(tracked["all"], uri, "all")
    assert len(find("tags.`dato.kind` = 'candidate'")) == before


def test_a_server_that_fails_does_not_stop_the_search(
    tracked: dict[str, SearchRecord], uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        track(tracked["all"], "http://someone:secret@127.0.0.1:1", "all")
    finally:
        mlflow.set_tracking_uri(uri)
    (said,) = [r.message for r in caplog.records if "MLflow does not take the log" in r.message]
    assert "secret" not in said


def test_unknown_children() -> None:
    with pytest.raises(ValueError, match="children is 'some'; allowed are all, front, none"):
        Tracker(experiment="toy", children="some")


@pytest.mark.slow
def test_a_locked_database_holds_nothing_up_and_is_completed_later(make_search: Callable[..., Path], tmp_path: Path) -> None:
    before = mlflow.get_tracking_uri()
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(address).create_experiment("toy", artifact_location=(tmp_path / "artifacts").as_uri())
    record = read_ledger(make_search(tmp_path / "search", seed=11) / "ledger.jsonl")
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")
        tracker = Tracker(experiment="toy", uri=address, flush_s=1.0)
        tracker.begin(record)
        for number in record.results:
            tracker.measured(record, record.candidates[number])
        for generation in range(len(record.hypervolumes)):
            tracker.generation_done(record, generation)
        tracker.finished(record, {})
        assert tracker.trouble is not None
        assert lock.in_transaction, "the database was locked all the while"
        lock.execute("ROLLBACK")
        for thread in threading.enumerate():  # a process that ends would not wait for it; here it must not write beside the next
            if thread.name == "dato background":
                thread.join(120)
        again = Tracker(experiment="toy", uri=address)
        again.complete(record, {})
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("toy")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], f"tags.`dato.search_id` = '{record.search_id}'", max_results=1000)
        assert sum(r.data.tags["dato.kind"] == "candidate" for r in runs) == len(record.results)
        assert [r.info.status for r in runs if r.data.tags["dato.kind"] == "search"] == ["FINISHED"]
    finally:
        lock.close()
        mlflow.set_tracking_uri(before)
