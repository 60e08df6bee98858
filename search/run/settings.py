"""What a search runs, what it is after, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from search.optimize.objectives import Objectives


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search ends at the first of its limits."""

    generations: int
    """Generations; in an asynchronous search, populations of candidates."""
    population: int
    mode: Literal["generational", "asynchronous"] = "generational"
    """Asynchronous: no worker waits for a generation's end, and which candidates come depends on who finishes first."""
    objectives: Objectives = field(default_factory=Objectives)
    latency: Literal["measured", "predicted"] = "measured"
    """Where objectives take latency from: each candidate's own images, or the cost table of the first worker."""
    max_candidates: int | None = None
    max_minutes: float | None = None
    """Of this run of the command; the winners' validation comes on top."""
    max_device_hours: float | None = None
    """Hours that devices spent evaluating, those before an interruption included."""
    patience: int | None = None
    """Generations whose mean hypervolume is compared with that of as many before: the search ends where it grew by less than a thousandth."""
    promote_ranks: int = 1
    """Non-dominated ranks that are measured on more images, where the protocol has fidelities."""
    winner_speedup: float = 3.0
    """The winner `quality` is the best FID at this speedup or more."""
    winner_speedups: tuple[float, ...] = ()
    """Further winners, named at-2x and so on: the lowest FID at each of these speedups or more."""
    tolerance: float = 0.1
    """By how many FID points `fastest` may be worse than the unaccelerated pipeline, by the upper end of the difference's 95 % interval."""
    max_fresh_images: int | None = None
    """Fresh images at most that a candidate for `fastest` is checked on; None for four times the images of the protocol."""

    def __post_init__(self) -> None:
        for name in ("generations", "promote_ranks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"search.{name} is {value!r}; give at least 1")
        object.__setattr__(self, "winner_speedups", tuple(self.winner_speedups))
        if any(not isinstance(s, int | float) or isinstance(s, bool) or not s > 1 for s in self.winner_speedups):
            raise ValueError(f"search.winner_speedups is {list(self.winner_speedups)!r}; give numbers above 1, such as [2, 4, 8], or [] for none")
        if not isinstance(self.tolerance, int | float) or isinstance(self.tolerance, bool) or not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"search.tolerance is {self.tolerance!r}; give FID points of at least 0")
        for name in ("max_candidates", "max_minutes", "max_device_hours", "patience", "max_fresh_images"):
            value = getattr(self, name)
            whole = name in ("max_candidates", "patience", "max_fresh_images")
            if value is not None and (not isinstance(value, int if whole else int | float) or not value > 0):
                raise ValueError(f"search.{name} is {value!r}; give {'an integer' if whole else 'a number'} above 0, or null for no limit")
        for name, allowed in (("mode", ("generational", "asynchronous")), ("latency", ("measured", "predicted"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"search.{name} is {getattr(self, name)!r}; allowed are {' and '.join(allowed)}")
