"""NSGA-II without generations: one strategy asked for at a time, told in any order, so that no worker waits for another.

Deb's NSGA-II with one offspring (mu + 1), as in "steady-state NSGA-II" (Durillo et al., EMO 2009), over the same pymoo parts as
`search.optimize.nsga2`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from pymoo.core.individual import Individual
from pymoo.core.population import Population

from dato.strategy import Strategy
from search.optimize.nsga2 import Nsga2


class SteadyNsga2(Nsga2):
    """Asks for one strategy at a time.

    With a screen, offspring are picked several at a time once there are many results, so that asking stays cheap. The first
    `population` strategies are the generational algorithm's own. When these are out and fewer than two results are
    in, more are drawn at random; after that, each is an offspring of whatever results there are.
    The sequence depends only on the seed and on the order of asks and tells.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.arguments = arguments
        self._algorithm.n_offsprings = 1
        self._results, self._picked = 0, deque[Individual]()
        self._chance = np.random.default_rng(arguments["seed"])
        self._initial: deque[Individual] | None = None
        self._out: dict[str, Individual] = {}
        self._first: list[Individual] = []
        self._begun = False

    def ask_one(self) -> Strategy | None:
        """The next strategy, never asked before; None when there is no other."""
        if self._initial is None:
            self._initial = deque(self._algorithm.ask())
        if self._initial:
            return self._hand_out(self._initial.popleft())
        if not self._begun and len(self._first) < 2:
            return self._random()
        if not self._begun:
            self._algorithm.tell(infills=Population.create(*self._first))
            self._begun = True
        if not self._picked:
            self._picked.extend(self._offspring())
        return self._hand_out(self._picked.popleft()) if self._picked else None

    def tell_one(self, strategy: Strategy, objectives: tuple[float, ...] | None, violation: float = 0.0) -> None:
        """Objectives of a strategy that was asked for, lower is better, or None where it failed; and its constraint violation."""
        individual = self._out.pop(strategy.digest, None)
        if individual is None:
            raise RuntimeError(f"strategy {strategy.digest} was told and is not out: it was never asked for, or told before")
        infills = Population.create(individual)
        self._evaluate(infills, [objectives], [violation])
        self._results += 1
        if self._screen and objectives is not None:
            self._screen.learn(strategy, objectives, violation)
        if self._begun:
            self._algorithm.tell(infills=infills)
        else:
            self._first.append(individual)

    def _offspring(self) -> Population:
        """The next ones to hand out: one, or with a screen a twentieth of what is known."""
        screened = self._screen is not None and self._screen.ready
        count = max(1, self._results // 20) if screened else 1
        self._algorithm.n_offsprings = max(count, self._screen.surplus * self.population) if self._screen and screened else 1
        made = self._algorithm.ask()
        if made is None:
            return Population()
        return self._screened(made, count, [self.space.decode(individual.X) for individual in self._out.values()])

    def _hand_out(self, individual: Individual) -> Strategy:
        self._parents.clear()
        strategy = self._noted(individual)
        self._out[strategy.digest] = individual
        return strategy

    def _random(self) -> Strategy | None:
        for _ in range(1000):
            genome = self._chance.integers(0, self.space.upper + 1)
            if self.space.decode(genome).digest not in self._duplicates.seen:
                return self._hand_out(Individual(X=genome))
        return None
