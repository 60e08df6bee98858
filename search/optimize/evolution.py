"""What NSGA-II consists of, whether it goes by generations or not: population, survival and operators, over pymoo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Required, TypedDict

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.individual import Individual
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.problems.static import StaticProblem

from dato.strategy import Strategy
from search.optimize.operators import Operators, make_operators
from search.optimize.space import SearchSpace

_INFEASIBLE = 1e9
PROMISING = 30
"""Offspring that a screen lets have offspring of their own before it picks."""


class Screen(Protocol):
    """Tells which of many offspring to evaluate; see `search.optimize.surrogate`."""

    surplus: int
    """Offspring made for each one evaluated."""

    @property
    def ready(self) -> bool:
        """Whether enough is known to choose."""
        ...

    def choose(self, strategies: Sequence[Strategy], count: int, *, pending: Sequence[Strategy], bounds: tuple[float, float] | None) -> list[int]:
        """Numbers of the most promising, the best first."""
        ...

    def predict(self, strategies: Sequence[Strategy]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) of the first objective, its uncertainty, and of the second."""
        ...

    def learn(self, strategy: Strategy, values: tuple[float, ...], violation: float) -> None:
        """Take in a result."""
        ...


class Settings(TypedDict, total=False):
    """What an `Evolution` is made of, as keywords."""

    space: Required[SearchSpace]
    population: Required[int]
    seed: Required[int]
    operators: Operators
    objectives: int
    given: Sequence[Strategy]
    screen: Callable[[], Screen] | None


