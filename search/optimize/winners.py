"""Which candidates of a search win, and the point that its hypervolume is measured from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from search.measurements import Measurement, difference_in_words, fid_difference
from search.optimize.objectives import Objectives
from search.optimize.pareto import first_ranks
from search.records import UNACCELERATED, Candidate, SearchRecord, Winner

TOLERANCES = {"embedded": 0.1, "inception": 0.5}
"""Default of ``search.tolerance`` in FID points, by feature net.

embedded: the standard deviation of the unaccelerated model's own FID between sets of 100 images (`dato bench intervals`). inception:
about what saving or resizing the same images with another library changes (Parmar et al., arXiv 2104.11222).
"""
Points = Sequence[tuple[Candidate, Measurement]]


class SearchFailed(RuntimeError):
    """A search that cannot go on or has no winner: the message says why and what to do."""


def reference_point(record: SearchRecord) -> tuple[float, float]:
    """Where a hypervolume is measured from: twice the unaccelerated FID, and its latency, on the images of all candidates."""
    first = next((m.images for _, m in record.evaluated()), record.baselines[UNACCELERATED][1].images)
    plain = record.plain(first)
    return 2 * plain.fid, plain.latency_ms


def tolerance_of(config: dict[str, Any]) -> float:
    """By how many FID points a winner may be worse, of a search's configuration; the default of its feature net where it says null or is older than the key."""
    return tolerance_for(str((config.get("protocol") or {}).get("features", "embedded")), (config.get("search") or {}).get("tolerance"))


def tolerance_for(features: str, given: float | None) -> float:
    """The given tolerance, or the default of a feature net."""
    return float(given) if given is not None else TOLERANCES.get(features.partition(":")[0], TOLERANCES["inception"])


def compare_to_tolerance(m: Measurement, plain: Measurement, tolerance: float) -> Literal["passes", "fails", "undecided"]:
    """Whether a strategy is no worse than the unaccelerated pipeline by more than `tolerance` FID points, by the 95 % interval of the difference.

    passes: the upper end is within the tolerance. fails: the lower end is beyond it. undecided: anything between, and without an interval.
    """
    _, low, high = fid_difference(m, plain)
    if high <= tolerance:
        return "passes"
    return "fails" if low > tolerance else "undecided"


def passed(winner: Winner, tolerance: float) -> bool:
    """Whether a winner passed the check on fresh images."""
    return compare_to_tolerance(winner.fresh, winner.fresh_baseline, tolerance) == "passes"


def in_words(winner: Winner, tolerance: float) -> str:
    """What the fresh images say of a winner's quality, for people."""
    _, low, high = fid_difference(winner.fresh, winner.fresh_baseline)
    if low > 0:
        return "measurably worse than the unaccelerated pipeline" + (", within the tolerance" if high <= tolerance else "")
    if high < 0:
        return "measurably better than the unaccelerated pipeline"
    if high <= tolerance:
        return "no worse within the tolerance"
    return "no measurable difference, but not shown to be within the tolerance"


def in_order_of_speed(record: SearchRecord, tolerance: float, objectives: Objectives | None = None, images: int | None = None) -> list[Candidate]:
    """Candidates that may become `fastest`: within the limits and the tolerance on the search's images, the fastest first.

    Args:
        record: Of the search.
        tolerance: In FID points, for `compare_to_tolerance`.
        objectives: Their limits.
        images: Of those measured on so many images; None for the most that any was.
    """
    wanted, plain = objectives or Objectives(), record.plain(images or record.images)
    points = [p for p in record.evaluated(images or record.images) if wanted.violation(p[1], plain) == 0]
    good = [p for p in points if compare_to_tolerance(p[1], plain, tolerance) == "passes"]
    return [c for c, _ in sorted(good, key=lambda p: (p[1].latency_ms, p[0].number))]


