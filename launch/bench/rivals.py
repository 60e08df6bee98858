"""Searches that ours is compared with, each asked and told a generation at a time like `search.nsga2.Nsga2`."""

from __future__ import annotations

from collections.abc import Sequence
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
from search.space import SearchSpace


class RandomSearch:
    """Uniformly random genomes."""

    def __init__(self, space: SearchSpace, population: int, seed: int) -> None:
        self.space, self._population, self._random = space, population, np.random.default_rng(seed)

    def ask(self) -> list[Strategy]:
        """A population of strategies."""
        return [self.space.decode(self._random.integers(0, self.space.upper + 1)) for _ in range(self._population)]

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Nothing is learnt."""


class StockNsga2:
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


class OptunaSearch:
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
