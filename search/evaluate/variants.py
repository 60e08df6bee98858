"""Ways to run the pipeline, under names: a search's candidates, the strategies of a comparison and their rivals."""

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
from dato.strategy import Strategy
from search.evaluate.sources import read_sources


class VariantError(ValueError):
    """A variant that cannot be: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class Variant:
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

    @classmethod
    def of(cls, strategy: Strategy, name: str = "", options: Options | None = None, row: tuple[str, str] = ("", "")) -> Variant:
        """The pipeline with a strategy on."""
        name = name or strategy.digest
        return cls(name=name, baseline=Baseline(name=name, steps=len(strategy), strategy=strategy), options=options or Options(), row=row)

    @classmethod
    def unaccelerated(cls, steps: int) -> Variant:
        """The pipeline as it is, which every other variant is compared with."""
        return cls(name="unaccelerated", baseline=baselines.plain(steps), family="plain")

    @property
    def plain(self) -> bool:
        """Whether its images are the unaccelerated pipeline's."""
        b = self.baseline
        follows = b.strategy is not None and b.strategy.canonical() != Strategy.full(b.steps).canonical()
        return not (follows or b.sampler or b.merge_ratio)

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


def strategy_variants(sources: Sequence[str], steps: int) -> list[Variant]:
    """Variants of what `search.evaluate.sources` reads; strategies of another length are resampled, and their name says so."""
    found = []
    for name, strategy in read_sources(sources, "strategy"):
        if len(strategy) != steps:
            name = f"{name} ({len(strategy)} steps resampled to {steps})"
            strategy = strategy.resample(steps)
        found.append(Variant.of(strategy, name))
    return found


def rival_variants(steps: int, rivals: Mapping[str, Any]) -> list[Variant]:
    """The unaccelerated pipeline and the rivals of a configuration.

    Args:
        steps: Of the unaccelerated pipeline.
        rivals: ``fewer_steps`` (samplers with their steps), ``tomesd`` (merge ratios), ``deepcache`` (intervals) and ``naive``
            (pairs of interval and merge ratio).

    Raises:
        VariantError: A value is of the wrong form.
    """
    unknown = set(rivals) - {"fewer_steps", "tomesd", "deepcache", "naive"}
    if unknown:
        raise VariantError(f"rivals.{sorted(unknown)[0]} is unknown; allowed are fewer_steps, tomesd, deepcache and naive")
    found = [Variant.unaccelerated(steps)]
    try:
        for name in rivals.get("fewer_steps") or ():
            sampler, _, count = name.rpartition("-")
            if sampler not in SAMPLERS or not count.isdecimal():
                raise VariantError(f"rivals.fewer_steps names {name!r}; write a sampler and its steps, such as DDIM-10: samplers are {', '.join(SAMPLERS)}")
            found.append(_rival(baselines.fewer_steps(sampler, int(count)), "fewer"))
        found += [_rival(baselines.tomesd(steps, float(r)), "tomesd") for r in rivals.get("tomesd") or ()]
        found += [_rival(baselines.deepcache(steps, int(n)), "deepcache") for n in rivals.get("deepcache") or ()]
        found += [_rival(baselines.deepcache_tomesd(steps, int(n), float(r)), "naive") for n, r in rivals.get("naive") or ()]
    except (TypeError, AttributeError) as error:
        raise VariantError(
            f"rivals is {dict(rivals)!r}, which has the wrong form ({error}); write fewer_steps: [DDIM-10], "
            "tomesd: [0.3, 0.5], deepcache: [3, 5] and naive: [[3, 0.3], [5, 0.5]]"
        ) from None
    return found


def _rival(baseline: Baseline, family: str) -> Variant:
    if baseline.steps < 1:
        raise VariantError(f"rivals has {baseline.steps} steps; give at least 1")
    return Variant(name=baseline.name, baseline=baseline, family=family)


def unique(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, refused where two share a name; of two that compute the same, both stay and it is computed once."""
    names = [v.name for v in variants]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise VariantError(f"{twice[0]!r} is given twice; name it once")
    return list(variants)
