"""What a search minimises, and what it may not exceed: a measurement to objectives and constraint violation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.fields import check, limited
from search.measurements import Measurement


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """FID and latency as two objectives, or Algorithm 1's weighted score of both as one, and limits.

    A candidate beyond a limit is infeasible: it loses against every candidate within, and the less it exceeds, the better.
    """

    latency_weight: float | None = limited(None, above=0)
    """w_m of Algorithm 1 (arXiv 2501.00375), FID points per ms: the only objective is FID + w_m x latency in ms. None for a front."""
    max_fid: float | None = limited(None, above=0)
    """Largest FID, at whatever number of images a candidate is compared."""
    max_latency_ms: float | None = limited(None, above=0)
    """Largest latency, ms per image."""
    min_speedup: float | None = limited(None, above=0)
    """Least speedup over the unaccelerated pipeline."""
    max_distance: float | None = limited(None, above=0)
    """Largest feature distance to the unaccelerated images: 0 is the same picture, 1 one as different as two unrelated ones."""

    def __post_init__(self) -> None:
        check(self, "search")

    @property
    def count(self) -> int:
        """How many objectives."""
        return 2 if self.latency_weight is None else 1

    def values(self, m: Measurement) -> tuple[float, ...]:
        """Objectives, lower is better, in FID points and ms."""
        return (m.fid, m.latency_ms) if self.latency_weight is None else (m.fid + self.latency_weight * m.latency_ms,)

    def bounds(self, plain: Measurement) -> tuple[float, float] | None:
        """FID and ms beyond which nothing is gained: twice the unaccelerated FID and its latency, or a limit; None for one objective."""
        if self.count == 1:
            return None
        latency = plain.latency_ms / (self.min_speedup or 1.0)
        return min(2 * plain.fid, self.max_fid or math.inf), min(latency, self.max_latency_ms or math.inf)

    def violation(self, m: Measurement, plain: Measurement) -> float:
        """By how much the limits are exceeded, as a sum of shares of each; 0 where all are kept.

        Raises ValueError where a feature distance is limited and the measurement has none.
        """
        excess = [0.0]
        if self.max_fid is not None:
            excess.append(m.fid / self.max_fid - 1)
        if self.max_latency_ms is not None:
            excess.append(m.latency_ms / self.max_latency_ms - 1)
        if self.min_speedup is not None:
            excess.append(self.min_speedup * m.latency_ms / plain.latency_ms - 1)
        if self.max_distance is not None:
            if m.feature_distance is None:
                raise ValueError("search.max_distance limits a feature distance that was not measured: set search.max_distance=null, or search anew with fresh_start=true")
            excess.append(m.feature_distance / self.max_distance - 1)
        return sum(max(0.0, e) for e in excess)
