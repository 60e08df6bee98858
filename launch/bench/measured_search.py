"""The search's own driver over real Ray workers that draw features and nothing else: what a driver costs whose candidates have true FIDs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dato.strategy import Strategy
from launch.terminal import SearchView
from search.evaluate.measure import Metrics, measure
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard, make_join
from search.ledger import Ledger
from search.metrics.intervals import Groups
from search.metrics.moments import Moments
from search.metrics.quality import Fid
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.records import UNACCELERATED
from search.run.driver import Driver
from search.run.loops import make_loop
from search.run.ray_pool import RayPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import toy_measurement

STEPS, POPULATION, REFERENCES = 50, 20, 5000


@dataclass(frozen=True)
class Drawing:
    """An evaluator, and its own factory: each image has random features, the same for every strategy but for how far these are moved."""

    features: int
    device: str = "drawn"

    def build(self) -> Drawing:
        """Nothing to load."""
        torch.set_num_threads(1)
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        """As `PipelineEvaluator.run`."""
        indices = [i for batch in batches for i in batch]
        rows = torch.cat([draw(len(batch), self.features, batch[0]) for batch in batches])
        found = []
        for strategy in strategies:
            toy = toy_measurement(strategy)
            found.append(Shard(rows + toy.fid / 1000, [toy.latency_ms] * len(batches), seconds=1.0, device=self.device, batch=len(batches[0]), indices=indices))
        return found


def draw(count: int, features: int, seed: int) -> torch.Tensor:
    """(count, features) float32 of unequal sizes, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator) * torch.exp(-6 * torch.arange(features) / features)


class _Watched(RayPool):
    """Counts the seconds that the driver waits for results: the rest of its time is its own."""

    waited = 0.0

    def _wait(self) -> Any:
        began = time.perf_counter()
        found = super()._wait()
        self.waited += time.perf_counter() - began
        return found


def driver_of_features(candidates: int, features: int, images: int, batches: int, workers: int) -> dict[str, Any]:
    """The time of a process that drives a search of so many candidates, from the first one asked for to the last result.

    With all that `dato search` does there: FIDs and feature distances with their intervals, a ledger on the disk, kept shards of what may
    be promoted, a terminal's view.

    By the clock without waiting for results, which has the disk's time and that of others on a busy machine; in CPU time of the driver's own
    thread; and in that of the process, with Ray's threads, which take some however little there is to do.

    Args:
        candidates: At least.
        features: Of an image.
        images: Of a candidate, at first; twice as many for those that are promoted, which is not timed.
        batches: That a candidate's images come in, spread over the workers.
        workers: Real Ray actors.
    """
    space = SearchSpace(steps=STEPS)
    plan = SearchPlan(generations=max(1, candidates // POPULATION), population=POPULATION)
    metrics = Metrics(fid=Fid(Moments.stream(draw(500, features, 10**9 + i) for i in range(REFERENCES // 500))), groups=Groups())
    pool = _Watched(Drawing(features), workers=workers, join=make_join(), load_timeout_s=300)
    try:
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
            ledger = Ledger(Path(folder) / "ledger.jsonl", "scale", {}, {})
            view = SearchView(candidates, plan.generations, Console(file=nowhere, force_terminal=True, width=160))
            driver = Driver(
                Recorder(ledger, plan, partial(measure, metrics=metrics), watchers=[view]),
                EvaluationProtocol(images=2 * images, batch=images // batches, fidelities=(0.5,)),
                make_loop(Nsga2(space=space, population=POPULATION, seed=0)),
                {UNACCELERATED: Strategy.full(STEPS)},
                kept=ShardStore(Path(folder) / "kept"),
            )
            driver.prepare(pool)
            pool.waited, began, worked, own = 0.0, time.perf_counter(), time.process_time(), time.thread_time()
            driver.search(pool)
            seconds, cpu, own = time.perf_counter() - began, time.process_time() - worked, time.thread_time() - own
            view.stop()
            done = list(ledger.record.results.values())
            ledger.close()
    finally:
        pool.close()
    groups = {len(metrics.groups.of(m.images).unique()) for m in done if m.ok}
    return {
        "candidates": len(done), "failed": sum(not m.ok for m in done), "features": features, "images": images, "batches": batches, "workers": workers,
        "groups": sorted(groups), "seconds": seconds, "driver_cpu_ms_per_candidate": 1000 * own / len(done), "with_rays_threads_cpu_ms_per_candidate": 1000 * cpu / len(done),
        "driver_ms_per_candidate": 1000 * (seconds - pool.waited) / len(done),
    }  # fmt: skip