def choose_winners(
    record: SearchRecord,
    winner_speedup: float,
    objectives: Objectives | None = None,
    images: int | None = None,
    *,
    speedups: Sequence[float] = (),
    tolerance: float = TOLERANCES["embedded"],
) -> dict[str, Candidate]:
    """The winners that need no check of their own: `quality`, `balanced`, and one for each given speedup, by alias.

    quality: the lowest FID among those at least `winner_speedup` times faster, or of all where none is.
    balanced: the best of the weighted score FID + w x latency (Algorithm 1), w such that both objectives' ranges between `quality` and
    the first that may be `fastest` weigh the same, or the search's own w.
    at-2x and so on: the lowest FID among those at least so fast; none where nothing is. One candidate may win more than once.

    Args:
        record: Of the search.
        winner_speedup: Times faster than the unaccelerated pipeline.
        objectives: Limits and the search's own w.
        images: Of those measured on so many images; None for the most that any was.
        speedups: For the aliases ``at-<speedup>x``.
        tolerance: In FID points, of `fastest`.

    Raises:
        SearchFailed: Nothing was measured, or nothing keeps the search's limits.
    """
    wanted = objectives or Objectives()
    plain = record.plain(images or record.images)
    everyone = record.evaluated(images or record.images)
    if not everyone:
        raise SearchFailed("no candidate could be measured, so there is no winner")
    points = first_ranks([(c, m) for c, m in everyone if wanted.violation(m, plain) == 0], 1)
    if not points:
        raise SearchFailed("no candidate keeps the limits of the search (max_fid, max_latency_ms, min_speedup, max_distance): relax them, or search on with more generations")

    def at_least(speedup: float) -> list[tuple[Candidate, Measurement]]:
        return [(c, m) for c, m in points if plain.latency_ms / m.latency_ms >= speedup]

    quality = min(at_least(winner_speedup) or points, key=_fid)
    first = next(iter(in_order_of_speed(record, tolerance, wanted, images)), None)
    measured = {c.number: (c, m) for c, m in record.evaluated(images or record.images)}
    chosen = {"quality": quality[0], "balanced": _balanced(points, quality, measured[first.number] if first else min(points, key=_fid), wanted)}
    return chosen | {alias_at(s): min(quick, key=_fid)[0] for s in speedups if (quick := at_least(s))}


def alias_at(speedup: float) -> str:
    """The alias of the winner at a given speedup: at-2x, at-2-5x."""
    return f"at-{speedup:g}x".replace(".", "-")


def aliases_of(record: SearchRecord) -> dict[int, list[str]]:
    """What each winner won, by candidate number, in the order of the winners."""
    found: dict[int, list[str]] = {}
    for alias, winner in record.winners.items():
        found.setdefault(winner.candidate.number, []).append(alias)
    return found


def _fid(point: tuple[Candidate, Measurement]) -> float:
    return point[1].fid


def _balanced(points: Points, quality: tuple[Candidate, Measurement], fastest: tuple[Candidate, Measurement], wanted: Objectives) -> Candidate:
    ends = sorted((quality[1].latency_ms, fastest[1].latency_ms))
    between = [p for p in points if ends[0] <= p[1].latency_ms <= ends[1]] or [quality]
    fids, times = [m.fid for _, m in between], [m.latency_ms for _, m in between]
    weight = (max(fids) - min(fids)) / (max(times) - min(times)) if max(times) > min(times) else 0.0
    if wanted.latency_weight is not None:
        weight, between = wanted.latency_weight, list(points)
    return min(between, key=lambda p: p[1].fid + weight * p[1].latency_ms)[0]


def closest(record: SearchRecord) -> tuple[Candidate, Measurement, Measurement] | None:
    """Of the candidates checked on fresh images the one whose difference's upper end is lowest, with its measurement and the unaccelerated one's.

    Where none was checked, of those measured in the search on the most images; None where nothing is.
    """
    tried = []
    for number, more in record.fresh.items():
        if number >= 0 and (ok := {n: m for n, m in more.items() if m.ok}):
            tried.append((record.candidates[number], ok[max(ok)], record.fresh[-1][max(ok)]))
    if not tried:
        tried = [(c, m, record.plain(m.images)) for c, m in record.evaluated(record.images)]
    return min(tried, key=lambda t: (fid_difference(t[1], t[2])[2], t[0].number), default=None)


def closest_in_words(record: SearchRecord) -> str | None:
    """What `closest` found; None where it found nothing."""
    found = closest(record)
    if found is None:
        return None
    candidate, m, plain = found
    where = "fresh images" if candidate.number in record.fresh else "images of the search"
    return f"the closest was candidate {candidate.number}: {plain.latency_ms / m.latency_ms:.2f}x, FID {difference_in_words(m, plain)} on {m.images} {where}"
