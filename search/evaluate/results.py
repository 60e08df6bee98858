"""From shards to results: metrics and latencies with intervals, differences to the unaccelerated model, equal latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from search.evaluate.measure import Metrics, to_measurement
from search.evaluate.shards import Shard
from search.evaluate.variants import Variant
from search.metrics.frechet import frechet
from search.metrics.intervals import Value
from search.metrics.moments import Moments
from search.metrics.similarity import DISTANCE, PlainFeatures, feature_distance
from search.records import FAMILIES

EVALUATION_SCHEMA = "dato.evaluation/1"
_UNKNOWN = Value(value=float("nan"))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a comparison found out about one variant.

    Attributes:
        name: The variant's.
        family: The variant's.
        row: The variant's.
        steps: Sampler steps.
        strategy: Its steps as text, or "".
        sampler: That its strategy is for, or "" for the model's own.
        images: How many; metrics of different counts do not compare.
        metrics: By metric name.
        differences: Metric less the unaccelerated model's, on the same prompts and seeds; of similarities, which are to its images already, none.
        latency: Milliseconds per image, median over batches; low and high are the extremes.
        speedup: Median over batches of the unaccelerated latency over this one's on the same batch, with a 95 % interval.
        equal_latency: FID less that of the best rival with fewer steps at this latency; None outside the measured range.
        parts_ms: Medians in text_encoder, unet or transformer, and vae.
        calls_by_depth: Calls of the UNet or transformer in one run.
        timed_apart: Whether it was timed in another run than the unaccelerated model.
        device: Where.
        seconds: Computing time.
        error: Why there is nothing, or None.
    """

    name: str
    family: str
    row: tuple[str, str] = ("", "")
    steps: int = 0
    strategy: str = ""
    sampler: str = ""
    images: int = 0
    metrics: Mapping[str, Value] = field(default_factory=dict)
    differences: Mapping[str, Value] = field(default_factory=dict)
    latency: Value = _UNKNOWN
    speedup: Value = _UNKNOWN
    equal_latency: Value | None = None
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    calls_by_depth: Mapping[str, int] = field(default_factory=dict)
    timed_apart: bool = False
    device: str = ""
    seconds: float = 0.0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: without what leaving out groups gave, NaN as null."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if k != "left_out"}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def compare_to_plain(
    variants: Sequence[Variant], shards: Mapping[str, Sequence[Shard]], metrics: Metrics, errors: Mapping[str, str]
) -> list[Result]:
    """Results of the variants, the unaccelerated one first.

    Args:
        variants: What was compared; the first of family "plain" is what others are compared with.
        shards: By variant digest.
        metrics: What to compute.
        errors: By variant name.
    """
    first = next(v for v in variants if v.family == "plain")
    plain = shards[first.digest] if first.name not in errors else []
    features = PlainFeatures.of_shards(plain)
    base: dict[str, Value] = {}
    results = []
    for variant in sorted(variants, key=lambda v: v is not first):
        strategy = variant.baseline.strategy
        common: dict[str, Any] = {
            "name": variant.name,
            "family": variant.family,
            "row": variant.row,
            "steps": variant.baseline.steps,
            "strategy": str(strategy) if strategy else "",
            "sampler": str(strategy.sampler) if strategy and strategy.sampler else "",
        }
        if variant.name in errors:
            results.append(Result(**common, error=errors[variant.name]))
            continue
        mine = shards[variant.digest]
        values = metrics.of(mine)
        if variant is first:
            base = values
        elif distance := feature_distance(mine, features):
            values[DISTANCE] = distance
        m = to_measurement(mine, values)
        results.append(
            Result(
                **common,
                images=m.images,
                metrics=values,
                differences={k: v.minus(base[k]) for k, v in values.items() if k in base and variant is not first},
                latency=Value(value=m.latency_ms, low=m.latency_low_ms, high=m.latency_high_ms),
                speedup=speedup([ms for s in plain for ms in s.batch_ms], [ms for s in mine for ms in s.batch_ms]) if plain else _UNKNOWN,
                parts_ms=m.parts_ms,
                calls_by_depth=m.calls_by_depth,
                timed_apart=bool(plain) and {s.session for s in mine} != {s.session for s in plain},
                device=m.device,
                seconds=m.seconds,
            )
        )
    return [replace(r, equal_latency=at_equal_latency(r, results)) for r in results]


