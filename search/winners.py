"""Which candidates of a search win or are promising, and the point that its hypervolume is measured from."""

from __future__ import annotations

from collections.abc import Sequence

from search.objectives import Objectives
from search.records import UNACCELERATED, Candidate, Measurement, SearchRecord


class SearchFailed(RuntimeError):
    """A search that cannot go on or has no winner: the message says why and what to do."""


def reference_point(record: SearchRecord) -> tuple[float, float]:
    """Where a hypervolume is measured from: twice the unaccelerated FID, and its latency, on the images of all candidates."""
    first = next((m.images for _, m in record.evaluated()), record.baselines[UNACCELERATED][1].images)
    plain = record.plain(first)
    return 2 * plain.fid, plain.latency_ms


def choose_winners(record: SearchRecord, winner_speedup: float, objectives: Objectives | None = None, images: int | None = None) -> dict[str, Candidate]:
    """`quality`, `balanced` and `fastest` from the front, of those measured on so many images; None for the most that any was.

    fastest: the fastest whose FID is no worse than the unaccelerated one's by more than its interval.
    quality: the lowest FID among those at least `winner_speedup` times faster, or of all where none is.
    balanced: the best of the weighted score FID + w x latency (Algorithm 1), w such that both objectives' ranges
    between those two weigh the same, or the search's own w. One candidate may win more than once.

    Raises `SearchFailed` where nothing was measured, or nothing keeps the search's limits.
    """
    wanted = objectives or Objectives()
    plain = record.plain(images or record.images)
    points = record.front(images)
    if not points:
        raise SearchFailed("no candidate could be measured, so there is no winner")
    points = [(c, m) for c, m in points if wanted.violation(m, plain) == 0]
    if not points:
        raise SearchFailed("no candidate keeps the limits of the search (max_fid, max_latency_ms, min_speedup, max_distance): relax them, or search on with more generations")
    spread = plain.fid_high - plain.fid if plain.fid_high == plain.fid_high else 0.0
    good = [(c, m) for c, m in points if m.fid <= plain.fid + spread]
    fastest = min(good or points, key=lambda p: p[1].latency_ms if good else p[1].fid)
    quick = [(c, m) for c, m in points if plain.latency_ms / m.latency_ms >= winner_speedup]
    quality = min(quick or points, key=lambda p: p[1].fid)
    between = [p for p in points if min(fastest[1].latency_ms, quality[1].latency_ms) <= p[1].latency_ms <= max(fastest[1].latency_ms, quality[1].latency_ms)]
    fids, times = [m.fid for _, m in between], [m.latency_ms for _, m in between]
    weight = (max(fids) - min(fids)) / (max(times) - min(times)) if max(times) > min(times) else 0.0
    if wanted.score_weight is not None:
        weight, between = wanted.score_weight, points
    balanced = min(between, key=lambda p: p[1].fid + weight * p[1].latency_ms)
    return {"quality": quality[0], "balanced": balanced[0], "fastest": fastest[0]}


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
