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
from dato.presets import is_preset
from dato.sampler import SAMPLERS
from dato.strategy import MAX_STEPS, Strategy
from search.evaluate.sources import read_sources


class VariantError(ValueError):
    """A variant that cannot be: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the pipeline.

    Attributes:
        name: In tables, unique among those compared.
        baseline: Steps, strategy and merging.
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
    def of(cls, strategy: Strategy, name: str = "", options: Options | None = None, row: tuple[str, str] = ("", ""), family: str = "strategy") -> Variant:
        """The pipeline with a strategy on, run with as many steps and the sampler that the strategy has."""
        name = name or strategy.digest
        return cls(name=name, baseline=Baseline(name=name, steps=len(strategy), strategy=strategy), options=options or Options(), row=row, family=family)

    @classmethod
    def unaccelerated(cls, steps: int) -> Variant:
        """The pipeline as it is, which every other variant is compared with."""
        return cls(name="unaccelerated", baseline=baselines.plain(steps), family="plain")

    def is_plain(self, steps: int) -> bool:
        """Whether its images are those of the unaccelerated pipeline, which makes so many steps."""
        b = self.baseline
        follows = b.strategy is not None and b.strategy.canonical() != Strategy.full(steps)
        return b.steps == steps and not follows and not b.merge_ratio

    @property
    def digest(self) -> str:
        """Identity of what it computes, whatever its name."""
        b, strategy = self.baseline, self.baseline.strategy
        content = {
            "steps": b.steps,
            "sampler": None,  # which is the strategy's: as when it was not, so that shards of before are found
            "merge_ratio": b.merge_ratio,
            "strategy": strategy.canonical().digest if strategy else None,
            "options": asdict(self.options) if strategy else None,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def strategy_variants(sources: Sequence[str], steps: int) -> list[Variant]:
    """Variants of what `search.evaluate.sources` reads, each run as it says, whatever its length.

    Presets without a sampler are for the pipeline's own `steps`: of another length they are resampled, and their name says so.
    """
    found = []
    for name, strategy in read_sources(sources, "strategy"):
        if len(strategy) != steps and strategy.sampler is None and is_preset(name):
            name = f"{name} ({len(strategy)} steps resampled to {steps})"
            strategy = strategy.resample(steps)
        found.append(Variant.of(strategy, name))
    return found


def rival_variants(steps: int, rivals: Mapping[str, Any]) -> list[Variant]:
    """The unaccelerated pipeline and the rivals of a configuration.

    Args:
        steps: Of the unaccelerated pipeline.
        rivals: ``fewer_steps`` and ``limited_guidance`` (samplers with their steps), ``tomesd`` (merge ratios), ``deepcache`` (intervals)
            and ``naive`` (pairs of interval and merge ratio).

    Raises:
        VariantError: A value is of the wrong form.
    """
    unknown = set(rivals) - {"fewer_steps", "limited_guidance", "tomesd", "deepcache", "naive"}
    if unknown:
        raise VariantError(f"rivals.{sorted(unknown)[0]} is unknown; allowed are fewer_steps, limited_guidance, tomesd, deepcache and naive")
    found = [Variant.unaccelerated(steps)]
    try:
        for name in rivals.get("fewer_steps") or ():
            sampler, count = _sampled(name, "fewer_steps")
            found.append(Variant.of(Strategy.full(count, sampler), name, family="fewer"))
        for name in rivals.get("limited_guidance") or ():
            sampler, count = _sampled(name, "limited_guidance")
            found.append(Variant.of(baselines.limited_guidance(count, sampler), f"{name}, limited guidance", family="limited"))
        found += [_merged(baselines.tomesd(steps, float(r)), "tomesd") for r in rivals.get("tomesd") or ()]
        for n in map(int, rivals.get("deepcache") or ()):
            found.append(Variant.of(Strategy.uniform(steps, n), f"DeepCache, every {n}", family="deepcache"))
        found += [_merged(baselines.deepcache_tomesd(steps, int(n), float(r)), "naive") for n, r in rivals.get("naive") or ()]
    except (TypeError, AttributeError) as error:
        raise VariantError(
            f"rivals is {dict(rivals)!r}, which has the wrong form ({error}); write fewer_steps: [DDIM-10], limited_guidance: [DPM++-8], "
            "tomesd: [0.3, 0.5], deepcache: [3, 5] and naive: [[3, 0.3], [5, 0.5]]"
        ) from None
    return found


def _sampled(name: str, key: str) -> tuple[str, int]:
    """Sampler and steps of a rival's name, such as DDIM-10."""
    sampler, _, count = name.rpartition("-")
    if sampler not in SAMPLERS or not (count.isdecimal() and count.isascii() and 1 <= int(count[:9]) <= MAX_STEPS):
        raise VariantError(
            f"rivals.{key} names {name!r}; write a sampler and its steps, such as DDIM-10: samplers are {', '.join(SAMPLERS)}, steps 1 to {MAX_STEPS}"
        )
    return sampler, int(count)


def _merged(baseline: Baseline, family: str) -> Variant:
    return Variant(name=baseline.name, baseline=baseline, family=family)


def unique(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, refused where two share a name; of two that compute the same, both stay and it is computed once."""
    names = [v.name for v in variants]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise VariantError(f"{twice[0]!r} is given twice; name it once")
    return list(variants)
