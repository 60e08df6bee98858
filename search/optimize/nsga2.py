"""NSGA-II as ask and tell, a generation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from pymoo.core.population import Population

from dato.strategy import Strategy
from search.optimize.evolution import Evolution, Settings


class Nsga2:
    """Asks for strategies and is told their objectives, a generation at a time.

    The sequence of asks depends only on the seed and on what was told, so replaying recorded values repeats a search.

    Args:
        **settings: As for `Evolution`.
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self.settings, self._evolution = settings, Evolution(**settings)
        self._asked: Population | None = None
        self.bounds: tuple[float, float] | None = None
        """Objectives beyond which nothing is gained, for the screen; known once the unaccelerated pipeline is measured."""

    def ask(self) -> list[Strategy]:
        """The next generation's strategies, none of them asked before; fewer than the population when few are left."""
        if self._asked is not None:
            raise RuntimeError("ask was called twice without a tell in between")
        evolution, begun = self._evolution, self._evolution.begun
        asked = evolution.make(evolution.population * (evolution.surplus if begun else 1))
        if len(asked) == 0:
            return []
        self._asked = evolution.pick(asked, evolution.population, self.bounds) if begun else asked
        return evolution.hand_out(self._asked)

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        """Take in what the strategies last asked for gave, in their order.

        Args:
            objectives: Lower is better; None where one failed.
            violations: By how much each exceeds its constraints, 0 for not at all; None for no constraints.
        """
        if self._asked is None or len(objectives) != len(self._asked):
            raise RuntimeError(f"tell got {len(objectives)} objectives for {0 if self._asked is None else len(self._asked)} asked strategies")
        self._evolution.take(self._asked, objectives, violations or [0.0] * len(objectives))
        self._evolution.survive(self._asked)
        self._asked = None

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """Digests of the strategies that one asked for last was crossed from; none for an initial one."""
        return self._evolution.parents(strategy)
