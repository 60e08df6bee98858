"""A real sqlite MLflow: what a search looks like in it, and how to find things."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from dato.strategy import Strategy
from launch.__main__ import main
from launch.config import compose_config
from search.data.datasets import Data, DataSpec
from search.evaluate.protocol import EvaluationProtocol
from search.ledger import Ledger, read_ledger
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.publish.mlflow_queries import experiment_id
from search.publish.mlflow_runs import Tracker
from search.publish.mlflow_values import front_table, made_with
from search.records import UNACCELERATED, Candidate, SearchRecord
from search.run.driver import Driver
from search.run.loops import GenerationalLoop
from search.run.pools import InProcessPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import ToyEvaluator


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
    tracker = Tracker(experiment="toy", uri=uri, children=children, front_page=lambda r: f"<p>{len(r.front())}</p>", candidate_files=lambda _, c: {"name.txt": str(c.number).encode()}, data=lambda: Data(DataSpec(name="digits", kind="digits")))
    tracker.started(SearchRecord(search_id=record.search_id, config=record.config, environment=record.environment))
    for number in record.results:
        tracker.measured(record, record.candidates[number])
    for generation in range(len(record.hypervolumes)):
        tracker.generation_done(record, generation)
    tracker.finished(record, [])


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
    assert run.data.params["sampler"] == "own"
    assert (run.data.metrics["with/steps"], run.data.metrics["with/guided_share"]) == (len(candidate.strategy), 1.0)
    text = Path(run.info.artifact_uri.removeprefix("file://"), "strategy.json").read_text()
    assert text == candidate.strategy.to_json()
    assert run.data.metrics["with/feature_distance"] == m.feature_distance
    # What a person sorts by comes first in MLflow's columns, which are in the order of their names.
    assert sorted(run.data.metrics)[:4] == ["fid", "fid_difference", "latency_ms", "speedup"]


def test_strategies_are_found_by_sampler_steps_and_guidance(uri: str, make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "mixed", seed=7) / "ledger.jsonl")
    given = ["dpmpp-8", "dpmpp-5-limited-guidance", "unipc-4-limited-guidance@0.5"]
    numbers = sorted(n for n, m in record.results.items() if m.ok)[:3]
    for number, name in zip(numbers, given, strict=True):
        record.candidates[number] = replace(record.candidates[number], strategy=Strategy.load(name))
    track(record, uri, "all")

    def found(query: str) -> list[str]:
        runs = find(f"tags.`dato.search_id` = '{record.search_id}' and {query}", order_by=["attributes.start_time ASC"])
        return [r.data.tags["dato.candidate"] for r in runs]

    eight, five, four = map(str, numbers)
    assert set(found("params.sampler = 'DPM++'")) == {eight, five}
    assert set(found("metrics.`with/steps` <= 5")) == {five, four}
    assert found("params.sampler = 'DPM++' and metrics.`with/guided_share` < 1") == [five]
    (run,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.candidate` = '{five}'")
    assert json.loads(run.data.params["steps"])[2:4] == [[12, 0.0], [12, 0.0, "cond", 0]]
    rows = {r["candidate"]: r for r in csv.DictReader(io.StringIO(front_table(record)))}
    for c, _ in record.front():
        row = rows[str(c.number)]
        assert (int(row["steps"]), row["sampler"]) == (len(c.strategy), str(c.strategy.sampler or "own"))


def test_the_parent_says_what_it_wasmade_with(tracked: dict[str, SearchRecord]) -> None:
    record = tracked["all"]
    (parent,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'search'")
    assert parent.data.tags["dato.version.torch"] == record.environment["versions"]["torch"]
    assert parent.data.tags["dato.machine.cpus"] == "2"
    assert made_with({"git": {"commit": "abc", "changed": True}}) == {
        "mlflow.source.name": "dato search", "mlflow.source.git.commit": "abc", "dato.changed": "True"
    }  # fmt: skip


def test_the_parent_is_renewed_every_generation(tracked: dict[str, SearchRecord]) -> None:
    record = tracked["none"]
    (parent,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'search'")
    client = MlflowClient()
    assert [m.value for m in client.get_metric_history(parent.info.run_id, "hypervolume")] == record.hypervolumes
    assert parent.data.metrics["fastest/speedup"] == record.winners["fastest"].speedup
    assert {k.partition("/")[0] for k in parent.data.metrics} == {"hypervolume", "best_fid_difference", "progress", "fastest"}, "few figures, nearly all of them curves"
    assert len(client.get_metric_history(parent.info.run_id, "progress/front")) == 4
    folder = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert {"front.html", "importance.csv", "search.json"} <= {p.name for p in folder.iterdir()}
    assert len(list((folder / "fronts").glob("*.csv"))) == 3
    rows = list(csv.DictReader(io.StringIO((folder / "fronts" / "generation_002.csv").read_text())))
    assert [r["strategy"] for r in rows] == [str(c.strategy) for c, _ in record.front()]
    assert [float(r["feature_distance"]) for r in rows] == pytest.approx([m.feature_distance for _, m in record.front()], abs=1e-4)


def test_an_experiment_opens_on_its_runs_whenever_it_was_made(uri: str) -> None:
    client = MlflowClient()
    old = client.create_experiment("of before")
    client.set_experiment_tag(old, "mlflow.experimentKind", "genai_development_inferred")
    chosen = client.create_experiment("of another kind", tags={"mlflow.experimentKind": "regression"})
    assert [experiment_id(client, name) for name in ("of before", "of another kind")] == [old, chosen]
    kinds = {name: client.get_experiment(experiment_id(client, name)).tags["mlflow.experimentKind"] for name in ("of before", "of another kind", "new")}
    assert kinds == {"of before": "custom_model_development", "of another kind": "regression", "new": "custom_model_development"}


def test_what_is_on_the_front_or_won_is_described(tracked: dict[str, SearchRecord]) -> None:
    record = tracked["all"]
    (parent,) = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'search'")
    children = find(f"tags.`dato.search_id` = '{record.search_id}' and tags.`dato.kind` = 'candidate'")
    front = {str(c.number) for c, _ in record.front()} | {str(w.candidate.number) for w in record.winners.values()}
    assert {r.data.tags["dato.candidate"] for r in children if "mlflow.note.content" in r.data.tags} == front, "and nothing else, so that thousands browse fast"
    winner = record.winners["fastest"]
    (won,) = [r for r in children if "fastest" in r.data.tags.get("dato.winner", "")]
    note = won.data.tags["mlflow.note.content"]
    for named in (f"runs/{parent.info.run_id}", f"{winner.speedup:.2f}x faster", "fresh images", str(winner.candidate.strategy), f"runs:/{won.info.run_id}/strategy.json", "num_inference_steps=20"):
        assert named in note
    assert won.data.metrics["verified/psnr"] == 20
    assert Path(won.info.artifact_uri.removeprefix("file://"), "name.txt").read_text() == str(winner.candidate.number)
    for run in (parent, won):
        names = {i.dataset.name: i for i in run.inputs.dataset_inputs}
        assert set(names) == {"digits: prompts", "digits: real images"}
        assert all(len(i.dataset.digest) == 36 for i in names.values())
    about = parent.data.tags["mlflow.note.content"]
    for named in (f"runs/{won.info.run_id}", f"{winner.speedup:.2f}x", "fronts" if "fronts" in about else "front.html", "DPM++", "winners/fastest.json"):
        assert named in about
    assert Strategy.load(f"runs:/{won.info.run_id}/strategy.json") == winner.candidate.strategy


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


HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=100, isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
database.execute("ROLLBACK")
"""


