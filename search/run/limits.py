"""When a search ends."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

from search.records import SearchRecord
from search.run.settings import SearchPlan

STALLED = 1e-3
"""A hypervolume that grew by less than this share of itself has stalled."""


def has_stalled(hypervolumes: Sequence[float], patience: int | None) -> bool:
    """Whether the mean over the last `patience` generations grew by less than `STALLED` over the mean of as many before; never for None.

    Means, because one generation may find nothing, or a lucky measurement, in a search that still goes on.
    """
    if patience is None or len(hypervolumes) < 2 * patience:
        return False
    before, now = hypervolumes[-2 * patience : -patience], hypervolumes[-patience:]
    return statistics.fmean(now) <= statistics.fmean(before) * (1 + STALLED)


class Limits:
    """The limits of a plan; minutes count from here."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan, self._began = plan, time.monotonic()

    @property
    def candidates(self) -> float:
        """How many candidates there may be."""
        return min(self._plan.generations * self._plan.population, self._plan.max_candidates or math.inf)

    def are_reached(self, record: SearchRecord, asked: int) -> bool:
        """Whether nothing is to be asked for after so many candidates. Only time makes it differ when a search is replayed."""
        plan = self._plan
        if asked < len(record.candidates):
            return False  # was asked for before: the limits allowed it then
        if asked >= self.candidates:
            return True
        if plan.max_minutes and time.monotonic() - self._began >= 60 * plan.max_minutes:
            return True
        if plan.max_device_hours and record.device_seconds() >= 3600 * plan.max_device_hours:
            return True
        return has_stalled(record.hypervolumes, plan.patience)
