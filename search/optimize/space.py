"""The search space: a genome of integers, a few for each part of the run and two for the whole of it, and the strategy it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any

import numpy as np

from dato.files import shown
from dato.sampler import Sampler
from dato.step import GUIDANCE, extent
from dato.strategy import FULL, MAX_STEPS, Step, Strategy, StrategyError
from search.fields import check, limited
from search.measurements import is_count, is_number

_step = cache(Step)
"""The few steps of a space, each checked once: a search decodes thousands of genomes."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a run and its steps may be."""

    depths: tuple[int, ...] = (0, 1, FULL)
    """Allowed cache depths, ascending: 0 replays the last prediction, 12 (last, also of deeper models) computes everything."""
    ratios: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Allowed prune ratios, ascending; 0 prunes nothing."""
    guidance: tuple[str, ...] = ("both",)
    """What may be computed of a guided call: both halves, cond (the conditional half alone)."""
    orders: tuple[int, ...] = (0,)
    """Orders, ascending, by which what is reused may be extrapolated over the timestep: 0 reuses it as it was."""
    samplers: tuple[str | None, ...] = (None,)
    """Samplers, such as DPM++, or a scheduler class of diffusers; null is the pipeline's own."""
    depths_without_pruning: tuple[int, ...] = (0,)
    """Cache depths at which a ratio has no effect, [0, 1] for SDXL: genomes that differ only there are one strategy."""
    steps_per_gene: int = limited(1, least=1, most=1000)
    """Consecutive steps that share their genes; the last group may be shorter."""

    def __post_init__(self) -> None:
        check(self, "space", StrategyError)


@dataclass(frozen=True, kw_only=True)
class SpaceSettings(Choices):
    """The keys of `space`."""

    steps: tuple[int | float, ...] = ()
    """Numbers of sampler steps a run may have, or shares of model.steps, such as 0.2; none is model.steps alone."""
    fixed_depths: str | None = None
    """A strategy (preset, file) whose depths every candidate has: searches ratios only."""
    fixed_ratios: float | str | None = None
    """A ratio, or a strategy whose ratios every candidate has: searches depths only."""
    frozen: tuple[Any, ...] = ()
    """Steps that are not searched, as [step, depth, ratio], such as [[0, 12, 0.0]]."""

    def build(self, steps: int, guided: bool = True) -> SearchSpace:
        """The space of a pipeline that takes so many sampler steps, and guides or does not. Raises ValueError, or what reading a strategy raises."""
        ratios, lengths = self.fixed_ratios, self._lengths(steps)
        try:
            frozen = [(i, Step(depth, ratio)) for i, depth, ratio in self.frozen]
            if not all(is_count(i) for i, _ in frozen) or len(dict(frozen)) < len(frozen):
                raise ValueError("a step is no integer, or is named twice")
        except (TypeError, ValueError) as error:
            raise StrategyError(f"space.frozen is {shown(list(self.frozen))} ({error}); write [step, depth, ratio] for each step, such as [[0, 12, 0.0]]") from None
        most = max(lengths)
        chosen = {f.name: getattr(self, f.name) for f in fields(Choices)} | ({} if guided else {"guidance": ("both",)})
        return SearchSpace(
            steps=most,
            lengths=lengths,
            fixed_depths=None if self.fixed_depths is None else tuple(s.cache_depth for s in _fitted(self.fixed_depths, most)),
            fixed_ratios=None if ratios is None else tuple(s.prune_ratio for s in _fitted(ratios, most)) if isinstance(ratios, str) else (ratios,) * most,
            frozen=dict(frozen),
            **chosen,
        )

    def _lengths(self, steps: int) -> tuple[int, ...]:
        """Numbers of steps, ascending; shares are of the pipeline's own."""
        found = [max(1, round(n * steps)) if isinstance(n, float) and 0 < n <= 1 else n for n in self.steps]
        if not all(is_number(n) and n == int(n) and 1 <= n <= MAX_STEPS for n in found):
            raise StrategyError(f"space.steps is {shown(list(self.steps))}; give numbers of sampler steps from 1 to {MAX_STEPS}, or shares of model.steps ({steps}), such as 0.2")
        return tuple(sorted({int(n) for n in found})) or (steps,)


def _fitted(source: str, steps: int) -> Strategy:
    strategy = Strategy.load(source)
    return strategy if len(strategy) == steps else strategy.resample(steps)


