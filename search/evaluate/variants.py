"""Ways to run the pipeline, under names: a search's candidates and the strategies of a comparison; `search.evaluate.rivals` has more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from dato import baselines
from dato.baselines import Baseline
from dato.options import Options
from dato.presets import is_preset
from dato.strategy import Strategy
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
        return b.steps == steps and not (follows or b.merge_ratio or b.cache)

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
            **({"cache": [b.cache.tool, b.cache.setting], "cache_sampler": b.sampler.document() if b.sampler else None} if b.cache else {}),
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


def unique(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, refused where two share a name; of two that compute the same, both stay and it is computed once."""
    names = [v.name for v in variants]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise VariantError(f"{twice[0]!r} is given twice; name it once")
    return list(variants)
