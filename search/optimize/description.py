"""What a strategy is like, in numbers: what it does at each step as arrays, and the whole run in a few numbers that people read."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from dato.call_plan import plan_calls
from dato.sampler import SAMPLERS
from dato.strategy import FULL, Strategy

SAMPLER_PLACES = len(SAMPLERS) + 2
"""How many kinds of samplers `sampler_place` tells apart."""


def sampler_place(strategy: Strategy) -> int:
    """The strategy's sampler as a number below `SAMPLER_PLACES`: those that have a name, any other, and the pipeline's own."""
    known = list(SAMPLERS.values())
    return SAMPLER_PLACES - 1 if strategy.sampler is None else known.index(strategy.sampler) if strategy.sampler in known else len(known)


@dataclass(frozen=True)
class StepArrays:
    """The entries of a strategy as they are written, an array of (steps,) for each gene.

    Attributes:
        depth: Cache depths.
        ratio: Prune ratios.
        alone: Whether the conditional half of guidance is computed alone.
        order: Of what is reused.
    """

    depth: np.ndarray
    ratio: np.ndarray
    alone: np.ndarray
    order: np.ndarray

    @property
    def full(self) -> np.ndarray:
        """Whether everything is computed."""
        return self.depth == FULL

    @property
    def replay(self) -> np.ndarray:
        """Whether nothing is."""
        return self.depth == 0


def step_arrays(strategy: Strategy, grid: int | None = None) -> StepArrays:
    """The arrays of a strategy, stretched to `grid` steps where it is given and has another number."""
    steps = strategy if grid is None or len(strategy) == grid else strategy.resample(grid)
    return StepArrays(
        np.array([s.cache_depth for s in steps]),
        np.array([s.prune_ratio for s in steps]),
        np.array([s.guidance == "cond" for s in steps]),
        np.array([s.order for s in steps]),
    )


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole run, as it happens: what has nothing to start from yet is computed in full.

    Attributes:
        sampler: Its name, "own" for the pipeline's.
        steps: How many.
        guided_share: Share of the steps that compute both halves of guidance.
        cached_share: Share of the steps that reuse, all or in part, what was computed before.
        mean_depth: Mean cache depth of these; None where there are none.
        mean_order: Mean order of what is reused; None where nothing is.
        mean_ratio: Mean prune ratio of the steps that compute anything.
    """

    sampler: str
    steps: int
    guided_share: float
    cached_share: float
    mean_depth: float | None
    mean_order: float | None
    mean_ratio: float


def describe(strategy: Strategy) -> Description:
    """What a strategy is like as a whole."""
    steps = [call.step for call in plan_calls(strategy, len(strategy))]
    reusing = [s for s in steps if s.cache_depth != FULL]
    return Description(
        sampler=str(strategy.sampler or "own"),
        steps=len(steps),
        guided_share=sum(s.guidance == "both" for s in steps) / len(steps),
        cached_share=len(reusing) / len(steps),
        mean_depth=statistics.mean(s.cache_depth for s in reusing) if reusing else None,
        mean_order=statistics.mean(s.order for s in reusing) if reusing else None,
        mean_ratio=statistics.mean(s.prune_ratio for s in steps if s.cache_depth),
    )