class NotSeen(DuplicateElimination):
    """Refuses a genome whose canonical strategy was asked before, in this population or ever."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space, self.seen = space, set[str]()

    def _do(self, pop: Population, other: Population | None, is_duplicate: np.ndarray) -> np.ndarray:
        here = set[str]()
        for i, individual in enumerate(pop):
            digest = self.space.decode(individual.X).digest
            is_duplicate[i] |= digest in self.seen or digest in here
            if other is None:
                here.add(digest)
        return is_duplicate


class Evolution:
    """A population, what survives of it, and its offspring.

    What it makes depends only on the seed and on what it was told, so replaying recorded values repeats a search.

    Args:
        space: What a step may be.
        population: How many survive.
        seed: Of every random choice.
        operators: "stepwise" or "paper".
        objectives: How many values a strategy is told with.
        given: Strategies to begin with, at most a population of them.
        screen: Makes what picks which of many offspring are evaluated; None makes no more than are evaluated.
    """

    def __init__(
        self,
        *,
        space: SearchSpace,
        population: int,
        seed: int,
        operators: Operators = "stepwise",
        objectives: int = 2,
        given: Sequence[Strategy] = (),
        screen: Callable[[], Screen] | None = None,
    ) -> None:
        if not isinstance(population, int) or population < 4:
            raise ValueError(f"search.population is {population!r}; NSGA-II needs at least 4")
        self.space, self.population, self._duplicates, self._screen = space, population, NotSeen(space), screen() if screen else None
        self._problem = Problem(n_var=len(space.upper), n_obj=objectives, n_ieq_constr=1, xl=0, xu=space.upper, vtype=int)
        chosen = make_operators(operators, space, given, spread=screen is not None)
        self._algorithm = NSGA2(pop_size=population, eliminate_duplicates=self._duplicates, **chosen)
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._parents: dict[str, tuple[str, ...]] = {}

    @property
    def begun(self) -> bool:
        """Whether the first strategies have survived, so that there are offspring."""
        return bool(self._algorithm.is_initialized)

    @property
    def screens(self) -> bool:
        """Whether there is a screen that knows enough to choose."""
        return self._screen is not None and self._screen.ready

    @property
    def surplus(self) -> int:
        """Offspring to make for each one that is evaluated: 1 where no screen can choose among them yet."""
        return self._screen.surplus if self._screen and self._screen.ready else 1

    def make(self, count: int) -> Population:
        """So many offspring, or the first population; empty where there is nothing new."""
        self._algorithm.n_offsprings = count
        made = self._algorithm.ask()
        return Population() if made is None else made

    def hand_out(self, individuals: Sequence[Individual]) -> list[Strategy]:
        """The strategies of individuals, none of which is made again; only theirs are the `parents` that are known from now on."""
        self._parents.clear()
        return [self._noted(individual) for individual in individuals]

    def _noted(self, individual: Individual) -> Strategy:
        strategy = self.space.decode(individual.X)
        self._duplicates.seen.add(strategy.digest)
        self._parents[strategy.digest] = tuple(dict.fromkeys(self.space.decode(genome).digest for genome in individual.data.get("parents", ())))
        return strategy

    def was_handed_out(self, strategy: Strategy) -> bool:
        """Whether it, or one that is the same to a pipeline, was handed out before."""
        return strategy.digest in self._duplicates.seen

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """Digests of the strategies that one handed out last was crossed from; none for an initial one."""
        return self._parents.get(strategy.digest, ())

    def pick(self, made: Population, count: int, bounds: tuple[float, float] | None, pending: Sequence[Strategy] = ()) -> Population:
        """The most promising of offspring and of the most promising offspring's offspring, in the order in which they were made.

        Args:
            made: The offspring.
            count: How many; the first of them where no screen can choose yet.
            bounds: Objectives beyond which nothing is gained.
            pending: Strategies that are being evaluated.
        """
        if self._screen is None or not self._screen.ready:
            return made[:count]
        strategies = [self.space.decode(individual.X) for individual in made]
        best = self._screen.choose(strategies, PROMISING, pending=pending, bounds=bounds)
        if len(best) > 1:
            fid, _, price = self._screen.predict([strategies[i] for i in best])
            values = np.stack([fid, price], axis=1)[:, : self._problem.n_obj]
            none = np.zeros((len(best), 1))
            likely = Population.new(X=made[best].get("X"), F=values, G=none, CV=none, index=np.array(best))
            likely = RankAndCrowding().do(self._problem, likely, n_survive=len(best), random_state=np.random.default_rng(0))
            algorithm = self._algorithm
            more = algorithm.mating.do(self._problem, likely, len(made), algorithm=algorithm, random_state=algorithm.random_state)
            known = {strategy.digest for strategy in strategies}
            fresh = [child for child in more if self.space.decode(child.X).digest not in known]
            origins = {individual.X.tobytes(): individual.data.get("parents", []) for individual in made[best]}
            for child in fresh:  # its own parents were never asked for: theirs were
                child.data["parents"] = [old for parent in child.data["parents"] for old in origins[parent.tobytes()]]
            made = Population.merge(made[best], Population.create(*fresh)) if fresh else made[best]
            strategies = [self.space.decode(individual.X) for individual in made]
        picked = self._screen.choose(strategies, count, pending=pending, bounds=bounds)
        return made[np.sort(picked)]

    def take(self, individuals: Population, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float]) -> None:
        """Take in what individuals gave: lower is better, None where one failed; and by how much each exceeds its constraints."""
        # A failure violates its constraint by more than any measured candidate.
        values = np.array([(_INFEASIBLE,) * self._problem.n_obj if o is None else o for o in objectives], dtype=float)
        violation = np.array([[_INFEASIBLE if o is None else v] for o, v in zip(objectives, violations, strict=True)])
        Evaluator().eval(StaticProblem(self._problem, F=values, G=violation), individuals)
        if self._screen:
            for individual, o, v in zip(individuals, objectives, violations, strict=True):
                if o is not None:
                    self._screen.learn(self.space.decode(individual.X), o, v)

    def survive(self, individuals: Population) -> None:
        """Let individuals that were taken in compete with the population."""
        self._algorithm.tell(infills=individuals)
