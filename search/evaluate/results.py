"""From shards to results: metrics and latencies with intervals, differences to the unaccelerated model, equal latency."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from search.evaluate.compare import EntryShard
from search.evaluate.variants import Entry
from search.metrics.feature_net import FeatureNet, class_logits
from search.metrics.intervals import Groups, Value
from search.metrics.moments import Moments, frechet
from search.metrics.quality import Fid, Kid, inception_score, mean_score
from search.metrics.similarity import DISTANCE, PlainFeatures, feature_distance, is_similarity, mean_with_interval
from search.records import FAMILIES

EVALUATION_SCHEMA = "dato.evaluation/1"
_UNKNOWN = Value(value=float("nan"))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a comparison found out about one entry.

    Attributes:
        name: The entry's.
        family: The entry's.
        row: The entry's.
        steps: Sampler steps.
        strategy: Its entries as text, or "".
        images: How many; metrics of different counts do not compare.
        metrics: By metric name.
        differences: Metric less the unaccelerated model's, on the same prompts and seeds; of similarities, which are to its images already, none.
        latency: Milliseconds per image, median over batches; low and high are the extremes.
        speedup: Median over batches of the unaccelerated latency over this one's on the same batch, with a 95 % interval.
        equal_latency: FID less that of the best rival with fewer steps at this latency; None outside the measured range.
        parts_ms: Medians in text_encoder, unet and vae.
        calls_by_depth: UNet calls of one run.
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


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How metrics are computed from shards.

    Attributes:
        names: "fid", "kid", "is" and scorers.
        groups: Of images, behind intervals.
        fid: For "fid".
        kid: For "kid".
        net: For "is".
    """

    names: tuple[str, ...]
    groups: Groups
    fid: Fid | None = None
    kid: Kid | None = None
    net: FeatureNet | None = None

    def of(self, shards: Sequence[EntryShard]) -> dict[str, Value]:
        """Every metric of one entry."""
        found = {}
        features = torch.cat([s.features for s in shards])
        for name in self.names:
            if name == "fid" and self.fid is not None:
                found[name] = self.fid.value(features, self.groups)
            elif name == "kid" and self.kid is not None:
                found[name] = self.kid.value(features, self.groups)
            elif name == "is" and self.net is not None:
                found[name] = inception_score(class_logits(self.net, features), self.groups)
            elif is_similarity(name):
                if all(name in s.scores for s in shards):  # the unaccelerated images are not compared with themselves
                    found[name] = mean_with_interval(torch.cat([s.scores[name] for s in shards]))
            else:
                found[name] = mean_score(torch.cat([s.scores[name] for s in shards]), self.groups)
        return found


def judge(
    entries: Sequence[Entry], shards: Mapping[str, Sequence[tuple[EntryShard, str]]], metrics: Metrics, errors: Mapping[str, str]
) -> list[Result]:
    """Results of the entries, the unaccelerated one first.

    Args:
        entries: What was compared; the first of family "plain" is what others are compared with.
        shards: By entry digest, each with the session that made it.
        metrics: What to compute.
        errors: By entry name.
    """
    plain_entry = next(e for e in entries if e.family == "plain")
    plain = shards.get(plain_entry.digest) if plain_entry.name not in errors else None
    features = PlainFeatures.of_shards([s for s, _ in plain]) if plain else None
    known: dict[str, dict[str, Value]] = {}
    results = []
    for entry in sorted(entries, key=lambda e: e is not plain_entry):
        strategy = entry.baseline.strategy
        common: dict[str, Any] = {
            "name": entry.name,
            "family": entry.family,
            "row": entry.row,
            "steps": entry.baseline.steps,
            "strategy": str(strategy) if strategy else "",
        }
        if entry.name in errors:
            results.append(Result(**common, error=errors[entry.name]))
            continue
        mine = [s for s, _ in shards[entry.digest]]
        if entry.digest not in known:
            known[entry.digest] = metrics.of(mine)
            distance = feature_distance(mine, features) if entry is not plain_entry else None
            known[entry.digest] |= {DISTANCE: distance} if distance else {}
        values, base = known[entry.digest], known.get(plain_entry.digest, {})
        times = [ms for s in mine for ms in s.batch_ms]
        parts = [p for s in mine for p in s.parts_ms]
        results.append(
            Result(
                **common,
                images=sum(len(s.indices) for s in mine),
                metrics=values,
                differences={k: v.minus(base[k]) for k, v in values.items() if k in base and entry is not plain_entry},
                latency=Value(value=statistics.median(times), low=min(times), high=max(times)),
                speedup=speedup([ms for s, _ in plain for ms in s.batch_ms], times) if plain else _UNKNOWN,
                parts_ms={k: statistics.median(p[k] for p in parts) for k in parts[0]},
                calls_by_depth=mine[0].calls_by_depth,
                timed_apart=bool(plain) and {x for _, x in shards[entry.digest]} != {x for _, x in plain or ()},
                device=", ".join(sorted({s.device for s in mine})),
                seconds=sum(s.seconds for s in mine),
            )
        )
    return [replace(r, equal_latency=at_equal_latency(r, results)) for r in results]


def fid_by_images(shards: Sequence[EntryShard], reference: Moments, least: int = 10) -> dict[int, float]:
    """FID of the first n images for n doubling from `least` up to all of them: few images bias it upwards."""
    features = torch.cat([s.features for s in shards])
    counts = [least * 2**i for i in range(32) if least * 2**i < len(features)]
    return {n: frechet(reference, Moments.of(features[:n])) for n in [*counts, len(features)]}


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


def at_speedups(results: Sequence[Result], speedups: Sequence[float] = (1.5, 2, 2.5, 3, 3.5, 4)) -> dict[str, dict[float, Value | None]]:
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
            sampler = f"{r.name.rpartition('-')[0]}, " if r.family == "fewer" else ""
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
