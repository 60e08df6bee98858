"""What a comparison compares: strategies and the paper's rivals, each with its token options, under one name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dato import baselines
from dato.baselines import Baseline
from dato.options import Options
from dato.sampler import SAMPLERS
from search.evaluate.sources import read_sources


class EntryError(ValueError):
    """An entry that cannot be: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One way to run the pipeline.

    Attributes:
        name: In tables, unique among those compared.
        baseline: Sampler, steps, strategy and merging.
        options: How tokens are chosen.
        family: One of `search.records.FAMILIES`.
        row: Labels of its place in an ablation's table: row, column.
    """

    name: str
    baseline: Baseline
    options: Options = field(default_factory=Options)
    family: str = "strategy"
    row: tuple[str, str] = ("", "")

    @property
    def digest(self) -> str:
        """Identity of what it computes, whatever its name."""
        b, strategy = self.baseline, self.baseline.strategy
        content = {
            "steps": b.steps,
            "sampler": b.sampler,
            "merge_ratio": b.merge_ratio,
            "strategy": strategy.canonical().digest if strategy else None,
            "options": asdict(self.options) if strategy else None,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def strategy_entries(sources: Sequence[str], steps: int) -> list[Entry]:
    """Entries of what `search.sources` reads; strategies of another length are resampled, and their name says so."""
    found = []
    for name, strategy in read_sources(sources, "strategy"):
        if len(strategy) != steps:
            name = f"{name} ({len(strategy)} steps resampled to {steps})"
            strategy = strategy.resample(steps)
        found.append(Entry(name=name, baseline=Baseline(name=name, steps=steps, strategy=strategy)))
    return found


def rival_entries(steps: int, rivals: Mapping[str, Any]) -> list[Entry]:
    """The unaccelerated pipeline and the rivals of a configuration.

    Args:
        steps: Of the unaccelerated pipeline.
        rivals: ``fewer_steps`` (samplers with their steps), ``tomesd`` (merge ratios), ``deepcache`` (intervals) and ``naive``
            (pairs of interval and merge ratio).

    Raises:
        EntryError: A value is of the wrong form.
    """
    unknown = set(rivals) - {"fewer_steps", "tomesd", "deepcache", "naive"}
    if unknown:
        raise EntryError(f"rivals.{sorted(unknown)[0]} is unknown; allowed are fewer_steps, tomesd, deepcache and naive")
    found = [Entry(name="unaccelerated", baseline=baselines.plain(steps), family="plain")]
    try:
        for name in rivals.get("fewer_steps") or ():
            sampler, _, count = name.rpartition("-")
            if sampler not in SAMPLERS or not count.isdecimal():
                raise EntryError(f"rivals.fewer_steps names {name!r}; write a sampler and its steps, such as DDIM-10: samplers are {', '.join(SAMPLERS)}")
            found.append(_entry(baselines.fewer_steps(sampler, int(count)), "fewer"))
        found += [_entry(baselines.tomesd(steps, float(r)), "tomesd") for r in rivals.get("tomesd") or ()]
        found += [_entry(baselines.deepcache(steps, int(n)), "deepcache") for n in rivals.get("deepcache") or ()]
        found += [_entry(baselines.deepcache_tomesd(steps, int(n), float(r)), "naive") for n, r in rivals.get("naive") or ()]
    except (TypeError, AttributeError) as error:
        raise EntryError(
            f"rivals is {dict(rivals)!r}, which has the wrong form ({error}); write fewer_steps: [DDIM-10], "
            "tomesd: [0.3, 0.5], deepcache: [3, 5] and naive: [[3, 0.3], [5, 0.5]]"
        ) from None
    return found


def _entry(baseline: Baseline, family: str) -> Entry:
    if baseline.steps < 1:
        raise EntryError(f"rivals has {baseline.steps} steps; give at least 1")
    return Entry(name=baseline.name, baseline=baseline, family=family)


def unique(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, refused where two share a name; of two that compute the same, both stay and it is computed once."""
    names = [e.name for e in entries]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise EntryError(f"{twice[0]!r} is given twice; name it once")
    return list(entries)
