"""A strategy's measurement on one device: images, FID, latency."""

from __future__ import annotations

import logging
import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import dato
from dato.fields import check, limited
from dato.provenance import describe
from dato.strategy import Strategy
from search.data.datasets import FRESH_OFFSET, Data, DataSpec
from search.evaluate.generate import generate
from search.evaluate.latency import measure_costs
from search.evaluate.pipelines import ModelSpec, left_out, load_pipeline, resolve_device
from search.metrics.intervals import Groups, Value
from search.metrics.quality import Fid, Kid, extract, load_features
from search.metrics.reference import reference_features, reference_moments
from search.metrics.similarity import PlainFeatures, check_similarity, load_similarity, summarize, with_distance
from search.records import Measurement

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How every candidate is measured; two measurements compare only under one protocol."""

    images: int = limited(100, least=2, most=FRESH_OFFSET)
    """Images per candidate, from fixed prompts and seeds."""
    batch: int = limited(10, least=1, most=100_000)
    """Images per call of the pipeline."""
    features: str = "embedded"
    """Feature net of the FID."""
    interval_groups: int = limited(20, least=0, most=100_000)
    """Groups of images that are left out in turn behind an interval; 0 for none (with Inception features each takes seconds)."""
    offset: int = limited(0, least=0, most=FRESH_OFFSET - 2)
    """Index of the first image."""
    similarity: tuple[str, ...] = ("psnr", "ssim")
    """Image metrics of baselines and winners against the unaccelerated images, see `search.similarity`."""
    fidelities: tuple[int | float, ...] = ()
    """Smaller numbers of images, ascending: every candidate is measured on the first, and the best on the next, up to `images`.

    A value below 1 is a share of `images`, in whole batches; it is left out where that is all of them.
    """

    def __post_init__(self) -> None:
        check(self, "protocol")
        if self.offset + self.images > FRESH_OFFSET:
            raise ValueError(f"protocol.offset is {self.offset}; with {self.images} images it must stay below {FRESH_OFFSET}, where the images begin that no search uses")
        check_similarity(self.similarity, "protocol.similarity")
        given = [self._share(c) if isinstance(c, float) and 0 < c < 1 else c for c in self.fidelities]
        counts = [*(c for c in given if c is not None), self.images]
        if any(not isinstance(c, int) or c < 2 for c in counts) or counts != sorted(set(counts)):
            raise ValueError(
                f"protocol.fidelities is {list(self.fidelities)!r}; give ascending numbers of images, from 2 to less than protocol.images ({self.images}), "
                "or shares of it, such as 0.5"
            )
        object.__setattr__(self, "fidelities", tuple(counts[:-1]))

    def _share(self, share: float) -> int | None:
        """So many images, up to the next whole batch; None where that is all of them or too few to have an FID."""
        images = self.batch * math.ceil(share * self.images / self.batch)
        return images if 2 <= images < self.images else None

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of images that candidates are compared at, ascending."""
        return (*(int(c) for c in self.fidelities), self.images)

    def batches(self, fresh: bool = False, first: int = 0, last: int | None = None) -> list[list[int]]:
        """Indices of images `first` to before `last` (all by default), by batch; fresh ones are used by no search."""
        start = self.offset + (FRESH_OFFSET if fresh else 0)
        end = self.images if last is None else last
        return [list(range(start + i, start + min(i + self.batch, end))) for i in range(first, end, self.batch)]


