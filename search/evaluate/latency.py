"""What each kind of UNet call costs on a device, and the latency of a whole strategy that follows from it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import dato
from dato.call_plan import CallPlan, plan_calls
from dato.strategy import FULL, Step, Strategy
from search.data.datasets import Data
from search.evaluate.generate import generate
from search.evaluate.pipelines import ModelSpec
from search.measurements import is_count, is_number

SCHEMA = "dato.costs/1"
_OLDER = {"made": "precompute", "used": "reuse"}
"""How earlier tables name the shares."""


class CostError(ValueError):
    """A cost table that cannot price a strategy: the message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds per image on one device.

    Attributes:
        device: Where they were measured.
        batch: Images per call of the pipeline.
        calls: UNet calls of a whole run.
        order: The scheduler's order.
        fixed_ms: All that is not the UNet: text encoder, VAE, sampler.
        work_ms: By kind of UNet call.
    """

    device: str
    batch: int
    calls: int
    order: int
    fixed_ms: float
    work_ms: dict[CallPlan, float]

    def predict(self, strategy: Strategy) -> float:
        """Milliseconds per image of a strategy. Raises `CostError` for an action that was not measured."""
        total = self.fixed_ms
        for work in plan_calls(strategy, self.calls, self.order):
            if work not in self.work_ms:
                raise CostError(
                    f"the cost table of {self.device} has no price for {work.step} (share {work.share}); "
                    "measure it again with this strategy's depths and ratios in the search space"
                )
            total += self.work_ms[work]
        return total

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [[w.step.cache_depth, w.step.prune_ratio, w.share, ms] for w, ms in self.work_ms.items()]
        return {
            "schema": SCHEMA, "device": self.device, "batch": self.batch, "calls": self.calls, "order": self.order, "fixed_ms": self.fixed_ms, "work_ms": rows,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CostTable:
        """The inverse of `to_dict`."""
        if data.get("schema") != SCHEMA:
            raise CostError(f"a cost table of schema {data.get('schema')!r}; this version reads {SCHEMA!r}: measure it again")
        counts = {k: is_count(data[k], 1) for k in ("batch", "calls", "order")}
        wrong = [k for k, right in (counts | {"fixed_ms": is_number(data["fixed_ms"]), "device": isinstance(data["device"], str)}).items() if not right]
        priced = {CallPlan(Step(d, r), _OLDER.get(share, share)): ms for d, r, share, ms in data["work_ms"]}
        wrong += [f"the price of {w.step}" for w, ms in priced.items() if not is_number(ms) or ms < 0 or w.share not in ("none", "precompute", "reuse")]
        if wrong:
            raise CostError(f"a cost table in which {wrong[0]} is no number that a measurement gives; measure it again")
        return cls(**{k: v for k, v in data.items() if k not in ("schema", "work_ms")}, work_ms=priced)


_PATTERN = 7
"""Steps that hold every kind of call at one ratio and depth: a run of fewer is calibrated with so many, as a call costs the same in any run."""


def calibration(steps: int, depths: Sequence[int], ratios: Sequence[float]) -> list[Strategy]:
    """Strategies that hold every kind of call of a search space, at every ratio, several times; the last is the unaccelerated one."""
    found = []
    shallow, long = [d for d in depths if 0 < d < FULL], max(steps, _PATTERN)
    for ratio in ratios:
        for depth in shallow:
            # A full call, one that makes the share, two that use it; then a full call and one on its own.
            pattern = [Step(FULL, ratio), *[Step(depth, ratio)] * 3, Step(0), Step(FULL, ratio), Step(depth, ratio)]
            found.append(Strategy(tuple((pattern * long)[:long])))
        if not shallow:
            found.append(Strategy(tuple(Step(FULL, ratio) if i % 2 == 0 or 0 not in depths else Step(0) for i in range(long))))
    found.append(Strategy.full(steps))
    return found


class Timings:
    """Collects the times of runs, each UNet call under its kind."""

    def __init__(self, pipe: Any, model: ModelSpec, data: Data, indices: Sequence[int]) -> None:
        self.pipe, self.model, self.data, self.indices = pipe, model, data, list(indices)
        self.works: dict[CallPlan, list[float]] = defaultdict(list)
        self.fixed: list[float] = []
        self.calls, self.order = 0, 1

    def run(self, strategy: Strategy) -> float:
        """Milliseconds per image of one run of a strategy."""
        calls: list[float] = []
        begun = 0.0

        def before(*_: Any) -> None:
            nonlocal begun
            self._synchronize()
            begun = time.perf_counter()

        def after(*_: Any) -> None:
            self._synchronize()
            calls.append(1000 * (time.perf_counter() - begun) / len(self.indices))

        handles = [self.pipe.unet.register_forward_pre_hook(before), self.pipe.unet.register_forward_hook(after)]
        try:
            with dato.accelerate(self.pipe, strategy):
                made = generate(self.pipe, self.model, self.data, self.indices, steps=len(strategy))
        finally:
            for handle in handles:
                handle.remove()
        whole = 1000 * made.seconds / len(self.indices)
        self.order = getattr(self.pipe.scheduler, "order", 1)
        if len(strategy) == self.model.steps:
            self.calls = len(calls)
        self.fixed.append(whole - sum(calls))
        for work, ms in zip(plan_calls(strategy, len(calls), self.order), calls, strict=True):
            self.works[work].append(ms)
        return whole

    def table(self, device: str) -> CostTable:
        """Means of what was collected, without the tenth that is furthest out on either side.

        Not medians: a run is a sum of calls, and disturbances make calls slower, never faster. Medians sum up to less than a run.
        """
        priced = {work: _mean(times) for work, times in self.works.items()}
        return CostTable(
            device=device, batch=len(self.indices), calls=self.calls, order=self.order, fixed_ms=_mean(self.fixed), work_ms=priced
        )

    def _synchronize(self) -> None:
        if self.pipe.device.type == "cuda":
            torch.cuda.synchronize(self.pipe.device)


def _mean(times: Sequence[float]) -> float:
    out = len(times) // 10
    return statistics.fmean(sorted(times)[out : len(times) - out])


def measure_costs(
    pipe: Any,
    model: ModelSpec,
    data: Data,
    indices: Sequence[int],
    strategies: Sequence[Strategy],
    device: str,
    rounds: int = 3,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> CostTable:
    """A device's cost table from runs of calibration strategies, in turn, so that a drifting machine slows all of them alike.

    Args:
        pipe: Loaded.
        model: What it is.
        data: Prompts.
        indices: Images of one call.
        strategies: As `calibration` gives them.
        device: Its name.
        rounds: Runs of each.
        tick: Told how many runs are done, and of how many.
    """
    timings = Timings(pipe, model, data, indices)
    timings.run(strategies[-1])
    timings.works.clear()
    timings.fixed.clear()
    for turn in range(rounds):
        for i, strategy in enumerate(strategies):
            timings.run(strategy)
            tick(turn * len(strategies) + i + 1, rounds * len(strategies))
    return timings.table(device)
