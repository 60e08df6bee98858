"""The search's own driver over simulated evaluations: what driving costs, in time and memory."""

from __future__ import annotations

import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from dato.strategy import Strategy
from launch.terminal import SearchView
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger
from search.measurements import Measurement
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.records import UNACCELERATED, SearchRecord, Watcher
from search.run.driver import Driver
from search.run.loops import make_loop
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import duration, toy_measurement
from search.run.simulated_pool import SimulatedPool

STEPS = 50
IMAGES = 100


def search_toys(pool: SimulatedPool, candidates: int, *, population: int, batches: int, steady: bool = False, whole: bool = False, watchers: Sequence[Watcher] = ()) -> SearchRecord:
    """The search's driver over simulated evaluations; `whole`: with fewer images first, kept shards and a terminal's view, as `dato search` runs it."""
    space = SearchSpace(steps=STEPS)
    # A steady-state algorithm ranks its population at each result, so that it is kept small however many workers there are.
    algorithm = AsynchronousNsga2(space=space, population=min(population, 100), seed=0) if steady else Nsga2(space=space, population=population, seed=0)
    plan = SearchPlan(generations=max(1, candidates // population), population=population, mode="asynchronous" if steady else "generational")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        config = {"search": {"generations": plan.generations, "population": population}, "cluster": {"workers": pool.size}}
        ledger = Ledger(Path(folder) / "ledger.jsonl", "scale", config, {})
        view = SearchView(candidates, plan.generations, Console(file=nowhere, force_terminal=True, width=160)) if whole else None
        measure = _measure_toys if whole else lambda shards: shards[0]
        driver = Driver(
            Recorder(ledger, plan, measure, watchers=[view] if view else watchers),
            EvaluationProtocol(images=IMAGES, batch=IMAGES // 2, fidelities=(0.5,)) if whole else EvaluationProtocol(images=2 * batches, batch=2),
            make_loop(algorithm),
            {UNACCELERATED: Strategy.full(STEPS)},
            kept=ShardStore(Path(folder) / "kept") if whole else None,
        )
        record = driver.run(pool)
        ledger.close()
        if view:
            view.stop()
    return record


def _toy_shard(strategy: Strategy) -> Shard:
    """`toy_measurement` as what a worker sends: features of half of the images, and the figures in place of times."""
    toy = toy_measurement(strategy)
    return Shard(features=torch.zeros(IMAGES // 2, 64), batch_ms=[toy.latency_ms, toy.fid], seconds=36.0, device=toy.device)


def _measure_toys(shards: Sequence[Shard]) -> Measurement:
    latency, fid = shards[0].batch_ms
    return Measurement(
        fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=sum(len(s.features) for s in shards), latency_ms=latency, seconds=sum(s.seconds for s in shards)
    )


def driver_alone(candidates: int) -> dict[str, float]:
    """Memory and time of a process that drives a search of so many candidates."""
    before = _peak_mib()
    pool = SimulatedPool(64, lambda s: duration(s, 36.0), _toy_shard)
    begin = time.perf_counter()
    search_toys(pool, candidates, population=20, batches=2, whole=True)
    seconds = time.perf_counter() - begin - pool.tally.pool_s
    peak = _peak_mib()
    return {"candidates": candidates, "peak_mib": peak, "growth_mib": peak - before, "driver_ms_per_candidate": 1000 * seconds / candidates}


def _peak_mib() -> float:
    """The most memory that this process has held."""
    # Linux: `getrusage` would begin with what the process that started this one had held.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()) if sys.platform == "linux" else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