@dataclass
class Shard:
    """One strategy's features and timings over some batches: what a worker sends back, and shards add up.

    Attributes:
        features: (N, num_features) float32.
        batch_ms: Milliseconds per image of each batch.
        parts_ms: Of text_encoder, unet and vae, by batch.
        calls_by_depth: UNet calls of one run at each cache depth.
        seconds: Wall time spent.
        device: Where.
        batch: Images in the largest batch.
        indices: Of the images, in the order of the features.
        similarity: Of each image to the unaccelerated one, by metric, where both were made in turn.
    """

    features: torch.Tensor
    batch_ms: list[float] = field(default_factory=list)
    parts_ms: list[dict[str, float]] = field(default_factory=list)
    calls_by_depth: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = ""
    batch: int = 0
    indices: list[int] = field(default_factory=list)
    similarity: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluatorSpec:
    """What a worker needs to build its evaluator; small, and sent to it as it is."""

    model: ModelSpec
    data: DataSpec
    protocol: Protocol
    threads: int | None = None

    def build(self) -> PipelineEvaluator:
        """Load everything once."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return PipelineEvaluator(self)


class PipelineEvaluator:
    """Holds a loaded pipeline and feature net, and runs strategies on batches of images."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        self.spec = spec
        self.pipe = load_pipeline(spec.model)
        self.data = Data(spec.data)
        self.net = load_features(spec.protocol.features, self.pipe.device)
        self.similarities = {name: load_similarity(name, self.pipe.device) for name in spec.protocol.similarity}
        self.device = device_name(self.pipe.device)
        # Warm: the first calls of a process allocate and choose kernels, which no candidate should pay for.
        generate(self.pipe, spec.model, self.data, spec.protocol.batches()[0], steps=2, warm_up=True)

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        """Run the strategies in turn on each batch, so that a drifting machine slows all of them alike."""
        shards = [Shard(torch.empty(0, self.net.num_features), device=self.device) for _ in strategies]
        plain = [s.canonical() == Strategy.full(len(s)).canonical() for s in strategies]
        for indices in batches:
            turn: list[torch.Tensor] = []
            for strategy, shard in zip(strategies, shards, strict=True):
                start = time.perf_counter()
                with dato.accelerate(self.pipe, strategy):
                    made = generate(self.pipe, self.spec.model, self.data, indices, strategy=strategy)
                    report = dato.status(self.pipe)
                turn.append(made.images)
                shard.features = torch.cat([shard.features, extract(self.net, [made.images])])
                shard.indices += indices
                shard.batch_ms.append(made.seconds * 1000 / len(indices))
                shard.parts_ms.append({k: v * 1000 / len(indices) for k, v in made.parts.items()})
                shard.calls_by_depth = {str(d): n for d, n in sorted(report.calls_by_depth.items())} if report else {}
                shard.batch = max(shard.batch, len(indices))
                shard.seconds += time.perf_counter() - start
            if any(plain):
                self._compare(turn, turn[plain.index(True)], shards)
        return shards

    def reference(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> Shard:
        """`run` of one strategy under a name of its own, for images whose latency is not compared: any device may draw them."""
        return self.run(strategies, batches)[0]

    def _compare(self, turn: Sequence[torch.Tensor], plain: torch.Tensor, shards: Sequence[Shard]) -> None:
        """Images of one batch with the unaccelerated ones, once nothing is timed any more."""
        for images, shard in zip(turn, shards, strict=True):
            start = time.perf_counter()
            for name, similarity in self.similarities.items() if images is not plain else ():
                shard.similarity.setdefault(name, []).extend(similarity(images, plain).tolist())
            shard.seconds += time.perf_counter() - start

    def samples(self, strategies: Sequence[Strategy], indices: Sequence[int]) -> list[torch.Tensor]:
        """(B, 3, H, W) uint8 images of each strategy, for people to look at."""
        pictures = []
        for strategy in strategies:
            with dato.accelerate(self.pipe, strategy):
                pictures.append(generate(self.pipe, self.spec.model, self.data, indices, strategy=strategy).images)
        return pictures

    def costs(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]], rounds: int = 3) -> dict[str, Any]:
        """This device's cost table, from so many runs of each calibration strategy on the first batch."""
        return measure_costs(self.pipe, self.spec.model, self.data, batches[0], strategies, self.device, rounds).to_dict()

    def facts(self, strategies: Sequence[Strategy], indices: Sequence[int]) -> dict[str, Any]:
        """What this pipeline is and what it ran without, for the provenance of what is measured on it."""
        return {**describe(self.pipe), "measured_without": left_out(self.spec.model)}


@dataclass
class MeasurerSpec:
    """What a Tune trial needs to measure strategies by itself; small, and sent to it as it is.

    Attributes:
        evaluator: The evaluator's.
        own: Features of the pipeline's own images, once they are drawn, where these are the reference.
    """

    evaluator: EvaluatorSpec
    own: torch.Tensor | None = None
    plain: PlainFeatures | None = None
    """Of the unaccelerated images, for feature distances; None for none."""

    def build(self) -> Measurer:
        """Load everything once."""
        return Measurer(self.evaluator, self.own, self.plain)


