"""From one variant's shards to its measurement: metrics against one reference, with intervals, and times."""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from search.data.datasets import Data
from search.evaluate.evaluator import FEATURE_METRICS, EvaluatorSpec
from search.evaluate.pipelines import resolve_device
from search.evaluate.shards import Shard, in_order
from search.measurements import Measurement
from search.metrics.feature_net import FeatureNet, class_logits
from search.metrics.features import load_features
from search.metrics.intervals import Groups, Value
from search.metrics.quality import Fid, Kid, inception_score, mean_score
from search.metrics.reference import RealImages, reference_features, reference_moments
from search.metrics.similarity import PlainFeatures, is_similarity, load_similarity, mean_with_interval, with_distance

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How metrics are computed from shards.

    Attributes:
        names: "fid", "kid", "is", similarities and scorers.
        groups: Of images, behind intervals.
        fid: For "fid".
        kid: For "kid".
        net: For "is".
        reference_images: How many images the reference is of; None without one.
        unreadable: Real images that cannot be read and are not in the reference, each with the reason.
    """

    names: tuple[str, ...] = ("fid",)
    groups: Groups
    fid: Fid | None = None
    kid: Kid | None = None
    net: FeatureNet | None = None
    reference_images: int | None = None
    unreadable: tuple[str, ...] = ()
    _known: dict[tuple[str, Groups, str], Value] = field(default_factory=dict, repr=False)
    """Of features seen before, by their digest: the unaccelerated images are made again wherever others are timed beside them."""

    def of(self, shards: Sequence[Shard], intervals: Collection[str] | None = None) -> dict[str, Value]:
        """Every metric of one variant, with intervals of those named; None for all of them."""
        found = {}
        features = in_order(shards, torch.cat([s.features for s in shards]))
        digest = hashlib.sha256(features.numpy().tobytes()).hexdigest()
        for name in self.names:
            groups = self.groups if intervals is None or name in intervals else Groups(most=0)
            if name in FEATURE_METRICS:
                if (name, groups, digest) not in self._known:
                    self._known[name, groups, digest] = self._of_features(name, features, groups)
                found[name] = self._known[name, groups, digest]
            elif not is_similarity(name):
                found[name] = mean_score(in_order(shards, _scores(shards, name)), groups)
            elif all(name in s.scores for s in shards):  # the unaccelerated images are not compared with themselves
                found[name] = mean_with_interval(_scores(shards, name))
        return found

    def _of_features(self, name: str, features: torch.Tensor, groups: Groups) -> Value:
        if name == "is":
            assert self.net is not None
            return inception_score(class_logits(self.net, features), groups)
        metric = self.fid if name == "fid" else self.kid
        assert metric is not None
        return metric.value(features, groups)


def _scores(shards: Sequence[Shard], name: str) -> torch.Tensor:
    return torch.tensor([v for s in shards for v in s.scores[name]])


def check_metrics(spec: EvaluatorSpec) -> None:
    """Read what metrics need of weight files here too, so that one that cannot be read is said before workers start. Raises `QualityError`."""
    for name in filter(is_similarity, (*spec.metrics, *spec.protocol.similarity)):
        load_similarity(name)


def load_metrics(spec: EvaluatorSpec, own: torch.Tensor | None = None, source: RealImages | None = None) -> Metrics:
    """The metrics of a specification with their references.

    Args:
        spec: Which metrics, and of which data.
        own: (N, num_features) features of the pipeline's own images, where these are the reference.
        source: Extracts the real images' features that the cache does not hold, where they are the reference; None for this process.
    """
    data, features = Data(spec.data), spec.protocol.features
    # With a source elsewhere this process needs no device: a cluster's head may have none.
    device = torch.device("cpu") if source else resolve_device(spec.model.device)
    found = Metrics(names=tuple(dict.fromkeys((*spec.metrics, *spec.protocol.similarity))), groups=Groups(turn=data.turn, most=spec.protocol.interval_groups))
    real, unreadable = own, list[str]()
    if "kid" in spec.metrics:
        if real is None:
            real, unreadable = reference_features(data, features, device, source=source)
        size = min(1000, spec.protocol.counts[0], len(real))
        found = replace(found, kid=Kid(real, subset_size=size), reference_images=len(real))
    if "fid" in spec.metrics:
        if real is None or (own is None and spec.data.statistics):
            moments, unreadable = reference_moments(data, features, device, source=source)
            fid = Fid(moments)
        else:
            fid = Fid(real)
        found = replace(found, fid=fid, reference_images=found.reference_images or fid.reference.count)
    if "is" in spec.metrics:
        found = replace(found, net=load_features(features))  # for its last layer alone
    if unreadable:
        shown = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        _log.warning("%d of %d real images cannot be read and are not in the reference: %s", len(unreadable), (found.reference_images or 0) + len(unreadable), shown)
    return replace(found, unreadable=tuple(unreadable))


def measure(shards: Sequence[Shard], metrics: Metrics) -> Measurement:
    """One variant's measurement, without an interval of the KID."""
    return to_measurement(shards, metrics.of(shards, intervals=("fid",)))


