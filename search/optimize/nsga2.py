"""NSGA-II as ask and tell, over pymoo, with two operator sets.

`paper` is the supplement of arXiv 2501.00375: random integers, SBX, polynomial mutation. `stepwise` is its section 3.3.2:
uniform and random strategies first, crossover and random-choice mutation that treat a step's two genes as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.individual import Individual
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.indicators.hv import HV
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.problems.static import StaticProblem

from dato.strategy import Strategy
from search.optimize.space import SearchSpace

Operators = Literal["stepwise", "paper"]
_INFEASIBLE = 1e9
SHARES, GOLDEN = (0.1, 0.2, 0.3, 0.15, 0.25, 0.05), 0.618034
"""Shares of full calls that `SpreadMix` begins with, in turn, and the step between its parts: multiples of it never bunch."""
PROMISING = 30
"""Offspring that a screen lets have offspring of their own before it picks."""


class Screen(Protocol):
    """Tells which of many offspring to evaluate; see `search.surrogate`."""

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


class InitialMix(Sampling):
    """Given strategies first; of the rest, half uniform ones (a full call every 2, 3, ... steps, ratios in turn), half random ones.

    A random strategy first draws its own shares of the depths, so that slow and fast ones appear alike.

    Args:
        space: What a step may be.
        given: Taken as the nearest genomes, each once, before all others.
        structured: False for nothing but the given and pymoo's random integers.
    """

    def __init__(self, space: SearchSpace, given: Sequence[Strategy] = (), *, structured: bool = True) -> None:
        super().__init__()
        self.space, self.given, self.structured = space, given, structured

    def _do(self, problem: Problem, n_samples: int, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        space, n, top = self.space, self.space.groups, self.space.upper
        known = {space.decode(g).digest: g for g in map(space.nearest, self.given)}
        rows = list(known.values())[:n_samples]
        if not self.structured:
            count = n_samples - len(rows)
            random = IntegerRandomSampling()._do(problem, count, random_state=random_state) if count else []
            return np.array([*rows, *random], dtype=int)
        full, shallow = top[0], max(top[0] - 1, 0)
        for i in range((n_samples - len(rows)) // 2):
            depth = np.where(np.arange(n) % (i + 2) == 0, full, shallow)
            rows.append(np.concatenate([depth, np.full(n, (2 * i) % (top[-1] + 1))]))
        while len(rows) < n_samples:
            shares = random_state.dirichlet(np.ones(top[0] + 1))
            depth = random_state.choice(top[0] + 1, size=n, p=shares)
            rows.append(np.concatenate([depth, random_state.integers(top[-1] + 1, size=n)]))
        return np.array(rows, dtype=int)


class SpreadMix(InitialMix):
    """Given strategies first; then, in turn, strategies whose full calls lie together in one part of the run, and random ones.

    Both have few full calls, so that they cost little and lie where fronts do. The parts are spread over the run: where the full
    calls are needed differs between models (DeepCache, arXiv 2312.00858, centres them by hand), and a model learns it from these.
    """

    def _do(self, problem: Problem, n_samples: int, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        space, n, top = self.space, self.space.groups, self.space.upper
        known = {space.decode(g).digest: g for g in map(space.nearest, self.given)}
        rows = list(known.values())[:n_samples]
        start = random_state.random()
        for i in range(n_samples - len(rows)):
            share = SHARES[i % len(SHARES)]
            if i % 2:
                full = random_state.random(n) < share
            else:
                centre = (start + GOLDEN * i) % 1 * n
                full = np.zeros(n, dtype=bool)
                full[np.argsort(np.abs(np.arange(n) + 0.5 - centre), kind="stable")[: max(1, round(share * n))]] = True
            shallow = random_state.random(n) < random_state.uniform(0, 0.6)
            depth = np.where(shallow, random_state.integers(min(1, top[0]), max(top[0], min(1, top[0]) + 1), size=n), 0)
            rows.append(np.concatenate([np.where(full, top[0], depth), random_state.integers(0, top[n:] + 1)]))
        return np.array(rows, dtype=int)


class _Noted(Crossover):
    """A crossover whose children know the genomes that they were made of."""

    def do(self, problem: Problem, pop: Any, parents: np.ndarray | None = None, *args: Any, **kwargs: Any) -> Population:
        children = super().do(problem, pop, parents, *args, **kwargs)
        pairs = pop if parents is None else [pop[pair] for pair in parents]
        for i, child in enumerate(children):  # the first children of all pairs, then the second ones
            child.data["parents"] = [parent.X.copy() for parent in pairs[i % len(pairs)]]
        return children


class NotedSBX(_Noted, SBX):
    """pymoo's simulated binary crossover, whose children know their parents."""


