"""NSGA-II without generations: one strategy asked for at a time, told in any order, so that no worker waits for another.

Deb's NSGA-II with one offspring (mu + 1), as in "steady-state NSGA-II" (Durillo et al., EMO 2009), over the same `Evolution` as
`search.optimize.nsga2`.
"""

from __future__ import annotations

from collections import deque
from typing import Unpack

import numpy as np
from pymoo.core.individual import Individual
from pymoo.core.population import Population

from dato.strategy import Strategy
from search.optimize.evolution import Evolution, Settings


class AsynchronousNsga2:
    """Asks for one strategy at a time.

    With a screen, offspring are picked several at a time once there are many results, so that asking stays cheap. The first
    `population` strategies are the generational algorithm's own. When these are out and fewer than two results are
    in, more are drawn at random; after that, each is an offspring of whatever results there are.
    The sequence depends only on the seed and on the order of asks and tells.

    Args:
        **settings: As for `Evolution`.
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self.settings, self._evolution = settings, Evolution(**settings)
        self.bounds: tuple[float, float] | None = None
        """Objectives beyond which nothing is gained, for the screen; known once the unaccelerated pipeline is measured."""
        self._results, self._picked = 0, deque[Individual]()
        self._chance = np.random.default_rng(settings["seed"])
        self._initial: deque[Individual] | None = None
        self._out: dict[str, Individual] = {}
        self._first: list[Individual] = []

    def ask_one(self) -> Strategy | None:
        """The next strategy, never asked before; None when there is no other."""
        if self._initial is None:
            self._initial = deque(self._evolution.make(1))
        if self._initial:
            return self._hand_out(self._initial.popleft())
        if not self._evolution.begun:
            if len(self._first) < 2:
                return self._random()
            self._evolution.survive(Population.create(*self._first))
        if not self._picked:
            self._picked.extend(self._offspring())
        return self._hand_out(self._picked.popleft()) if self._picked else None

    def tell_one(self, strategy: Strategy, objectives: tuple[float, ...] | None, violation: float = 0.0) -> None:
        """Objectives of a strategy that was asked for, lower is better, or None where it failed; and its constraint violation."""
        individual = self._out.pop(strategy.digest, None)
        if individual is None:
            raise RuntimeError(f"strategy {strategy.digest} was told and is not out: it was never asked for, or told before")
        told = Population.create(individual)
        self._evolution.take(told, [objectives], [violation])
        self._results += 1
        if self._evolution.begun:
            self._evolution.survive(told)
        else:
            self._first.append(individual)

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """Digests of the strategies that the one asked for last was crossed from; none for an initial one."""
        return self._evolution.parents(strategy)

    def _offspring(self) -> Population:
        """The next ones to hand out: one, or with a screen a twentieth of what is known."""
        evolution, count, enough = self._evolution, 1, 1
        if evolution.screens:
            count = max(1, self._results // 20)
            enough = max(count, evolution.surplus * evolution.population)
        made = evolution.make(enough)
        return evolution.pick(made, count, self.bounds, [evolution.space.decode(individual.X) for individual in self._out.values()])

    def _hand_out(self, individual: Individual) -> Strategy:
        (strategy,) = self._evolution.hand_out([individual])
        self._out[strategy.digest] = individual
        return strategy

    def _random(self) -> Strategy | None:
        space = self._evolution.space
        for _ in range(1000):
            genome = self._chance.integers(0, space.upper + 1)
            if not self._evolution.was_handed_out(space.decode(genome)):
                return self._hand_out(Individual(X=genome))
        return None
