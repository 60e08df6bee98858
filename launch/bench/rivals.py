"""Searches that ours is compared with, each asked and told a generation at a time like `search.optimize.nsga2.Nsga2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from pymoo.problems.static import StaticProblem

from dato.strategy import Strategy
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.operators import InitialMix
from search.optimize.space import SearchSpace


class Rival:
    """What a driver asks of every algorithm."""

    bounds: tuple[float, float] | None = None

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """None are told."""
        return ()


class RandomSearch(Rival):
    """Given strategies, then uniformly random genomes, none twice."""

    def __init__(self, space: SearchSpace, population: int, seed: int, given: Sequence[Strategy] = ()) -> None:
        self.space, self._population, self._random = space, population, np.random.default_rng(seed)
        self._seen = set[str]()
        self._first = [space.nearest(strategy) for strategy in given]

    def ask(self) -> list[Strategy]:
        """A population of strategies; fewer where a hundred draws for each give no more."""
        asked: list[Strategy] = []
        for _ in range(100 * self._population):
            strategy = self.space.decode(self._first.pop(0) if self._first else self._draw())
            if strategy.digest not in self._seen:
                self._seen.add(strategy.digest)
                asked.append(strategy)
            if len(asked) == self._population:
                break
        return asked

    def _draw(self) -> np.ndarray:
        return self._random.integers(0, self.space.upper + 1)

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Nothing is learnt."""


class MixSearch(RandomSearch):
    """One large first generation of a search without a surrogate: `search.optimize.operators.InitialMix` of 60, then more of its random part."""

    def __init__(self, space: SearchSpace, population: int, seed: int, given: Sequence[Strategy] = ()) -> None:
        super().__init__(space, population, seed)
        self._first = list(InitialMix(space, given)._do(None, 60, random_state=self._random))

    def _draw(self) -> np.ndarray:
        # Of two, the first is a uniform one and the second random.
        return InitialMix(self.space)._do(None, 2, random_state=self._random)[1]


class OneByOne(Rival):
    """An asynchronous search on two workers that take equally long."""

    def __init__(self, algorithm: AsynchronousNsga2) -> None:
        self._algorithm, self._left = algorithm, algorithm.settings["population"]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The algorithm's."""
        return self._algorithm.bounds

    @bounds.setter
    def bounds(self, value: tuple[float, float] | None) -> None:
        self._algorithm.bounds = value

    def ask(self) -> list[Strategy]:
        """The first population, then two at a time, as of two workers."""
        asked = [self._algorithm.ask_one() for _ in range(self._left)]
        self._left = 2
        self._asked = [strategy for strategy in asked if strategy is not None]
        return self._asked

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in the objectives."""
        for strategy, values in zip(self._asked, objectives, strict=True):
            self._algorithm.tell_one(strategy, values)


class StockNsga2(Rival):
    """pymoo's NSGA-II as its documentation sets it up for integers: its own defaults, rounded."""

    def __init__(self, space: SearchSpace, population: int, seed: int, given: Sequence[Strategy] = ()) -> None:
        self.space = space
        self._problem = Problem(n_var=len(space.upper), n_obj=2, xl=0, xu=space.upper, vtype=int)
        self._algorithm = NSGA2(
            pop_size=population,
            sampling=InitialMix(space, given, structured=False),
            crossover=SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair()),
            mutation=PM(eta=20, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._known: dict[str, tuple[float, ...]] = {}

    def ask(self) -> list[Strategy]:
        """A population's strategies that it has not asked for before; it is told of the others what is known."""
        for _ in range(100):
            self._asked = self._algorithm.ask()
            self._new = _new_ones([self.space.decode(individual.X) for individual in self._asked], self._known)
            if self._new:
                return self._new
            self._give()
        return []

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in the objectives."""
        self._known |= {s.digest: o for s, o in zip(self._new, objectives, strict=True) if o is not None}
        self._give()

    def _give(self) -> None:
        values = [self._known[self.space.decode(individual.X).digest] for individual in self._asked]
        Evaluator().eval(StaticProblem(self._problem, F=np.array(values, dtype=float)), self._asked)
        self._algorithm.tell(infills=self._asked)


class TwoStages(Rival):
    """Cache depths first, at one ratio; then prune ratios, with the depths of the strategy that the first stage ended with.

    That strategy is the one of its front that is closest to the best of both objectives, each over the front's range.

    Args:
        space: What a step may be.
        population: Of both stages.
        seed: Of both stages.
        first: Candidates of the first stage.
        given: Strategies that the first stage begins with.
    """

    def __init__(self, space: SearchSpace, population: int, seed: int, first: int, given: Sequence[Strategy] = ()) -> None:
        self.space, self._population, self._seed, self._left = space, population, seed, first
        middle = space.ratios[len(space.ratios) // 2]
        self._stage = Nsga2(space=replace(space, fixed_ratios=(middle,) * space.steps), population=population, seed=seed, given=given)
        self._told: list[tuple[Strategy, tuple[float, ...]]] = []

    def ask(self) -> list[Strategy]:
        """A population of the stage's strategies."""
        if self._left <= 0 and self._told:
            depths = tuple(step.cache_depth for step in self._chosen())
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

    def __init__(self, space: SearchSpace, population: int, sampler: Any, given: Sequence[Strategy] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self._population = space, population
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._genes = [optuna.distributions.IntDistribution(0, int(top)) for top in space.upper]
        self._known: dict[str, tuple[float, ...]] = {}
        for strategy in given:
            self._study.enqueue_trial({f"gene_{i:03d}": int(gene) for i, gene in enumerate(space.nearest(strategy))})

    def ask(self) -> list[Strategy]:
        """A population of new strategies; the study is told of others what is known. Fewer where a hundred asks for each give no more."""
        self._trials: list[tuple[Any, str]] = []
        asked: dict[str, Strategy] = {}
        for _ in range(100 * self._population):
            trial = self._study.ask({f"gene_{i:03d}": gene for i, gene in enumerate(self._genes)})
            strategy = self.space.decode(np.array([trial.params[f"gene_{i:03d}"] for i in range(len(self._genes))]))
            if strategy.digest in self._known:
                self._study.tell(trial, self._known[strategy.digest])
                continue
            self._trials.append((trial, strategy.digest))
            asked.setdefault(strategy.digest, strategy)
            if len(asked) == self._population:
                break
        self._asked = list(asked.values())
        return self._asked

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in the objectives."""
        self._known |= {s.digest: o for s, o in zip(self._asked, objectives, strict=True) if o is not None}
        for trial, digest in self._trials:
            self._study.tell(trial, self._known[digest])


def _new_ones(strategies: Sequence[Strategy], known: Mapping[str, Any]) -> list[Strategy]:
    """Those not known, each once."""
    return list({s.digest: s for s in strategies if s.digest not in known}.values())
