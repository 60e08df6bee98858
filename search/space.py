"""The search space: a genome of two integers per step, and the strategy it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dato.strategy import FULL, Step, Strategy, StrategyError


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Which cache depths and prune ratios a step may take.

    A genome is an int array of 2 * steps: each step's index into `depths`, then each step's index into `ratios`.
    """

    steps: int
    """Sampler steps, one strategy entry each."""
    depths: Sequence[int] = (0, 1, FULL)
    """Allowed cache depths, ascending."""
    ratios: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Allowed prune ratios, ascending."""
    inert: Sequence[int] = (0,)
    """Cache depths at which a ratio has no effect: genomes that differ only there are one strategy."""

    def __post_init__(self) -> None:
        for name in ("depths", "ratios", "inert"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("depths", "ratios"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise StrategyError(f"search space: {name} is {list(values)}; give at least one value, ascending, each once")
        for depth in self.depths:
            for ratio in self.ratios:
                Step(depth, ratio)
        Strategy.full(self.steps)
        if FULL not in self.depths:
            raise StrategyError(f"search space: depths is {list(self.depths)}; it must hold {FULL}, the full call, which the first call needs")

    @property
    def upper(self) -> np.ndarray:
        """Largest allowed value of each gene; the smallest is 0."""
        return np.repeat([len(self.depths) - 1, len(self.ratios) - 1], self.steps)

    def decode(self, genome: np.ndarray) -> Strategy:
        """The strategy of a genome, in canonical form."""
        depth, ratio = np.asarray(genome, dtype=int).reshape(2, self.steps)
        steps = tuple(Step(self.depths[d], self.ratios[r]) for d, r in zip(depth, ratio, strict=True))
        return Strategy(steps).canonical(self.inert)

    def encode(self, strategy: Strategy) -> np.ndarray:
        """A genome of the strategy; a ratio where none has an effect becomes the first allowed one."""
        if len(strategy) != self.steps:
            raise StrategyError(f"the strategy has {len(strategy)} steps and the search space {self.steps}; use strategy.resample({self.steps})")
        depth, ratio = [], []
        for i, step in enumerate(strategy):
            if step.cache_depth not in self.depths or (step.cache_depth not in self.inert and step.prune_ratio not in self.ratios):
                raise StrategyError(f"step {i} is {step}, outside the search space: depths {list(self.depths)}, ratios {list(self.ratios)}")
            depth.append(self.depths.index(step.cache_depth))
            ratio.append(self.ratios.index(step.prune_ratio) if step.cache_depth not in self.inert else 0)
        return np.array(depth + ratio)
