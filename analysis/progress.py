"""How a search stands: counts, front, best speedup at equal FID, utilisation and time left, from its record and its clock."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search.ledger import holder
from search.measurements import is_count
from search.records import UNACCELERATED, SearchRecord

_SILENT = 3.0
"""A gap between events of this many times the longest evaluation is a pause of the search, not work."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A search at one moment.

    Attributes:
        done: Candidates with a result, failed ones too.
        total: Candidates that the search asks for in all.
        generation: Generations that are complete.
        generations: Generations in all.
        front: Candidates that none beats in both FID and latency.
        hypervolume: After the last complete generation, or None.
        speedup: Best speedup at no worse FID than the unaccelerated pipeline's, or None where nothing has reached it.
        failures: Candidates that could not be measured.
        device_hours: Hours that devices spent evaluating candidates.
        utilisation: Share of the workers' time spent evaluating, while the search ran, or None where it is not known.
        left_s: Seconds to the last candidate at the pace of the last ones, or None.
        finished: Whether the search came to its end.
        running: Whether somebody is at work on it; None where that is not known.
    """

    done: int
    total: int
    generation: int
    generations: int
    front: int
    hypervolume: float | None
    speedup: float | None
    failures: int
    device_hours: float
    utilisation: float | None
    left_s: float | None
    finished: bool
    running: bool | None = None

    def lines(self) -> list[str]:
        """The same in words, a few to a line; of what is over in the past."""
        at_work = not self.finished and self.running is not False
        busy = "utilisation unknown" if self.utilisation is None else f"workers {'' if at_work else 'were '}{self.utilisation:.0%} busy"
        return [
            f"candidates {self.done}/{self.total}, generation {self.generation}/{self.generations}, failures {self.failures}, {self._what_is_left()}",
            f"front {self.front}, hypervolume {_text(self.hypervolume)}, {self._best()}",
            f"{busy}, {self.device_hours:.2f} device-hours",
        ]

    def _best(self) -> str:
        if self.speedup:
            return f"best {self.speedup:.2f}x at no worse FID"
        if self.finished or (self.total and self.done >= self.total):
            return "no candidate could be measured" if self.failures >= self.done else "no candidate reached the unaccelerated FID"
        return "no candidate at the unaccelerated FID yet" if self.done > self.failures else "no candidate measured yet"

    def _what_is_left(self) -> str:
        if self.finished:
            return "finished"
        if self.total and self.done >= self.total:
            return "stopped before the winners were validated" if self.running is False else "validating the winners"
        return f"{duration(self.left_s)} {'of work ' if self.running is False else ''}left"


def progress(record: SearchRecord, clock: Sequence[float] = (), now: float | None = None, older: int = 0, running: bool | None = None) -> Progress:
    """How a search stands.

    Args:
        record: From its ledger.
        clock: Seconds since the epoch of its ledger's events, as `read_clock` gives them; empty where they are not known.
        now: Seconds since the epoch; None for the time of the last event.
        older: How many results are older than the clock, as those of an earlier run of the search are for its driver.
        running: Whether somebody is at work on it; None where that is not known.
    """
    search, workers = record.config.get("search") or {}, _count((record.config.get("cluster") or {}).get("workers")) or 1
    generations = _count(search.get("generations"))
    total = generations * _count(search.get("population")) or len(record.candidates)
    watched = sum(map(record.device_seconds, list(record.results)[older:])) if older else record.device_seconds()
    active = _active(record, clock, now)
    utilisation = watched / (workers * active) if active and watched else None
    recent = len(record.results) - older
    pace = active / recent if active and recent else None
    return Progress(
        done=len(record.results),
        total=max(total, len(record.results)),
        generation=len(record.hypervolumes),
        generations=generations,
        front=len(record.front()),
        hypervolume=record.hypervolumes[-1] if record.hypervolumes else None,
        speedup=best_speedup(record),
        failures=sum(not m.ok for m in record.results.values()),
        device_hours=record.device_seconds() / 3600,
        utilisation=None if utilisation is None else min(1.0, utilisation),
        left_s=None if record.finished or pace is None else pace * max(0, total - len(record.results)),
        finished=record.finished,
        running=running,
    )


def _count(value: object) -> int:
    """A number of a record's configuration; 0 where it is none, as in a ledger that somebody changed."""
    return value if is_count(value) and isinstance(value, int) else 0


def best_speedup(record: SearchRecord) -> float | None:
    """Unaccelerated latency over that of the fastest candidate whose FID is no worse, or None."""
    if UNACCELERATED not in record.baselines:
        return None
    plain = record.plain(record.images)
    good = [m.latency_ms for _, m in record.evaluated(record.images) if m.fid <= plain.fid]
    return plain.latency_ms / min(good) if good else None


def read_clock(path: Path) -> list[float]:
    """When each event of a ledger was written; empty for a ledger of before events had a time."""
    stamps = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        at = json.loads(line).get("at")
        if isinstance(at, int | float) and math.isfinite(at):
            stamps.append(float(at))
    return stamps


def in_use(path: Path) -> bool | None:
    """Whether a driver on this machine holds the ledger; None where the system does not tell (only Linux does)."""
    return holder(path) is not None if os.path.exists("/proc/locks") else None


def duration(seconds: float | None) -> str:
    """A time in words: "2 h 05 min", "3 min", "40 s"."""
    if seconds is None:
        return "unknown time"
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min" if whole >= 3600 else f"{whole // 60} min" if whole >= 120 else f"{whole} s"


def _active(record: SearchRecord, clock: Sequence[float], now: float | None) -> float | None:
    """Seconds that the search was at work, without its pauses."""
    if len(clock) < 2:
        return None
    longest = max((m.seconds for m in record.results.values()), default=0.0)
    times = [*clock, now] if now and not record.finished else list(clock)
    limit = max(60.0, _SILENT * longest)
    return sum(gap for before, after in itertools.pairwise(times) if 0 <= (gap := after - before) <= limit) or None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
