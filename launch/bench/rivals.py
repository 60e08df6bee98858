"""Searches that ours is compared with, each asked and told a generation at a time like `search.nsga2.Nsga2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem

from dato.strategy import Strategy
from search.nsga2 import Nsga2
from search.space import SearchSpace


class Rival:
    """What a driver asks of every algorithm."""

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """None are told."""
        return ()


class RandomSearch(Rival):
    """Uniformly random genomes."""

    def __init__(self, space: SearchSpace, population: int, seed: int) -> None:
        self.space, self._population, self._random = space, population, np.random.default_rng(seed)

    def ask(self) -> list[Strategy]:
        """A population of strategies."""
        return [self.space.decode(self._random.integers(0, self.space.upper + 1)) for _ in range(self._population)]

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Nothing is learnt."""


class StockNsga2(Rival):
    """pymoo's NSGA-II as its documentation sets it up for integers: its own defaults, rounded; population 100."""

    def __init__(self, space: SearchSpace, population: int, seed: int) -> None:
        self.space = space
        self._problem = Problem(n_var=2 * space.groups, n_obj=2, xl=0, xu=space.upper, vtype=int)
        self._algorithm = NSGA2(
            pop_size=population,
            sampling=IntegerRandomSampling(),
            crossover=SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair()),
            mutation=PM(eta=20, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)

    def ask(self) -> list[Strategy]:
        """A population of strategies."""
        self._asked = self._algorithm.ask()
        return [self.space.decode(individual.X) for individual in self._asked]

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in the objectives."""
        Evaluator().eval(StaticProblem(self._problem, F=np.array(objectives, dtype=float)), self._asked)
        self._algorithm.tell(infills=self._asked)


class TwoStages(Rival):
    """Cache depths first, at one ratio; then prune ratios, with the depths of the strategy that the first stage ended with.

    That strategy is the one of its front that is closest to the best of both objectives, each over the front's range.

    Args:
        space: What a step may be.
        population: Of both stages.
        seed: Of both stages.
        first: Candidates of the first stage.
    """

    def __init__(self, space: SearchSpace, population: int, seed: int, first: int) -> None:
        self.space, self._population, self._seed, self._left = space, population, seed, first
        middle = space.ratios[len(space.ratios) // 2]
        self._stage = Nsga2(space=replace(space, fixed_ratios=[middle] * space.steps), population=population, seed=seed)
        self._told: list[tuple[Strategy, tuple[float, ...]]] = []

    def ask(self) -> list[Strategy]:
        """A population of the stage's strategies."""
        if self._left <= 0 and self._told:
            depths = [step.cache_depth for step in self._chosen()]
            self._stage = Nsga2(space=replace(self.space, fixed_depths=depths), population=self._population, seed=self._seed)
            self._told = []
        self._asked = self._stage.ask()
        return self._asked

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in the objectives."""
        self._stage.tell(objectives, violations)
        if self._left > 0:
            self._left -= len(self._asked)
            self._told += [(s, o) for s, o in zip(self._asked, objectives, strict=True) if o is not None]

    def _chosen(self) -> Strategy:
        front = [(s, o) for s, o in self._told if not any(p[0] <= o[0] and p[1] <= o[1] and p != o for _, p in self._told)]
        values = np.array([o for _, o in front])
        spread = np.maximum(np.ptp(values, axis=0), 1e-12)
        return front[int(np.argmin(((values - values.min(0)) / spread).sum(1)))][0]


class OptunaSearch(Rival):
    """Optuna with one of its samplers, a categorical parameter for every gene."""

    def __init__(self, space: SearchSpace, population: int, sampler: Any) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self._population = space, population
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._genes = [optuna.distributions.IntDistribution(0, int(top)) for top in space.upper]

    def ask(self) -> list[Strategy]:
        """A population of strategies."""
        self._trials = [self._study.ask({f"gene_{i:03d}": gene for i, gene in enumerate(self._genes)}) for _ in range(self._population)]
        return [self.space.decode(np.array([trial.params[f"gene_{i:03d}"] for i in range(len(self._genes))])) for trial in self._trials]

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in the objectives."""
        for trial, values in zip(self._trials, objectives, strict=True):
            self._study.tell(trial, values)
