"""What each kind of call of a UNet or transformer costs on a device, and the latency of a whole strategy that follows from it."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import dato
from dato.call_plan import CallPlan, plan_calls
from dato.denoiser import denoiser_of
from dato.sampler import Sampler
from dato.strategy import FULL, Step, Strategy, StrategyError
from search.data.datasets import Data
from search.evaluate.generate import generate
from search.evaluate.pipelines import ModelSpec
from search.measurements import is_count, is_number

SCHEMA = "dato.costs/2"
"""Adds guidance and samplers to schema 1, which is for runs of one number of calls of the pipeline's own sampler."""
_FIRST = "dato.costs/1"
_OLDER = {"made": "precompute", "used": "reuse"}
"""How earlier tables name the shares."""


class CostError(ValueError):
    """A cost table that cannot price a strategy: the message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True)
class SamplerCost:
    """What a sampler makes of a run.

    Attributes:
        order: The scheduler's: one of second order makes two calls a step, but one at the last.
        extra: Calls beyond these in a run of several steps: 1 for PNDM, which repeats its second.
        call_ms: Milliseconds per image between two calls of the UNet or transformer: guidance, and the sampler's own step.
    """

    order: int = 1
    extra: int = 0
    call_ms: float = 0.0

    def calls(self, steps: int) -> int:
        """Of a run of so many steps."""
        return (2 * steps - 1 if self.order == 2 else steps) + (self.extra if steps > 1 else 0)


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds per image on one device.

    Attributes:
        device: Where they were measured.
        batch: Images per call of the pipeline.
        fixed_ms: Of a run, whatever its length and sampler: text encoder, VAE.
        samplers: By sampler, None for the pipeline's own.
        work_ms: By kind of call, without order: what is extrapolated costs what it costs as it was.
        calls: Calls of the only runs that it prices; None for any.
    """

    device: str
    batch: int
    fixed_ms: float
    samplers: dict[Sampler | None, SamplerCost]
    work_ms: dict[CallPlan, float]
    calls: int | None = None

    def predict(self, strategy: Strategy) -> float:
        """Milliseconds per image of a strategy. Raises `CostError` for what was not measured."""
        sampler = self.samplers.get(strategy.sampler)
        again = "measure it again with what this strategy has in the search space"
        if sampler is None:
            known = ", ".join(map(_sampler_name, self.samplers))
            raise CostError(f"the cost table of {self.device} has no price for {_sampler_name(strategy.sampler)}, only for {known}; {again}")
        calls = self.calls or sampler.calls(len(strategy))
        try:
            kinds = [kind_of(plan) for plan in plan_calls(strategy, calls, sampler.order)]
        except StrategyError as error:
            raise CostError(f"the cost table of {self.device} has no price for {len(strategy)} steps, only for runs of {calls} calls ({error}); {again}") from None
        for kind in kinds:
            if kind not in self.work_ms:
                raise CostError(f"the cost table of {self.device} has no price for {kind.step} (share {kind.share}); {again}")
        return self.fixed_ms + sampler.call_ms * calls + sum(self.work_ms[kind] for kind in kinds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        samplers = [[s.document() if s else None, c.order, c.extra, c.call_ms] for s, c in self.samplers.items()]
        rows = [[k.step.cache_depth, k.step.prune_ratio, k.step.guidance, k.share, ms] for k, ms in self.work_ms.items()]
        limit = {} if self.calls is None else {"calls": self.calls}
        return {"schema": SCHEMA, "device": self.device, "batch": self.batch, "fixed_ms": self.fixed_ms, "samplers": samplers, "work_ms": rows} | limit

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostTable:
        """The inverse of `to_dict`; reads schema 1 too. Raises `CostError`, or what else a wrong value gives."""
        if data.get("schema") not in (SCHEMA, _FIRST):
            raise CostError(f"a cost table of schema {data.get('schema')!r}; this version reads {_FIRST!r} and {SCHEMA!r}: measure it again")
        if data["schema"] == _FIRST:
            samplers: dict[Sampler | None, SamplerCost] = {None: SamplerCost(order=data["order"])}
            priced = {CallPlan(Step(d, r), _OLDER.get(share, share)): ms for d, r, share, ms in data["work_ms"]}
        else:
            samplers = {Sampler.of(s): SamplerCost(order=order, extra=extra, call_ms=ms) for s, order, extra, ms in data["samplers"]}
            priced = {CallPlan(Step(d, r, guidance), share): ms for d, r, guidance, share, ms in data["work_ms"]}
        calls = data["calls"] if data["schema"] == _FIRST else data.get("calls")
        right = {"batch": is_count(data["batch"], 1), "calls": calls is None or is_count(calls, 1), "fixed_ms": is_number(data["fixed_ms"]), "device": isinstance(data["device"], str)}
        wrong = [k for k, good in right.items() if not good]
        wrong += [f"the price of {_sampler_name(s)}" for s, c in samplers.items() if not (is_count(c.order, 1) and is_count(c.extra) and is_number(c.call_ms))]
        wrong += [f"the price of {k.step}" for k, ms in priced.items() if not is_number(ms) or ms < 0 or k.share not in ("none", "precompute", "reuse")]
        if wrong:
            raise CostError(f"a cost table in which {wrong[0]} is no number that a measurement gives; measure it again")
        return cls(device=data["device"], batch=data["batch"], fixed_ms=data["fixed_ms"], samplers=samplers, work_ms=priced, calls=calls)


def kind_of(plan: CallPlan) -> CallPlan:
    """What a call is priced as: as if nothing were extrapolated, which adds next to nothing.

    Measured on the embedded model: 0.02 ms of second order to a replayed call of 0.36 ms and 0.1 to one of depth 1 of 2.9 ms; a full call takes 19.
    """
    return replace(plan, step=replace(plan.step, order=0)) if plan.step.order else plan


def _sampler_name(sampler: Sampler | None) -> str:
    return f"the sampler {sampler}" if sampler else "the pipeline's own sampler"


_LEAST = 7
"""Steps of a calibration run: they hold every kind of call of one guidance, ratio and depth."""


def calibration(
    *, steps: Sequence[int], depths: Sequence[int], ratios: Sequence[float], guidance: Sequence[str] = ("both",), samplers: Sequence[Sampler | str | None] = (None,)
) -> list[Strategy]:
    """Strategies that hold every kind of call of a search space several times, and runs of every sampler; the last is the unaccelerated one.

    A call costs the same in any run of any sampler. So the runs, one for each guidance, ratio and depth, take the samplers in turn, and
    are so long that those of one ratio and depth make as many steps together as the longest run of the space.

    Args:
        steps: Numbers of sampler steps.
        depths: Cache depths.
        ratios: Prune ratios; 0 is one in any case, as a call is full where nothing is kept that it could replay.
        guidance: "both", "cond".
        samplers: None for the pipeline's own.
    """
    shallow = [d for d in depths if d not in (0, FULL)]
    # A full call, one that makes the share, two that use it; then a full call and one on its own. Without shallow ones, full and replayed.
    patterns = [[FULL, d, d, d, 0, FULL, d] for d in shallow] or [[FULL, 0] if 0 in depths else [FULL]]
    found: list[Strategy] = []
    for ratio in sorted({0.0, *ratios}):
        for pattern in patterns:
            times = math.ceil(max(*steps, _LEAST * len(guidance)) / len(guidance) / len(pattern))
            for half in guidance:
                entries = [Step(d, ratio if d else 0.0, half) for d in pattern]
                found.append(Strategy(tuple(entries * times), sampler=Sampler.of(samplers[len(found) % len(samplers)])))
    found += [replace(found[0], sampler=Sampler.of(s)) for s in samplers[len(found) :]]
    return [*found, Strategy.full(max(*steps, _LEAST))]


class Timings:
    """Collects the times of runs, each call of the UNet or transformer under its kind."""

    def __init__(self, pipe: Any, model: ModelSpec, data: Data, indices: Sequence[int]) -> None:
        self.pipe, self.model, self.data, self.indices = pipe, model, data, list(indices)
        self.clear()

    def clear(self) -> None:
        """Forget what was collected, as of runs that warm up."""
        self.works: dict[CallPlan, list[float]] = defaultdict(list)
        self.gaps: dict[Sampler | None, list[float]] = defaultdict(list)
        """Milliseconds per image between two calls."""
        self.outside: list[tuple[Sampler | None, int, float]] = []
        """Of each run: its sampler, its calls, and milliseconds per image outside of them."""
        self.made: dict[Sampler | None, tuple[int, int]] = {}
        """Order and extra calls of each sampler."""

    def run(self, strategy: Strategy) -> float:
        """Milliseconds per image of one run of a strategy."""
        times: list[float] = []

        def note(*_: Any) -> None:
            self._synchronize()
            times.append(1000 * time.perf_counter() / len(self.indices))

        model = denoiser_of(self.pipe)
        handles = [model.register_forward_pre_hook(note), model.register_forward_hook(note)]
        try:
            with dato.accelerate(self.pipe, strategy):
                made = generate(self.pipe, self.model, self.data, self.indices, steps=len(strategy))
                order = getattr(self.pipe.scheduler, "order", 1)
        finally:
            for handle in handles:
                handle.remove()
        if len(times) == 4 * len(strategy):  # a pipeline that makes a call for each half of guidance: of a step, from the first's begin to the second's end
            times = [at for first in range(0, len(times), 4) for at in (times[first], times[first + 3])]
        whole = 1000 * made.seconds / len(self.indices)
        calls = [end - begin for begin, end in zip(times[::2], times[1::2], strict=True)]
        if len(strategy) > 1:
            self.made[strategy.sampler] = (order, len(calls) - SamplerCost(order=order).calls(len(strategy)))
        self.gaps[strategy.sampler] += [begin - end for end, begin in zip(times[1:-1:2], times[2::2], strict=True)]
        self.outside.append((strategy.sampler, len(calls), whole - sum(calls)))
        for plan, ms in zip(plan_calls(strategy, len(calls), order), calls, strict=True):
            self.works[kind_of(plan)].append(ms)
        return whole

    def table(self, device: str) -> CostTable:
        """Means of what was collected, without the tenth that is furthest out on either side.

        Not medians: a run is a sum of calls, and disturbances make calls slower, never faster. Medians sum up to less than a run.
        """
        gaps = {sampler: _mean(ms) for sampler, ms in self.gaps.items()}
        samplers = {s: SamplerCost(order=order, extra=extra, call_ms=gaps[s]) for s, (order, extra) in self.made.items()}
        fixed = _mean([ms - calls * gaps[sampler] for sampler, calls, ms in self.outside])
        works = {work: _mean(times) for work, times in self.works.items()}
        return CostTable(device=device, batch=len(self.indices), fixed_ms=fixed, samplers=samplers, work_ms=works)

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
    timings.clear()
    for turn in range(rounds):
        for i, strategy in enumerate(strategies):
            timings.run(strategy)
            tick(turn * len(strategies) + i + 1, rounds * len(strategies))
    return timings.table(device)