class Locked:
    """Another process holds a sqlite database from one candidate's result until another's; None for until it is released."""

    def __init__(self, uri: str, path: Path, first: int = 0, last: int | None = None) -> None:
        self._uri, self._path, self._first, self._last = uri, path, first, last
        self._process: subprocess.Popen[str] | None = None
        self.over = False

    def hold(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", HOLDER, str(self._path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "locked\n"

    def release(self) -> None:
        assert self._process
        assert self._process.poll() is None, "it was held until now"
        self._process.communicate("\n", timeout=60)
        self.over = True

    def started(self, record: SearchRecord) -> None:
        """Nothing yet."""

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        if candidate.number >= 0 and len(record.results) == self._first and not self._process:
            self.hold()
        if candidate.number >= 0 and len(record.results) == self._last and not self.over:
            self.release()

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """No end of its own."""


def drive(folder: Path, uri: str, *others: Any, flush_s: float) -> tuple[SearchRecord, Tracker]:
    config = compose_config("search", ["model.steps=8", "search.population=8", "search.generations=3", "mlflow.experiment=toy", f"mlflow.uri={uri}"])
    tracker = Tracker(experiment="toy", uri=uri, flush_s=flush_s)
    ledger = Ledger(folder / "ledger.jsonl", folder.name, config, {})
    try:
        recorder = Recorder(ledger, SearchPlan(generations=3, population=8), lambda shards: shards[0], watchers=[*others, tracker])  # type: ignore[arg-type,return-value]
        loop = GenerationalLoop(Nsga2(space=SearchSpace(steps=8), population=8, seed=0))
        record = Driver(recorder, EvaluationProtocol(images=4, batch=4), loop, {UNACCELERATED: Strategy.full(8)}).run(InProcessPool(ToyEvaluator()))
        tracker.finished(record, [])
        return record, tracker
    finally:
        ledger.close()


def is_whole(record: SearchRecord) -> bool:
    found = find(f"tags.`dato.search_id` = '{record.search_id}'")
    (parent,) = [r for r in found if r.data.tags["dato.kind"] == "search"]
    children = [r for r in found if r.data.tags["dato.kind"] == "candidate"]
    assert sorted(int(r.data.tags["dato.candidate"]) for r in children) == sorted(record.results), "each once"
    assert {int(r.data.tags["dato.candidate"]): r.data.metrics["fid"] for r in children} == {n: m.fid for n, m in record.results.items()}
    history = MlflowClient().get_metric_history(parent.info.run_id, "hypervolume")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == record.hypervolumes
    return {r.info.status for r in found} == {"FINISHED"}


@pytest.mark.slow
def test_a_search_goes_on_while_another_process_holds_the_database(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = Locked(uri, Path(uri.removeprefix("sqlite:///")))
    locked.hold()
    before = set(threading.enumerate())
    record, tracker = drive(tmp_path / "locked-throughout", uri, flush_s=2)
    for thread in set(threading.enumerate()) - before:
        thread.join(120)  # with a search's process its last try ends too
    assert record.finished
    assert len(read_ledger(tmp_path / "locked-throughout" / "ledger.jsonl").results) == 24
    assert tracker.trouble
    assert "locked" in tracker.trouble
    locked.release()  # which says that it was held all the time
    assert main(["sync", f"folder={tmp_path / 'locked-throughout'}"]) == 0, capsys.readouterr().err
    assert is_whole(record)


def test_what_a_locked_database_did_not_take_is_caught_up_with(uri: str, tmp_path: Path) -> None:
    record, tracker = drive(tmp_path / "locked-between", uri, Locked(uri, Path(uri.removeprefix("sqlite:///")), first=5, last=19), flush_s=120)
    assert record.finished
    assert tracker.trouble is None
    assert is_whole(record)
