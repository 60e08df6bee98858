"""Points that none beats in both objectives, and the hypervolume that they dominate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.measurements import Measurement
from search.records import Candidate


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Share of the box between (0, 0) and `reference` that the points dominate, in [0, 1]."""
    from pymoo.indicators.hv import HV  # whoever only takes over a strategy has no pymoo

    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    if not inside:
        return 0.0
    return float(HV(ref_point=np.array(reference))(np.array(inside))) / (reference[0] * reference[1])


def first_ranks(left: Sequence[tuple[Candidate, Measurement]], ranks: int) -> list[tuple[Candidate, Measurement]]:
    """The first non-dominated ranks in latency and FID, the best rank first."""
    chosen: list[tuple[Candidate, Measurement]] = []
    for _ in range(ranks):
        best, lowest = [], float("inf")
        for candidate, m in sorted(left, key=lambda p: (p[1].latency_ms, p[1].fid, p[0].number)):
            if m.fid < lowest:
                best.append((candidate, m))
                lowest = m.fid
        taken = {c.number for c, _ in best}
        left = [p for p in left if p[0].number not in taken]
        chosen += best
    return chosen
