"""NSGA-II as ask and tell, over pymoo, with two operator sets.

`paper` is the supplement of arXiv 2501.00375: random integers, SBX, polynomial mutation. `stepwise` is its section 3.3.2:
uniform and random strategies first, crossover and random-choice mutation that treat a step's two genes as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
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
from pymoo.problems.static import StaticProblem

from dato.strategy import Strategy
from search.space import SearchSpace

Operators = Literal["stepwise", "paper"]
_INFEASIBLE = 1e9


class UniformAndRandom(Sampling):
    """Half uniform strategies (a full call every 2, 3, ... steps, ratios in turn), half random ones.

    A random strategy first draws its own shares of the depths, so that slow and fast ones appear alike.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem: Problem, n_samples: int, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        space, n = self.space, self.space.steps
        full, shallow = len(space.depths) - 1, max(len(space.depths) - 2, 0)
        rows = []
        for i in range(n_samples // 2):
            depth = np.where(np.arange(n) % (i + 2) == 0, full, shallow)
            rows.append(np.concatenate([depth, np.full(n, (2 * i) % len(space.ratios))]))
        while len(rows) < n_samples:
            shares = random_state.dirichlet(np.ones(len(space.depths)))
            depth = random_state.choice(len(space.depths), size=n, p=shares)
            rows.append(np.concatenate([depth, random_state.integers(len(space.ratios), size=n)]))
        return np.array(rows, dtype=int)


class StepCrossover(Crossover):
    """Two-point crossover over steps: both genes of the steps between the points change places."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def _do(self, problem: Problem, X: np.ndarray, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        children = X.copy()
        n = problem.n_var // 2
        for k in range(X.shape[1]):
            low, high = sorted(random_state.choice(n + 1, size=2, replace=False))
            for part in (slice(low, high), slice(n + low, n + high)):
                children[0, k, part], children[1, k, part] = X[1, k, part], X[0, k, part]
        return children


class StepMutation(Mutation):
    """Each gene is drawn anew with probability 1/n, n the number of steps: two genes change on average."""

    def _do(self, problem: Problem, X: np.ndarray, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        chosen = random_state.random(X.shape) < 2.0 / problem.n_var
        return np.where(chosen, random_state.integers(0, problem.xu.astype(int) + 1, size=X.shape), X)


class NotSeen(DuplicateElimination):
    """Refuses a genome whose canonical strategy was asked before, in this population or ever."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space, self.seen = space, set[str]()

    def _do(self, pop: Population, other: Population | None, is_duplicate: np.ndarray) -> np.ndarray:
        known = set(self.seen)
        for i, individual in enumerate(pop):
            digest = self.space.decode(individual.X).digest
            is_duplicate[i] |= digest in known
            if other is None:
                known.add(digest)
        return is_duplicate


class Nsga2:
    """Asks for strategies and is told their objectives, a generation at a time.

    The sequence of asks depends only on the seed and on what was told, so replaying recorded values repeats a search.
    """

    def __init__(self, *, space: SearchSpace, population: int, seed: int, operators: Operators = "stepwise") -> None:
        if population < 4:
            raise ValueError(f"population is {population}; NSGA-II needs at least 4")
        self.space, self._duplicates = space, NotSeen(space)
        self._problem = Problem(n_var=2 * space.steps, n_obj=2, n_ieq_constr=1, xl=0, xu=space.upper, vtype=int)
        if operators == "stepwise":
            chosen = {"sampling": UniformAndRandom(space), "crossover": StepCrossover(), "mutation": StepMutation()}
        elif operators == "paper":
            chosen = {
                "sampling": IntegerRandomSampling(),
                "crossover": SBX(prob=0.7, eta=7, vtype=float, repair=RoundingRepair()),
                "mutation": PM(prob=0.4, eta=15, vtype=float, repair=RoundingRepair()),
            }
        else:
            raise ValueError(f"operators is {operators!r}; allowed are 'stepwise' and 'paper'")
        self._algorithm = NSGA2(pop_size=population, eliminate_duplicates=self._duplicates, **chosen)
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._asked: Population | None = None

    def ask(self) -> list[Strategy]:
        """The next generation's strategies, none of them asked before; fewer than the population when few are left."""
        if self._asked is not None:
            raise RuntimeError("ask was called twice without a tell in between")
        asked = self._algorithm.ask()
        if asked is None or len(asked) == 0:
            return []
        self._asked = asked
        strategies = [self.space.decode(individual.X) for individual in asked]
        self._duplicates.seen.update(s.digest for s in strategies)
        return strategies

    def tell(self, objectives: Sequence[tuple[float, float] | None]) -> None:
        """Objectives of the strategies last asked for, in their order, lower is better; None where one failed."""
        if self._asked is None or len(objectives) != len(self._asked):
            raise RuntimeError(f"tell got {len(objectives)} objectives for {0 if self._asked is None else len(self._asked)} asked strategies")
        values = np.array([(_INFEASIBLE,) * 2 if o is None else o for o in objectives], dtype=float)
        violation = np.array([[1.0 if o is None else -1.0] for o in objectives])
        Evaluator().eval(StaticProblem(self._problem, F=values, G=violation), self._asked)
        self._algorithm.tell(infills=self._asked)
        self._asked = None


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Share of the box between (0, 0) and `reference` that the points dominate, in [0, 1]."""
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    if not inside:
        return 0.0
    return float(HV(ref_point=np.array(reference))(np.array(inside))) / (reference[0] * reference[1])