class StepCrossover(_Noted):
    """Both genes of some steps change places: of those between two points, or, for half the pairs, of each step by chance.

    One- and two-point crossover alone keep what neighbouring steps do together, and rarely combine what distant ones do.
    """

    def __init__(self) -> None:
        super().__init__(2, 2)

    def _do(self, problem: Problem, X: np.ndarray, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        pairs, n = X.shape[1], problem.n_var // 2
        swapped = random_state.random((pairs, n)) < 0.5
        for k in np.flatnonzero(random_state.random(pairs) < 0.5):
            low, high = sorted(random_state.choice(n + 1, size=2, replace=False))
            swapped[k] = (np.arange(n) >= low) & (np.arange(n) < high)
        both = np.concatenate([swapped, swapped], axis=1)
        return np.stack([np.where(both, X[1], X[0]), np.where(both, X[0], X[1])])


class StepMutation(Mutation):
    """One gene and a half change on average: half of these to a neighbouring value, half to any."""

    def _do(self, problem: Problem, X: np.ndarray, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        top = problem.xu.astype(int)
        chosen = random_state.random(X.shape) < 1.5 / problem.n_var
        anywhere = random_state.integers(0, top + 1, size=X.shape)
        beside = np.clip(X + random_state.choice([-1, 1], size=X.shape), 0, top)
        return np.where(chosen, np.where(random_state.random(X.shape) < 0.5, beside, anywhere), X)


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


class Nsga2:
    """Asks for strategies and is told their objectives, a generation at a time.

    The sequence of asks depends only on the seed and on what was told, so replaying recorded values repeats a search.

    Args:
        space: What a step may be.
        population: Strategies in a generation.
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
        self._problem = Problem(n_var=2 * space.groups, n_obj=objectives, n_ieq_constr=1, xl=0, xu=space.upper, vtype=int)
        if operators == "stepwise":
            chosen = {"sampling": (SpreadMix if screen else InitialMix)(space, given), "crossover": StepCrossover(), "mutation": StepMutation()}
        elif operators == "paper":
            chosen = {
                "sampling": InitialMix(space, given, structured=False),
                "crossover": NotedSBX(prob=0.7, eta=7, vtype=float, repair=RoundingRepair()),
                "mutation": PM(prob=0.4, eta=15, vtype=float, repair=RoundingRepair()),
            }
        else:
            raise ValueError(f"search.operators is {operators!r}; allowed are 'stepwise' and 'paper'")
        self._algorithm = NSGA2(pop_size=population, eliminate_duplicates=self._duplicates, **chosen)
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._asked: Population | None = None
        self.bounds: tuple[float, float] | None = None
        """Objectives beyond which nothing is gained, for the screen; the driver knows them once the unaccelerated pipeline is measured."""
        self._parents: dict[str, tuple[str, ...]] = {}

    def ask(self) -> list[Strategy]:
        """The next generation's strategies, none of them asked before; fewer than the population when few are left."""
        if self._asked is not None:
            raise RuntimeError("ask was called twice without a tell in between")
        begun = self._algorithm.is_initialized
        self._algorithm.n_offsprings = self.population * (self._screen.surplus if self._screen and self._screen.ready and begun else 1)
        asked = self._algorithm.ask()
        if asked is None or len(asked) == 0:
            return []
        if begun:
            asked = self._screened(asked, self.population)
        self._asked = asked
        self._parents.clear()
        return [self._noted(individual) for individual in asked]

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in what the strategies last asked for gave, in their order.

        Args:
            objectives: Lower is better; None where one failed.
            violations: By how much each exceeds its constraints, 0 for not at all; None for no constraints.
        """
        if self._asked is None or len(objectives) != len(self._asked):
            raise RuntimeError(f"tell got {len(objectives)} objectives for {0 if self._asked is None else len(self._asked)} asked strategies")
        self._evaluate(self._asked, objectives, violations)
        self._algorithm.tell(infills=self._asked)
        if self._screen:
            told = [self.space.decode(individual.X) for individual in self._asked]
            for strategy, o, v in zip(told, objectives, violations or [0.0] * len(objectives), strict=True):
                if o is not None:
                    self._screen.learn(strategy, o, v)
        self._asked = None

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """Digests of the strategies that one asked for last was crossed from; none for an initial one."""
        return self._parents.get(strategy.digest, ())

    def _noted(self, individual: Individual) -> Strategy:
        """The strategy of an individual that is about to be asked for."""
        strategy = self.space.decode(individual.X)
        self._duplicates.seen.add(strategy.digest)
        self._parents[strategy.digest] = tuple(dict.fromkeys(self.space.decode(genome).digest for genome in individual.data.get("parents", ())))
        return strategy

    def _screened(self, made: Population, count: int, pending: Sequence[Strategy] = ()) -> Population:
        """The most promising of offspring and of the most promising offspring's offspring, in the order in which they were made."""
        if self._screen is None or not self._screen.ready:
            return made[:count]
        strategies = [self.space.decode(individual.X) for individual in made]
        best = self._screen.choose(strategies, PROMISING, pending=pending, bounds=self.bounds)
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
        picked = self._screen.choose(strategies, count, pending=pending, bounds=self.bounds)
        return made[np.sort(picked)]

    def _evaluate(self, asked: Population, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None) -> None:
        """Objectives into pymoo's individuals. A failure violates its constraint by more than any measured candidate."""
        values = np.array([(_INFEASIBLE,) * self._problem.n_obj if o is None else o for o in objectives], dtype=float)
        exceeded = violations or [0.0] * len(objectives)
        violation = np.array([[_INFEASIBLE if o is None else v] for o, v in zip(objectives, exceeded, strict=True)])
        Evaluator().eval(StaticProblem(self._problem, F=values, G=violation), asked)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Share of the box between (0, 0) and `reference` that the points dominate, in [0, 1]."""
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    if not inside:
        return 0.0
    return float(HV(ref_point=np.array(reference))(np.array(inside))) / (reference[0] * reference[1])
