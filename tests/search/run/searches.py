"""Small searches on evaluators that compute formulas: no pipeline, no Ray, no MLflow."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dato.strategy import Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.records import UNACCELERATED, Measurement, SearchRecord
from search.run.driver import Driver
from search.run.loops import AsynchronousLoop, GenerationalLoop, Loop
from search.run.pools import InProcessPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan

MODES = ("generational", "asynchronous")
COST = {0: 0.01, 1: 0.1, 12: 1.0}


class Toy:
    """A deterministic evaluator; "fails": a candidate whose digest starts with one of these letters raises."""

    def __init__(self, fails: str = "", pause: float = 0.0) -> None:
        self.fails, self.pause, self.evaluated = fails, pause, list[str]()

    def build(self) -> Toy:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
        time.sleep(self.pause)
        found = []
        for s in strategies:
            if len(strategies) == 1 and s.digest[0] in self.fails:
                raise RuntimeError(f"no luck with {s.digest}")
            self.evaluated.append(s.digest)
            time_ms = sum(COST[x.cache_depth] * (1 - 0.3 * x.prune_ratio) for x in s)
            fid = 10 + sum(1 - COST[x.cache_depth] for x in s) ** 2 / 10 + sum(abs(x.prune_ratio - 0.5) for x in s)
            found.append(Measurement(fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=4, latency_ms=time_ms))
        return found


class Stops(Toy):
    """Is interrupted after so many calls."""

    def __init__(self, calls: int, fails: str = "") -> None:
        super().__init__(fails)
        self.left = calls

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().run(strategies, batches)


def loop(plan: SearchPlan, seed: int = 0) -> Loop:
    settings: dict[str, Any] = {"space": SearchSpace(steps=8), "population": plan.population, "seed": seed, "objectives": plan.objectives.count}
    return AsynchronousLoop(AsynchronousNsga2(**settings)) if plan.mode == "asynchronous" else GenerationalLoop(Nsga2(**settings))


def search(
    folder: Path, evaluator: Toy, generations: int = 4, seed: int = 0, latencies: dict[tuple[str, int], float] | None = None, retry_failed: bool = False,
    **plan: Any
) -> SearchRecord:  # fmt: skip
    ledger = Ledger(folder / "ledger.jsonl", f"toy-{seed}", {"seed": seed}, {})
    chosen = SearchPlan(generations=generations, population=6, **plan)
    baselines = {UNACCELERATED: Strategy.full(8), "rival": Strategy.uniform(8, 3)}
    try:
        recorder = Recorder(ledger, chosen, lambda shards: shards[0], latencies=latencies, retry_failed=retry_failed)  # type: ignore[arg-type,return-value]
        return Driver(recorder, EvaluationProtocol(images=4, batch=4), loop(chosen, seed), baselines).run(InProcessPool(evaluator))
    finally:
        ledger.close()


def outcome(record: SearchRecord) -> object:
    points = [(c.strategy.digest, m.fid, m.latency_ms) for c, m in record.front()]
    return points, record.hypervolumes, {a: w.candidate.strategy.digest for a, w in record.winners.items()}


class Images:
    """Gives each image one feature, the strategy's quality with some noise of the image's own."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}

    def build(self) -> Images:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        shards = []
        for s in strategies:
            indices = [i for batch in batches for i in batch]
            self.made[s.digest] = self.made.get(s.digest, 0) + len(indices)
            noise = torch.tensor([random.Random(f"{s.digest}{i}").gauss(0, 0.5) for i in indices])
            quality = 10 + sum(1 - COST[x.cache_depth] for x in s) ** 2 / 10
            time_ms = sum(COST[x.cache_depth] * (1 - 0.3 * x.prune_ratio) for x in s)
            shards.append(Shard((quality + noise)[:, None], batch_ms=[time_ms] * len(batches), seconds=len(indices) / 100, batch=4))
        return shards


def of_shards(shards: Sequence[Shard]) -> Measurement:
    features = torch.cat([s.features for s in shards])
    return Measurement(
        fid=float(features.mean()) + 10 / len(features), images=len(features), latency_ms=shards[0].batch_ms[0], seconds=sum(s.seconds for s in shards)
    )


STEPS = EvaluationProtocol(images=40, fidelities=[8, 20], batch=4)


def search_in_steps(folder: Path, evaluator: Images, kept: type[ShardStore] = ShardStore, **plan: Any) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "steps", {}, {})
    chosen = SearchPlan(generations=5, population=8, **plan)
    try:
        driver = Driver(Recorder(ledger, chosen, of_shards), STEPS, loop(chosen), {UNACCELERATED: Strategy.full(8)}, kept=kept(folder / "kept"))
        return driver.run(InProcessPool(evaluator))
    finally:
        ledger.close()