def fid_by_images(shards: Sequence[Shard], reference: Moments, least: int = 10) -> dict[int, float]:
    """FID of the first n images for n doubling from `least` up to all of them: few images bias it upwards."""
    features = torch.cat([s.features for s in shards])
    counts = [least * 2**i for i in range(32) if least * 2**i < len(features)]
    return {n: frechet(reference, features[:n]) for n in [*counts, len(features)]}


def speedup(plain_ms: Sequence[float], ms: Sequence[float]) -> Value:
    """Median over batches of the ratio on the same batch, with a 95 % interval by resampling batches."""
    ratios = torch.tensor([a / b for a, b in zip(plain_ms, ms, strict=True)], dtype=torch.float64)
    value = float(ratios.quantile(0.5))
    if len(ratios) < 3:
        return Value(value=value)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([ratios[torch.randint(len(ratios), (len(ratios),), generator=generator)].quantile(0.5) for _ in range(1000)])
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Value(value=value, low=low, high=high)


def at_equal_latency(result: Result, results: Sequence[Result]) -> Value | None:
    """FID of a result less the FID that fewer steps reach in the same time.

    The rivals are the unaccelerated model and every measured number of steps of every sampler, without those that another
    one beats in both; between two of them, FID is interpolated over latency. None for rivals themselves, outside the range
    of their latencies, or without FID.
    """
    if result.error or "fid" not in result.metrics or result.family in ("plain", "fewer"):
        return None
    reached = _reached([r for r in results if r.family in ("plain", "fewer")], result.latency.value)
    return result.metrics["fid"].minus(reached) if reached else None


def at_speedups(results: Sequence[Result], speedups: Sequence[float] = (1.5, 2, 3, 4, 6, 8, 10)) -> dict[str, dict[float, Value | None]]:
    """The strategies against each kind of rival at equal latency: by kind, by speedup.

    The FID of the best strategy that is at least so fast, less what the kind reaches in the same time: that of its rivals, and
    of the unaccelerated model, interpolated over latency as in `at_equal_latency`. The strategies' own is not interpolated.
    The best of both sides are chosen on the images that they are judged on, which favours whichever has more to choose from.
    Negative is better. None where no rival of the kind, or no strategy, is so fast.
    """
    measured = [r for r in results if r.error is None and "fid" in r.metrics]
    plain = [r for r in measured if r.family == "plain"]
    kinds: dict[str, list[Result]] = {}
    for r in measured:
        if r.family not in ("plain", "strategy"):
            # Samplers are rivals of their own.
            sampler = f"{r.name.rpartition('-')[0]}, " if r.family in ("fewer", "limited") else ""
            kinds.setdefault(sampler + FAMILIES[r.family], []).append(r)
    found: dict[str, dict[float, Value | None]] = {kind: {} for kind in kinds} if plain else {}
    for speedup in speedups if plain else ():
        latency = plain[0].latency.value / speedup
        ours = [r.metrics["fid"] for r in measured if r.family == "strategy" and r.latency.value <= latency]
        best = min(ours, key=lambda v: v.value) if ours else None
        for kind, rivals in kinds.items():
            reached = _reached([*plain, *rivals], latency)
            found[kind][speedup] = best.minus(reached) if best and reached else None
    return found


def _reached(rivals: Sequence[Result], latency: float) -> Value | None:
    """The FID that rivals reach in `latency` milliseconds, without those that another one beats in both; None where none is so fast or so slow."""
    curve: list[Result] = []
    rivals = sorted((r for r in rivals if r.error is None and "fid" in r.metrics), key=lambda r: r.latency.value)
    for rival in rivals:
        if not curve or rival.metrics["fid"].value < curve[-1].metrics["fid"].value:
            curve.append(rival)
    if curve and curve[-1].latency.value <= latency <= rivals[-1].latency.value:
        return curve[-1].metrics["fid"]
    for a, b in pairwise(curve):
        if a.latency.value <= latency <= b.latency.value:
            share = (latency - a.latency.value) / (b.latency.value - a.latency.value)
            return _between(a.metrics["fid"], b.metrics["fid"], share)
    return None


def _between(a: Value, b: Value, share: float) -> Value:
    left_out = [(1 - share) * x + share * y for x, y in zip(a.left_out, b.left_out, strict=True)]
    return Value.around((1 - share) * a.value + share * b.value, left_out)
