"""What a search runs, what it is after, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from search.objectives import Objectives

STALLED = 1e-3
"""A hypervolume that grew by less than this share of itself has stalled."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search ends at the first of its limits."""

    generations: int
    """Generations; in a steady-state search, populations of candidates."""
    population: int
    mode: Literal["generational", "steady"] = "generational"
    """Steady: no worker waits for a generation's end, and which candidates come depends on who finishes first."""
    objectives: Objectives = field(default_factory=Objectives)
    latency: Literal["measured", "predicted"] = "measured"
    """Where objectives take latency from: each candidate's own images, or the cost table of the first worker."""
    max_candidates: int | None = None
    max_minutes: float | None = None
    """Of this run of the command; the winners' validation comes on top."""
    max_device_hours: float | None = None
    """Hours that devices spent evaluating, those before an interruption included."""
    stalled: int | None = None
    """Generations in a row without growth of the hypervolume by a thousandth."""
    promoted_ranks: int = 1
    """Non-dominated ranks that are measured on more images, where the protocol has fidelities."""
    winner_speedup: float = 3.0
    """The winner `quality` is the best FID at this speedup or more."""

    def __post_init__(self) -> None:
        for name in ("generations", "promoted_ranks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"search.{name} is {value!r}; give at least 1")
        for name in ("max_candidates", "max_minutes", "max_device_hours", "stalled"):
            value = getattr(self, name)
            whole = name in ("max_candidates", "stalled")
            if value is not None and (not isinstance(value, int if whole else int | float) or not value > 0):
                raise ValueError(f"search.{name} is {value!r}; give {'an integer' if whole else 'a number'} above 0, or null for no limit")
        for name, allowed in (("mode", ("generational", "steady")), ("latency", ("measured", "predicted"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"search.{name} is {getattr(self, name)!r}; allowed are {' and '.join(allowed)}")