def measure_shards(
    measure: Callable[[Sequence[Shard]], Measurement], plain: PlainFeatures | None, shards: Sequence[Shard], earlier: Sequence[Shard] = ()
) -> Measurement:
    """What a search wants to know of one variant's shards: its measurement, with its feature distance; with an error where its images are no good.

    Args:
        measure: Shards to their measurement; raises ValueError where their features are not finite.
        plain: Of the unaccelerated images, for feature distances; None for none.
        shards: Of the variant.
        earlier: Its shards of other images, measured together with these.
    """
    whole = [*earlier, *shards]
    try:
        return with_distance(measure(whole), whole, plain)
    except ValueError as error:
        return Measurement(error=str(error), seconds=sum(s.seconds for s in whole))


def to_measurement(shards: Sequence[Shard], values: Mapping[str, Value]) -> Measurement:
    """Metrics and the shards' times together. Latency is the median over batches."""
    batch_ms = [ms for s in shards for ms in s.batch_ms]
    parts = [p for s in shards for p in s.parts_ms]
    fid, kid = values.get("fid", Value(value=float("nan"))), values.get("kid")
    return Measurement(
        fid=fid.value,
        fid_low=fid.low,
        fid_high=fid.high,
        fid_left_out=tuple(fid.left_out),
        images=sum(max(len(s.features), len(s.indices)) for s in shards),
        latency_ms=statistics.median(batch_ms),
        latency_low_ms=min(batch_ms),
        latency_high_ms=max(batch_ms),
        parts_ms={name: statistics.median(p[name] for p in parts) for name in parts[0]} if parts else {},
        calls_by_depth=shards[0].calls_by_depth,
        seconds=sum(s.seconds for s in shards),
        device=", ".join(sorted({s.device for s in shards})),
        batch=max(s.batch for s in shards),
        kid=kid.value if kid else None,
        similarity={name: (v.value, v.low, v.high) for name, v in values.items() if is_similarity(name)},
    )


def paired(fast: Measurement, plain: Measurement) -> Measurement:
    """A measurement with the interval of its FID difference to the unaccelerated pipeline's in place of its FIDs without groups.

    Both are measured on images of the same prompts and seeds in the same groups, so that what they share is in no interval.
    The same measurement without these FIDs where either has none.
    """
    if not fast.fid_left_out or len(fast.fid_left_out) != len(plain.fid_left_out) or fast.images != plain.images:
        return replace(fast, fid_left_out=())
    difference = Value(value=fast.fid, left_out=fast.fid_left_out).minus(Value(value=plain.fid, left_out=plain.fid_left_out))
    return replace(fast, fid_left_out=(), difference_low=difference.low, difference_high=difference.high)
