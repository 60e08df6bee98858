"""Simulated evaluators: what takes as long as a candidate would, or is measured by a formula, without a pipeline.

`search.run.simulated_pool` has the machines for them.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dato.strategy import Strategy
from search.measurements import Measurement

SIGMA = 0.5
"""Spread of a candidate's duration: the standard deviation of its logarithm."""


def sleeper(batches: int = 1) -> Any:
    """A factory of evaluators that sleep: a job's "strategies" are the seconds that each takes, shared out over its batches.

    It is sent to workers by value, and they import nothing of ours: sixty-four of them fit on a small machine.
    """

    class Sleeper:
        device = "simulated"

        def build(self) -> Sleeper:
            return self

        def run(self, seconds: Sequence[float], mine: Sequence[Any]) -> list[list[float]]:
            import time

            slept = [[s / batches for _ in mine] for s in seconds]
            time.sleep(sum(map(sum, slept)))
            return slept

    return Sleeper()


def duration(strategy: Strategy, mean_s: float, sigma: float = SIGMA) -> float:
    """Seconds that a strategy's evaluation takes: lognormal over strategies, always the same for one."""
    chance = random.Random(zlib.crc32(strategy.digest.encode()))
    return mean_s * math.exp(chance.gauss(-sigma * sigma / 2, sigma))


def toy_measurement(strategy: Strategy) -> Measurement:
    """A deterministic trade-off between FID and latency, in microseconds of work: caching is fast and blurs, and so are few steps and half the guidance."""
    cost, half = {0: 0.01, 1: 0.1}, [s.guidance == "cond" for s in strategy]
    share = [cost.get(s.cache_depth, 1.0) for s in strategy]
    latency = sum(c * (1 - 0.3 * s.prune_ratio) * (0.5 if h else 1) for c, s, h in zip(share, strategy, half, strict=True))
    fid = 10 + sum(1 - c for c in share) ** 2 / 10 + sum(abs(s.prune_ratio - 0.5) for s in strategy) + sum(half) / 10 + max(0.0, 50 / len(strategy) - 1)
    return Measurement(fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=100, latency_ms=latency, device="simulated")


@dataclass(frozen=True)
class ToyEvaluator:
    """Measures strategies by `toy_measurement`, without a pipeline; its own factory."""

    device: str = "simulated"

    def build(self) -> ToyEvaluator:
        """Nothing to load."""
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> list[Measurement]:
        """A measurement of each strategy."""
        return [toy_measurement(s) for s in strategies]