@dataclass(frozen=True, kw_only=True)
class SearchSpace(Choices):
    """Which strategies there are.

    A genome is an int array: each group's index into `depths`, then each group's into `ratios`, into `guidance` and `orders` where
    there is a choice, and last, where there is, one into `samplers` and one into `lengths`. Groups lie on relative time: a run of
    fewer steps takes each step's genes from its own place in the longest run, so that the parts of two runs of different length
    can change places.
    """

    steps: int
    """Sampler steps of the longest run: the grid on which groups lie."""
    lengths: tuple[int, ...] = ()
    """Numbers of steps that a strategy may have, ascending; none is `steps` alone."""
    fixed_depths: tuple[int, ...] | None = None
    """Cache depth of every step, where only ratios are searched."""
    fixed_ratios: tuple[float, ...] | None = None
    """Prune ratio of every step, where only depths are searched."""
    frozen: dict[int, Step] = field(default_factory=dict)
    """Steps that are not searched, with what they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Strategy.full(self.steps)
        object.__setattr__(self, "lengths", tuple(self.lengths) or (self.steps,))
        for name in ("depths", "ratios", "orders", "lengths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values), key=extent if name == "depths" else None):
                last = f", and {FULL}, the full call, last" if name == "depths" else ""
                raise StrategyError(f"search space: {name} is {list(values)}; give at least one value, ascending{last}, each once")
        if not self.guidance or len(set(self.guidance)) < len(self.guidance) or not set(self.guidance) <= set(GUIDANCE):
            raise StrategyError(f"search space: guidance is {list(self.guidance)}; allowed are {' and '.join(GUIDANCE)}, each once")
        samplers = [Sampler.of(name) for name in self.samplers]
        if not samplers or len(set(samplers)) < len(samplers):
            raise StrategyError(f"search space: samplers is {list(self.samplers)}; give at least one, each once: null is the pipeline's own")
        for depth in self.depths:
            for ratio in self.ratios:
                Step(depth, ratio)
        for order in self.orders:
            Step(FULL, order=order)
        if self.lengths[0] < 1 or self.lengths[-1] != self.steps:
            raise StrategyError(f"search space: lengths is {list(self.lengths)}; the last is the longest run's, {self.steps}")
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
        if self.frozen and len(self.lengths) > 1:
            raise StrategyError(f"space.frozen names steps of a run, and runs may have {list(self.lengths)} steps; leave it out, or set space.steps to one number of steps")

    @property
    def groups(self) -> int:
        """Genes of each kind."""
        return -(-self.steps // self.steps_per_gene)

    @cached_property
    def _tops(self) -> tuple[list[int], list[int]]:
        """Largest value of each kind of gene that a group has, and of each that the whole run has."""
        depths = 0 if self.fixed_depths else len(self.depths) - 1
        ratios = 0 if self.fixed_ratios else len(self.ratios) - 1
        more = [len(values) - 1 for values in (self.guidance, self.orders) if len(values) > 1]
        return [depths, ratios, *more], [len(values) - 1 for values in (self.samplers, self.lengths) if len(values) > 1]

    @property
    def kinds(self) -> int:
        """How many genes a group has."""
        return len(self._tops[0])

    @cached_property
    def upper(self) -> np.ndarray:
        """Largest allowed value of each gene; the smallest is 0. A kind of gene that is fixed has only the value 0."""
        group, whole = self._tops
        return np.concatenate([np.repeat(group, self.groups), np.array(whole, dtype=int)]).astype(int)

    def group_at(self, step: int, length: int) -> int:
        """The group whose genes a step of a run of some length takes."""
        return self._place(step, length) // self.steps_per_gene

    def _place(self, step: int, length: int) -> int:
        """Where in the longest run a step of another lies."""
        return int((step + 0.5) * self.steps / length)

    def _read(self, genome: np.ndarray) -> tuple[np.ndarray, str | None, int]:
        """(4, groups) indices of depths, ratios, guidance and orders, the sampler, and the number of steps."""
        genome = np.asarray(genome, dtype=int)
        rows, rest = genome[: self.kinds * self.groups].reshape(self.kinds, self.groups), list(genome[self.kinds * self.groups :])
        found = np.zeros((4, self.groups), dtype=int)
        found[:2] = rows[:2]
        later = iter(rows[2:])
        for k, values in ((2, self.guidance), (3, self.orders)):
            if len(values) > 1:
                found[k] = next(later)
        sampler = self.samplers[rest.pop(0) if len(self.samplers) > 1 else 0]
        return found, sampler, self.lengths[rest.pop(0) if len(self.lengths) > 1 else 0]

    def decode(self, genome: np.ndarray) -> Strategy:
        """The strategy of a genome, in canonical form."""
        (depth, ratio, guidance, order), sampler, length = self._read(genome)
        steps = []
        for i in range(length):
            place, g = self._place(i, length), self.group_at(i, length)
            free = _step(
                self.fixed_depths[place] if self.fixed_depths else self.depths[depth[g]],
                self.fixed_ratios[place] if self.fixed_ratios else self.ratios[ratio[g]],
                self.guidance[guidance[g]],
                self.orders[order[g]],
            )
            steps.append(self.frozen.get(i, free))
        return Strategy(tuple(steps), sampler=Sampler.of(sampler)).canonical(self.depths_without_pruning)

    def active(self, genome: np.ndarray) -> np.ndarray:
        """(genes,) whether a gene can have an effect, as the others are: only those of groups that the run's steps lie in."""
        (depth, *_), _, length = self._read(genome)
        used = np.zeros(self.groups, dtype=bool)
        used[[self.group_at(i, length) for i in range(length)]] = True
        computed = ~np.isin(np.array(self.depths)[depth], self.depths_without_pruning) if not self.fixed_depths else np.ones(self.groups, dtype=bool)
        reused = np.array(self.depths)[depth] != FULL if not self.fixed_depths else np.ones(self.groups, dtype=bool)
        rows = [used, used & computed, *([used] if len(self.guidance) > 1 else []), *([used & reused] if len(self.orders) > 1 else [])]
        return np.concatenate([*rows, np.ones(len(self._tops[1]), dtype=bool)]) & (self.upper > 0)

    def genome(
        self, depth: np.ndarray, ratio: np.ndarray, guidance: np.ndarray | int = 0, order: np.ndarray | int = 0, sampler: int = 0, length: int = -1
    ) -> np.ndarray:
        """A genome of (groups,) indices, of one index for all groups, and of the run's; what there is no choice of is left out."""
        rows = [depth, ratio, *([guidance] if len(self.guidance) > 1 else []), *([order] if len(self.orders) > 1 else [])]
        whole = [*([sampler] if len(self.samplers) > 1 else []), *([length % len(self.lengths)] if len(self.lengths) > 1 else [])]
        return np.concatenate([*(np.broadcast_to(row, self.groups) for row in rows), np.array(whole, dtype=int)]).astype(int)

    def encode(self, strategy: Strategy) -> np.ndarray:
        """A genome of the strategy; a ratio where none has an effect becomes the first allowed one. Raises `StrategyError`."""
        if len(strategy) not in self.lengths:
            raise StrategyError(
                f"the strategy has {len(strategy)} steps and the search space {', '.join(map(str, self.lengths))}; use strategy.resample({self.lengths[-1]})"
            )
        if strategy.sampler not in [Sampler.of(name) for name in self.samplers]:
            raise StrategyError(
                f"the strategy is for {f'the sampler {strategy.sampler}' if strategy.sampler else 'the sampler of the pipeline itself (null)'}, and this search tries "
                f"{', '.join('null' if name is None else name for name in self.samplers)}: add it to space.samplers, or give the steps alone, dato.Strategy(strategy.steps)"
            )
        genome = self.nearest(strategy)
        # A first call is full whatever its entry, and an inert ratio is none: compare what the two do.
        for i, (given, own) in enumerate(zip(strategy.canonical(self.depths_without_pruning), self.decode(genome), strict=True)):
            if given != own:
                raise StrategyError(
                    f"step {i} is {strategy[i]}, outside the search space: depths {list(self.depths)}, ratios {list(self.ratios)}, guidance {list(self.guidance)}, orders {list(self.orders)}"
                    + (f", {self.steps_per_gene} steps a group" if self.steps_per_gene > 1 else "")
                    + (f", frozen to {self.frozen[i]}" if i in self.frozen else "")
                )
        return genome

    def nearest(self, strategy: Strategy) -> np.ndarray:
        """The genome closest to a strategy of any length: each group takes what the strategy does at its first step.

        Between two allowed depths the deeper one is taken, which is never worse; between two ratios, orders and lengths, the closer.
        A guidance or a sampler that is not searched becomes the first that is.
        """
        samplers = [Sampler.of(name) for name in self.samplers]
        length = min(self.lengths, key=lambda n: (abs(n - len(strategy)), -n))
        fitted = strategy if len(strategy) == length else strategy.resample(length)
        places: dict[int, int] = {}
        for i in range(length):
            if i not in self.frozen:
                places.setdefault(self.group_at(i, length), i)
        rows = []
        for g in range(self.groups):
            between = min(length - 1, int((g * self.steps_per_gene + 0.5) * length / self.steps))
            step = fitted[places.get(g, between)]
            deeper = [k for k, d in enumerate(self.depths) if extent(d) >= extent(step.cache_depth)]
            inert = step.cache_depth in self.depths_without_pruning or self.fixed_ratios is not None
            rows.append((
                0 if self.fixed_depths else deeper[0],
                0 if inert else _closest(self.ratios, step.prune_ratio),
                self.guidance.index(step.guidance if step.guidance in self.guidance else self.guidance[0]),
                _closest(self.orders, step.order),
            ))  # fmt: skip
        depth, ratio, guidance, order = np.array(rows).T
        return self.genome(depth, ratio, guidance, order, samplers.index(strategy.sampler) if strategy.sampler in samplers else 0, self.lengths.index(length))


def _closest(values: tuple[float, ...], value: float) -> int:
    return int(np.argmin([abs(v - value) for v in values]))
