"""How long a search or an evaluation will take, and on what: told before anything expensive begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from analysis.progress import duration
from dato.sampler import Sampler
from dato.strategy import Strategy
from launch.config import SearchConfig
from launch.samples import FRONT_IMAGES, WINNER_IMAGES
from search.evaluate.latency import calibration
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, SearchRecord
from search.run.jobs import Job, Task
from search.run.own_reference import OwnReference
from search.run.pools import Pool

ASSUMED_SPEEDUP = 3.0
"""Of the candidates of a search on average; 3.4 in the search of the embedded model that is in analysis/results."""
WINNERS = 3
CALIBRATION_ROUNDS = 3
"""As `search.evaluate.evaluator.PipelineEvaluator.costs` runs each strategy."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Images still to draw.

    Attributes:
        plain: By the unaccelerated pipeline, by purpose.
        fast: By accelerated ones, by purpose.
        alone: By one worker while the others wait, by purpose; accelerated too.
        speedup: What these are assumed to be on average.
        note: What else bounds the time.
    """

    plain: Mapping[str, int]
    fast: Mapping[str, int]
    alone: Mapping[str, int] = field(default_factory=dict)
    speedup: float = ASSUMED_SPEEDUP
    note: str = ""

    @property
    def images(self) -> int:
        """All of them."""
        return sum(self.plain.values()) + sum(self.fast.values()) + sum(self.alone.values())

    def seconds(self, seconds_per_image: float, workers: int) -> float:
        """How long so many workers take, where none waits for another."""
        shared = sum(self.plain.values()) + sum(self.fast.values()) / self.speedup
        return seconds_per_image * (shared / max(1, workers) + sum(self.alone.values()) / self.speedup)

    def in_words(self) -> str:
        """How many images, and what for."""
        parts = [f"{n:,} {what}" for what, n in (*self.plain.items(), *self.fast.items(), *self.alone.items()) if n]
        return f"{self.images:,} images to draw ({', '.join(parts)})"

    def timed(self, seconds_per_image: float, workers: int, device: str, source: str) -> str:
        """How long that takes, and what it rests on."""
        on = f"{workers} worker{'s' if workers != 1 else ''}" + (f" ({device})" if device else "")
        each = f"{seconds_per_image:.2g} s" if seconds_per_image < 10 else f"{seconds_per_image:.0f} s"
        return (
            f"about {duration(self.seconds(seconds_per_image, workers))} on {on}: {self.in_words()}; {each} per unaccelerated image ({source}), "
            f"accelerated ones assumed to be {self.speedup:g} times faster on average{self.note}"
        )


def search_workload(config: SearchConfig, record: SearchRecord | None = None, reference: int | None = None, calibration: int = 0) -> Workload:
    """What a search has left to draw.

    Args:
        config: Its configuration.
        record: How it stands; None for one that has not begun.
        reference: Images of its own reference that are missing; None for all of them.
        calibration: Strategies that a cost table is measured with, where there is to be one.
    """
    plan, protocol = config.plan, config.evaluator.protocol
    counts, total = protocol.counts, plan.population * plan.generations
    left = min(total, plan.max_candidates or total) - (len(record.results) if record else 0)
    baselines = UNACCELERATED not in (record.baselines if record else {})
    own = config.evaluator.data.own_reference if reference is None else reference
    winners = WINNERS + len(plan.winner_speedups)
    limits = [f"search.{k}={v:g}" for k in ("max_minutes", "max_device_hours") if (v := getattr(plan, k))]
    return Workload(
        plain={"of the reference": own, "of the unaccelerated pipeline": (2 if baselines else 1) * protocol.images + WINNER_IMAGES},
        fast={
            "of a DeepCache-like rival": protocol.images if baselines else 0,
            "of candidates": max(0, left) * counts[0],
            # As many as a population are taken to be promising: what the front will be, nobody knows.
            "of promoted candidates": plan.population * (counts[-1] - counts[0]),
            "of winners": winners * (protocol.images + WINNER_IMAGES),
            "of the front to look at": plan.population * FRONT_IMAGES,
        },
        alone={"for the cost table": CALIBRATION_ROUNDS * calibration * protocol.batch if plan.latency == "predicted" and not (record and record.costs) else 0},
        speedup=max(ASSUMED_SPEEDUP, plan.objectives.min_speedup or 0),
        note="; winners whose intervals do not decide are drawn more images" + (f"; it ends earlier at {' or '.join(limits)}" if limits else ""),
    )


def baselines_of(config: SearchConfig) -> dict[str, Strategy]:
    """The named strategies that a search is compared with."""
    steps, interval = config.evaluator.model.steps, config.keys.search.deepcache_interval
    return {UNACCELERATED: Strategy.full(steps), f"DeepCache-like, every {interval}": Strategy.uniform(steps, interval)}


def calibration_of(config: SearchConfig) -> list[Strategy]:
    """What a cost table is measured with: every kind of call of the space and of the baselines."""
    space, baselines = config.space, list(baselines_of(config).values())
    entries = [*space.frozen.values(), *(step for s in baselines for step in s)]
    return calibration(
        steps=[*space.lengths, *map(len, baselines)],
        depths=sorted({*space.depths, *(space.fixed_depths or ()), *(e.cache_depth for e in entries)}),
        ratios=sorted({*space.ratios, *(space.fixed_ratios or ()), *(e.prune_ratio for e in entries)}),
        guidance=list(dict.fromkeys([*space.guidance, *(e.guidance for e in entries)])),
        samplers=list(dict.fromkeys([*map(Sampler.of, space.samplers), *(s.sampler for s in baselines)])),
    )


def say_how_long(
    config: SearchConfig, pool: Pool, say: Callable[[str], None], record: SearchRecord, own: OwnReference | None
) -> torch.Tensor | None:
    """Say how long the search will take, from a first timed batch of the unaccelerated pipeline; the features of its own reference, once drawn.

    Raises:
        SearchFailed: The unaccelerated pipeline fails.
    """
    plain, workers = Strategy.full(config.evaluator.model.steps), getattr(pool, "size", 1)
    device = " and ".join(sorted(set(getattr(pool, "devices", []))))
    features = own.fetch(pool) if own else None

    def told(seconds: float, source: str = "its first batch") -> None:
        say("how long  " + search_workload(config, record, None if own and features is None else 0, len(calibration_of(config))).timed(seconds, workers, device, source))

    if own:
        say(f"the reference is {own.data.reference_in_words()}" + ("; they are drawn once, and kept with the search" if features is None else "; they are there already"))
    if UNACCELERATED in record.baselines:
        told(record.plain(record.images or config.evaluator.protocol.images).latency_ms / 1000, "as measured before")
    elif own is None or features is not None:
        told(first_batch_s(pool, plain, config.evaluator.protocol.batches()[0]))
    return own.draw(pool, plain, told) if own and features is None else features


def first_batch_s(pool: Pool, plain: Any, indices: Sequence[int]) -> float:
    """Seconds per image, features included, of one batch of the unaccelerated pipeline on a worker. Raises `SearchFailed` where it fails."""
    ((job, shard),) = pool.map([Job("first batch", [plain], [list(indices)], Task.REFERENCE)])
    if shard is None:
        raise SearchFailed(f"the unaccelerated pipeline itself fails, so that there is nothing to search: {job.reason}")
    return float(shard.seconds / len(indices))
