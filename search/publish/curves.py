"""How a search went, generation by generation: what MLflow draws as curves, by metric name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from search.measurements import Measurement, fid_difference, is_number
from search.optimize.winners import alias_at
from search.records import UNACCELERATED, SearchRecord, Winner

SPEEDUPS = (2.0, 3.0, 5.0)
"""Where a search names no `search.winner_speedups`."""


def curves(record: SearchRecord) -> dict[str, float]:
    """What the parent run shows of a record as it was at the end of a generation; NaN where there is nothing yet.

    speedup: of the fastest candidate whose FID is no worse than the unaccelerated pipeline's.
    best_fid_difference/at-2x and so on: the lowest FID less the unaccelerated one at no less than that speedup.
    progress/...: counts and the time that devices spent.

    Each candidate counts by what was measured on the most images, against the unaccelerated pipeline on as many: where only some were
    measured on more, the others count all the same.
    """
    points = list(_points(record))
    found = {"hypervolume": record.hypervolumes[-1] if record.hypervolumes else math.nan}
    found["speedup"] = max((speedup for speedup, difference in points if difference <= 0), default=math.nan)
    for least in _speedups(record.config):
        found[f"best_fid_difference/{alias_at(least)}"] = min((difference for speedup, difference in points if speedup >= least), default=math.nan)
    hours, gpus = record.device_seconds() / 3600, (record.config.get("cluster") or {}).get("gpus")
    found |= {
        "progress/candidates": len(record.results),
        "progress/failures": sum(not m.ok for m in record.results.values()),
        "progress/front": len(record.front()),
        "progress/device_hours": hours,
    }
    return found | ({"progress/gpu_hours": gpus * hours} if is_number(gpus) and gpus else {})


def final_metrics(record: SearchRecord) -> dict[str, float]:
    """The two figures by which searches are sorted: of `fastest` on fresh images. What else there is of winners is with their own runs and models."""
    won = record.winners.get("fastest")
    return {f"fastest/{k}": v for k, v in fresh_figures(won).items() if k in ("speedup", "fid_difference")} if won else {}


def fresh_figures(winner: Winner) -> dict[str, float]:
    """A winner's figures on fresh images, which chose nothing; NaN ends where an interval is missing."""
    difference, low, high = fid_difference(winner.fresh, winner.fresh_baseline)
    figures = {"speedup": winner.speedup, "latency_ms": winner.fresh.latency_ms, "fid": winner.fresh.fid, "images": float(winner.fresh.images)}
    return figures | {"fid_difference": difference, "fid_difference_low": low, "fid_difference_high": high}


def latest(record: SearchRecord, number: int) -> Measurement:
    """A candidate's measurement on the most images."""
    return max((m for m in (record.results[number], *record.promotions.get(number, {}).values()) if m.ok), key=lambda m: m.images, default=record.results[number])


def _points(record: SearchRecord) -> Iterator[tuple[float, float]]:
    """Speedup and FID difference of each candidate that was measured."""
    if UNACCELERATED not in record.baselines:
        return
    for number in record.results:
        if (m := latest(record, number)).ok:
            plain = record.plain(m.images)
            yield plain.latency_ms / m.latency_ms, m.fid - plain.fid


def _speedups(config: dict[str, Any]) -> Sequence[float]:
    given = (config.get("search") or {}).get("winner_speedups")
    return [s for s in given if is_number(s)] if given else SPEEDUPS
