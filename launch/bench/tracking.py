"""``dato bench tracking``: how long MLflow takes to log the candidates of a large search, and to list them."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mlflow.tracking import MlflowClient

from dato.strategy import Step, Strategy
from launch.bench.timing import parse, print_table, write_result
from search.measurements import Measurement
from search.publish.mlflow_runs import Tracker
from search.records import Candidate, SearchRecord

DEFAULTS = {"candidates": "2000", "steps": "50", "output": "analysis/results"}


def run(arguments: Sequence[str]) -> int:
    """Log made-up candidates into a fresh sqlite store, list them as MLflow's page does, print and write the result file."""
    given = parse(list(arguments), DEFAULTS, "tracking")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    record = made_up(int(given["candidates"]), int(given["steps"]))
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        client = MlflowClient(uri)
        experiment = client.create_experiment("bench", artifact_location=Path(folder, "artifacts").as_uri())  # lays out the tables, once for all searches
        tracker = Tracker(experiment="bench", uri=uri)
        tracker.complete(SearchRecord(search_id=record.search_id, config=record.config), [])
        began, worked = time.perf_counter(), time.process_time()
        tracker.complete(record, [])  # as the search's background thread does, and until it is done
        logged, worked = time.perf_counter() - began, time.process_time() - worked
        began = time.perf_counter()
        page = client.search_runs([experiment], "tags.`dato.kind` = 'candidate'", max_results=100, order_by=["metrics.fid ASC"])
        listed = time.perf_counter() - began
        size = (Path(folder) / "mlflow.db").stat().st_size
    if len(page) != min(100, len(record.results)):
        raise RuntimeError(f"MLflow lists {len(page)} candidates of {len(record.results)}")
    found = {"candidates": len(record.results), "seconds": logged, "processor_seconds": worked, "ms_each": 1000 * logged / len(record.results), "first_page_s": listed, "database_bytes": size}
    print_table("logging candidates into MLflow, sqlite", ["candidates", "seconds", "of them processor", "ms each", "first page of 100 by FID, s", "database, MiB"],
                [[str(found["candidates"]), f"{logged:.1f}", f"{worked:.1f}", f"{found['ms_each']:.1f}", f"{listed:.2f}", f"{size / 2**20:.1f}"]])  # fmt: skip
    print(write_result("tracking", given, torch.device("cpu"), found, given["output"]))
    return 0


def made_up(candidates: int, steps: int) -> SearchRecord:
    """A record with random strategies and measurements, the same every time."""
    chance = random.Random(0)
    record = SearchRecord(search_id="bench", config={"model": {"name": "none"}, "data": {"name": "none"}})
    plain = Measurement(fid=50.0, fid_low=49.0, fid_high=51.0, images=500, latency_ms=1000.0)
    record.baselines["unaccelerated"] = (Candidate(number=-1, generation=-1, strategy=Strategy.full(steps), origin="unaccelerated"), plain)
    for number in range(candidates):
        strategy = Strategy(tuple(Step(chance.choice((0, 1, 12)), chance.choice((0.3, 0.5, 0.7))) for _ in range(steps)))
        record.candidates[number] = Candidate(number=number, generation=number // 20, strategy=strategy)
        fid, ms = chance.uniform(40, 90), chance.uniform(100, 900)
        calls = {str(d): n for d, n in strategy.calls_by_depth.items()}
        record.results[number] = Measurement(fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=500, latency_ms=ms, calls_by_depth=calls, device="none", seconds=1)
    return record