class Measurer:
    """An evaluator with its reference: strategy to measurement, where no driver puts shards together."""

    def __init__(self, spec: EvaluatorSpec, own: torch.Tensor | None = None, plain: PlainFeatures | None = None) -> None:
        self._evaluator, self._protocol, self._plain = spec.build(), spec.protocol, plain
        self._fid, self._kid = reference(spec, own)
        self._groups = groups_of(spec)

    def measure(self, strategy: Strategy) -> Measurement:
        """On the protocol's least number of images. Raises where the images or their features are no good."""
        shards = self._evaluator.run([strategy], self._protocol.batches(last=self._protocol.counts[0]))
        return with_distance(measure(shards, self._fid, self._groups, self._kid), shards, self._plain)


def reference(spec: EvaluatorSpec, own: torch.Tensor | None = None) -> tuple[Fid, Kid | None]:
    """What candidates are compared with: real images, or (N, num_features) features of the pipeline's own; no KID of mere statistics."""
    if own is not None:
        return Fid(own), Kid(own, subset_size=min(1000, spec.protocol.counts[0], len(own)))
    if spec.data.statistics:
        moments, _ = reference_moments(Data(spec.data), spec.protocol.features, resolve_device(spec.model.device))
        return Fid(moments), None
    real, unreadable = reference_features(Data(spec.data), spec.protocol.features, resolve_device(spec.model.device))
    if unreadable:
        shown = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        _log.warning("%d of %d real images cannot be read and are not in the reference: %s", len(unreadable), len(real) + len(unreadable), shown)
    return Fid(real), Kid(real, subset_size=min(1000, spec.protocol.counts[0], len(real)))


def groups_of(spec: EvaluatorSpec) -> Groups:
    """The groups of images behind the intervals of what is measured by a specification."""
    return Groups(turn=Data(spec.data).turn, most=spec.protocol.interval_groups)


def measure(shards: Sequence[Shard], fid: Fid, groups: Groups, kid: Kid | None = None) -> Measurement:
    """Put one strategy's shards together. Latency is the median over its batches."""
    features = in_order(shards)
    batch_ms = [ms for s in shards for ms in s.batch_ms]
    parts = [p for s in shards for p in s.parts_ms]
    quality = fid.value(features, groups)
    return Measurement(
        fid=quality.value,
        fid_low=quality.low,
        fid_high=quality.high,
        fid_left_out=tuple(quality.left_out),
        images=len(features),
        latency_ms=statistics.median(batch_ms),
        latency_low_ms=min(batch_ms),
        latency_high_ms=max(batch_ms),
        parts_ms={name: statistics.median(p[name] for p in parts) for name in parts[0]} if parts else {},
        calls_by_depth=shards[0].calls_by_depth,
        seconds=sum(s.seconds for s in shards),
        device=", ".join(sorted({s.device for s in shards})),
        batch=max(s.batch for s in shards),
        kid=kid.value(features, Groups(most=0)).value if kid else None,
        similarity=summarize(shards),
    )


def in_order(shards: Sequence[Shard]) -> torch.Tensor:
    """(N, num_features) features by image index: the groups of intervals go by position, whoever made which batch.

    In the order of the shards where these do not tell which images they are of.
    """
    features = torch.cat([s.features for s in shards])
    indices = [i for s in shards for i in s.indices]
    return features[torch.tensor(indices).argsort()] if len(indices) == len(features) else features


def paired(fast: Measurement, plain: Measurement) -> Measurement:
    """A measurement with the interval of its FID difference to the unaccelerated pipeline's in place of its FIDs without groups.

    Both are measured on images of the same prompts and seeds in the same groups, so that what they share is in no interval.
    The same measurement without these FIDs where either has none.
    """
    if not fast.fid_left_out or len(fast.fid_left_out) != len(plain.fid_left_out) or fast.images != plain.images:
        return replace(fast, fid_left_out=())
    difference = Value(value=fast.fid, left_out=fast.fid_left_out).minus(Value(value=plain.fid, left_out=plain.fid_left_out))
    return replace(fast, fid_left_out=(), difference_low=difference.low, difference_high=difference.high)


def device_name(device: torch.device) -> str:
    """A device in words: the GPU's name, or the processor with the threads used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread" + ("s" if torch.get_num_threads() > 1 else "")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
