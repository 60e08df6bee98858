"""The search space: a genome of two integers per group of steps, and the strategy it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np

from dato.files import shown
from dato.strategy import FULL, Step, Strategy, StrategyError
from search.fields import check, limited
from search.measurements import is_count

_step = cache(Step)
"""The few steps of a space, each checked once: a search decodes thousands of genomes."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a step may be."""

    depths: tuple[int, ...] = (0, 1, FULL)
    """Allowed cache depths, ascending: 0 replays the last prediction, 12 computes everything."""
    ratios: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Allowed prune ratios, ascending."""
    depths_without_pruning: tuple[int, ...] = (0,)
    """Cache depths at which a ratio has no effect, [0, 1] for SDXL: genomes that differ only there are one strategy."""
    steps_per_gene: int = limited(1, least=1, most=1000)
    """Consecutive steps that share their genes; the last group may be shorter."""

    def __post_init__(self) -> None:
        check(self, "space", StrategyError)


@dataclass(frozen=True, kw_only=True)
class SpaceSettings(Choices):
    """The keys of `space`."""

    fixed_depths: str | None = None
    """A strategy (preset, file) whose depths every candidate has: searches ratios only."""
    fixed_ratios: float | str | None = None
    """A ratio, or a strategy whose ratios every candidate has: searches depths only."""
    frozen: tuple[Any, ...] = ()
    """Steps that are not searched, as [step, depth, ratio], such as [[0, 12, 0.0]]."""

    def build(self, steps: int) -> SearchSpace:
        """The space of so many sampler steps. Raises ValueError, or what reading a strategy raises."""
        ratios = self.fixed_ratios
        try:
            frozen = [(i, Step(depth, ratio)) for i, depth, ratio in self.frozen]
            if not all(is_count(i) for i, _ in frozen) or len(dict(frozen)) < len(frozen):
                raise ValueError("a step is no integer, or is named twice")
        except (TypeError, ValueError) as error:
            raise StrategyError(f"space.frozen is {shown(list(self.frozen))} ({error}); write [step, depth, ratio] for each step, such as [[0, 12, 0.0]]") from None
        return SearchSpace(
            steps=steps,
            fixed_depths=None if self.fixed_depths is None else tuple(s.cache_depth for s in _fitted(self.fixed_depths, steps)),
            fixed_ratios=None if ratios is None else tuple(s.prune_ratio for s in _fitted(ratios, steps)) if isinstance(ratios, str) else (ratios,) * steps,
            frozen=dict(frozen),
            **{f.name: getattr(self, f.name) for f in fields(Choices)},
        )


def _fitted(source: str, steps: int) -> Strategy:
    strategy = Strategy.load(source)
    return strategy if len(strategy) == steps else strategy.resample(steps)


@dataclass(frozen=True, kw_only=True)
class SearchSpace(Choices):
    """Which cache depths and prune ratios a step may take.

    A genome is an int array of 2 * groups: each group's index into `depths`, then each group's index into `ratios`.
    """

    steps: int
    """Sampler steps, one strategy entry each."""
    fixed_depths: tuple[int, ...] | None = None
    """Cache depth of every step, where only ratios are searched."""
    fixed_ratios: tuple[float, ...] | None = None
    """Prune ratio of every step, where only depths are searched."""
    frozen: dict[int, Step] = field(default_factory=dict)
    """Steps that are not searched, with what they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if self.steps_per_gene > self.steps:
            raise StrategyError(f"search space: steps_per_gene is {self.steps_per_gene!r}; give 1 to {self.steps} steps that share their genes")
        for name in ("fixed_depths", "fixed_ratios"):
            given = getattr(self, name)
            if given is not None and len(given) != self.steps:
                raise StrategyError(f"search space: {name} has {len(given)} values for {self.steps} steps; give one for each step")
        for i in range(self.steps):
            Step(self.fixed_depths[i] if self.fixed_depths else FULL, self.fixed_ratios[i] if self.fixed_ratios else 0.0)
        outside = [i for i in self.frozen if not isinstance(i, int) or not 0 <= i < self.steps]
        if outside:
            raise StrategyError(f"search space: frozen names step {outside[0]!r}; steps are 0 to {self.steps - 1}")

    @property
    def groups(self) -> int:
        """Genes of each kind."""
        return -(-self.steps // self.steps_per_gene)

    @property
    def upper(self) -> np.ndarray:
        """Largest allowed value of each gene; the smallest is 0. A kind of gene that is fixed has only the value 0."""
        depths = 0 if self.fixed_depths else len(self.depths) - 1
        ratios = 0 if self.fixed_ratios else len(self.ratios) - 1
        return np.repeat([depths, ratios], self.groups)

    def decode(self, genome: np.ndarray) -> Strategy:
        """The strategy of a genome, in canonical form."""
        depth, ratio = np.asarray(genome, dtype=int).reshape(2, self.groups)
        steps = []
        for i in range(self.steps):
            g = i // self.steps_per_gene
            free = _step(
                self.fixed_depths[i] if self.fixed_depths else self.depths[depth[g]],
                self.fixed_ratios[i] if self.fixed_ratios else self.ratios[ratio[g]],
            )
            steps.append(self.frozen.get(i, free))
        return Strategy(tuple(steps)).canonical(self.depths_without_pruning)

    def encode(self, strategy: Strategy) -> np.ndarray:
        """A genome of the strategy; a ratio where none has an effect becomes the first allowed one. Raises `StrategyError`."""
        if len(strategy) != self.steps:
            raise StrategyError(f"the strategy has {len(strategy)} steps and the search space {self.steps}; use strategy.resample({self.steps})")
        genome = self.nearest(strategy)
        # A first call is full whatever its entry, and an inert ratio is none: compare what the two do.
        for i, (given, own) in enumerate(zip(strategy.canonical(self.depths_without_pruning), self.decode(genome), strict=True)):
            if given != own:
                raise StrategyError(
                    f"step {i} is {strategy[i]}, outside the search space: depths {list(self.depths)}, ratios {list(self.ratios)}"
                    + (f", {self.steps_per_gene} steps a group" if self.steps_per_gene > 1 else "")
                    + (f", frozen to {self.frozen[i]}" if i in self.frozen else "")
                )
        return genome

    def nearest(self, strategy: Strategy) -> np.ndarray:
        """The genome closest to a strategy of any length: each group takes what the strategy does at its first step.

        Between two allowed depths the deeper one is taken, which is never worse; between two ratios, the closer. Raises `StrategyError`
        for one that is for a sampler of its own.
        """
        if strategy.sampler is not None:
            raise StrategyError(
                f"the strategy is for the sampler {strategy.sampler}, and what this search tries runs with the pipeline's own: leave it out, or give its steps "
                "alone, dato.Strategy(strategy.steps)"
            )
        fitted = strategy if len(strategy) == self.steps else strategy.resample(self.steps)
        depth, ratio = [], []
        for g in range(self.groups):
            free = [i for i in range(g * self.steps_per_gene, min((g + 1) * self.steps_per_gene, self.steps)) if i not in self.frozen]
            step = fitted[free[0] if free else g * self.steps_per_gene]
            deeper = [k for k, d in enumerate(self.depths) if d >= step.cache_depth]
            depth.append(0 if self.fixed_depths else deeper[0])
            inert = step.cache_depth in self.depths_without_pruning or self.fixed_ratios is not None
            ratio.append(0 if inert else int(np.argmin([abs(r - step.prune_ratio) for r in self.ratios])))
        return np.array(depth + ratio)
