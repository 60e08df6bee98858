"""What a search begins with and how it makes offspring: pymoo operators on genomes of a `SearchSpace`.

`paper` is the supplement of arXiv 2501.00375: random integers, SBX, polynomial mutation. `stepwise` is its section 3.3.2:
uniform and random strategies first, crossover and random-choice mutation that treat a step's genes as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling

from dato.strategy import Strategy
from search.optimize.space import SearchSpace

Operators = Literal["stepwise", "paper"]
SHARES, GOLDEN = (0.1, 0.2, 0.3, 0.15, 0.25, 0.05), 0.618034
"""Shares of full calls that `SpreadMix` begins with, in turn, and the step between its parts: multiples of it never bunch."""

WHOLE = 1 / 7
"""Chance that a gene of the whole run changes."""


def make_operators(kind: Operators, space: SearchSpace, given: Sequence[Strategy], *, spread: bool) -> dict[str, Any]:
    """Sampling, crossover and mutation as `pymoo.algorithms.moo.nsga2.NSGA2` takes them.

    Args:
        kind: "stepwise" or "paper".
        space: What a step may be.
        given: Strategies to begin with.
        spread: Begin with `SpreadMix` in place of `InitialMix`, where the operators are stepwise.
    """
    if kind == "stepwise":
        return {"sampling": (SpreadMix if spread else InitialMix)(space, given), "crossover": StepCrossover(space), "mutation": StepMutation(space)}
    if kind == "paper":
        return {
            "sampling": InitialMix(space, given, structured=False),
            "crossover": NotedSBX(prob=0.7, eta=7, vtype=float, repair=RoundingRepair()),
            "mutation": PM(prob=0.4, eta=15, vtype=float, repair=RoundingRepair()),
        }
    raise ValueError(f"search.operators is {kind!r}; allowed are 'stepwise' and 'paper'")


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
            rows.append(space.genome(depth, np.full(n, (2 * i) % (top[n] + 1)), sampler=i % len(space.samplers), length=-1 - i))
        while len(rows) < n_samples:
            shares = random_state.dirichlet(np.ones(top[0] + 1))
            depth = random_state.choice(top[0] + 1, size=n, p=shares)
            rest = random_state.integers(0, top[n:] + 1)
            rows.append(np.concatenate([depth, rest]))
        return np.array(rows, dtype=int)


class SpreadMix(InitialMix):
    """Given strategies first; then, in turn, strategies whose full calls lie together in one part of the run, and random ones.

    Both have few full calls, so that they cost little and lie where fronts do. The parts are spread over the run: where the full
    calls are needed differs between models (DeepCache, arXiv 2312.00858, centres them by hand), and a model learns it from these.

    Where samplers or numbers of steps are searched, what users try first is among them: of every three, one computes all of fewer
    steps, and one does so with both halves only at the first steps. Samplers take turns, and numbers of steps spread.
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
            row = np.concatenate([np.where(full, top[0], depth), random_state.integers(0, top[n:] + 1)])
            rows.append(row if len(top) == space.kinds * n else self._whole(i, start, row))
        return np.array(rows, dtype=int)

    def _whole(self, i: int, start: float, drawn: np.ndarray) -> np.ndarray:
        """The i-th genome where samplers or numbers of steps are searched: fewer steps, limited guidance, or what was drawn.

        Each of the three goes through samplers and numbers of steps by itself: few steps are where a good sampler saves most.
        """
        space, n = self.space, self.space.groups
        turn, kind = divmod(i, 3)
        # The pipeline's own sampler is known at its own steps: the others come first.
        order = sorted(range(len(space.samplers)), key=lambda k: space.samplers[k] is None)
        sampler = order[(turn + kind) % len(order)]
        length = int((start + GOLDEN * (turn + kind / 3)) % 1 * len(space.lengths))
        if kind == 2:
            drawn = drawn.copy()
            whole = [*([sampler] if len(space.samplers) > 1 else []), *([length] if len(space.lengths) > 1 else [])]
            drawn[space.kinds * n :] = whole
            return drawn
        alone = space.guidance.index("cond") if "cond" in space.guidance and kind == 1 else 0
        guidance = np.where(np.arange(n) < n / 3, 0, alone)
        return space.genome(np.full(n, len(space.depths) - 1), np.zeros(n, dtype=int), guidance, 0, sampler, length)


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
    """The genes of some groups change places: of those between two points, or, for half the pairs, of each group by chance.

    One- and two-point crossover alone keep what neighbouring steps do together, and rarely combine what distant ones do. Each gene
    of the whole run, its sampler and its number of steps, changes places with even chance.

    Args:
        space: What a run may be.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(2, 2)
        self.space = space

    def _do(self, problem: Problem, X: np.ndarray, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        pairs, n, kinds = X.shape[1], self.space.groups, self.space.kinds
        swapped = random_state.random((pairs, n)) < 0.5
        for k in np.flatnonzero(random_state.random(pairs) < 0.5):
            low, high = sorted(random_state.choice(n + 1, size=2, replace=False))
            swapped[k] = (np.arange(n) >= low) & (np.arange(n) < high)
        whole = problem.n_var - kinds * n
        rest = [random_state.random((pairs, whole)) < 0.5] if whole else []
        changes = np.concatenate([*[swapped] * kinds, *rest], axis=1)
        return np.stack([np.where(changes, X[1], X[0]), np.where(changes, X[0], X[1])])


class StepMutation(Mutation):
    """One gene and a half change on average: half of these to a neighbouring value, half to any.

    Only genes that have an effect count: a run of few steps has no genes in most groups. Each gene of the whole run changes in one
    child of seven.

    Args:
        space: What a run may be.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem: Problem, X: np.ndarray, *args: Any, random_state: np.random.Generator, **kwargs: Any) -> np.ndarray:
        top, whole = problem.xu.astype(int), problem.n_var - self.space.kinds * self.space.groups
        rates = np.full(X.shape, 1.5 / problem.n_var)
        if whole:
            for rate, genome in zip(rates, X, strict=True):
                active = self.space.active(genome)
                rate[:] = np.where(active, 1.5 / max(1, active.sum()), 0)
            rates[:, -whole:] = WHOLE
        chosen = random_state.random(X.shape) < rates
        anywhere = random_state.integers(0, top + 1, size=X.shape)
        beside = np.clip(X + random_state.choice([-1, 1], size=X.shape), 0, top)
        return np.where(chosen, np.where(random_state.random(X.shape) < 0.5, beside, anywhere), X)
