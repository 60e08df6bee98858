"""The worker's side of a measurement: variants run in turn on batches of images, as features, scores and times."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import dato
from dato.baselines import Baseline
from dato.provenance import describe
from dato.step import extent
from dato.strategy import Strategy
from search.data.datasets import Data, DataSpec
from search.evaluate.edit import Edit, Editor
from search.evaluate.generate import Batch, generate
from search.evaluate.latency import measure_costs
from search.evaluate.memory import with_another_try
from search.evaluate.pipelines import ModelSpec, left_out, load_pipeline
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shards import Shard
from search.evaluate.variants import Variant
from search.metrics.feature_net import QualityError, extract
from search.metrics.features import load_features
from search.metrics.moments import Moments
from search.metrics.quality import load_scorer
from search.metrics.reference import RealImagesHere
from search.metrics.similarity import is_similarity, load_similarity

FEATURE_METRICS = ("fid", "kid", "is")
"""Metrics over the features of all images; every other name compares pairs of images (`search.metrics.similarity`) or scores single ones."""


@dataclass(frozen=True)
class EvaluatorSpec:
    """What a worker needs to build its evaluator; small, and sent to it as it is."""

    model: ModelSpec
    data: DataSpec
    protocol: EvaluationProtocol
    metrics: tuple[str, ...] = ("fid",)
    """Similarities among these compare every variant with the unaccelerated images, which are generated where that does not run in turn with it."""
    edit: Edit | None = None
    threads: int | None = None

    @property
    def scorers(self) -> tuple[str, ...]:
        """Metrics that score single images."""
        return tuple(m for m in self.metrics if m not in FEATURE_METRICS and not is_similarity(m))

    @property
    def similarities(self) -> tuple[str, ...]:
        """Metrics that compare every variant's images with the unaccelerated ones."""
        return tuple(m for m in self.metrics if is_similarity(m))

    @property
    def needs_features(self) -> bool:
        """Whether a metric is taken on features."""
        return any(m in FEATURE_METRICS for m in self.metrics)

    def build(self) -> PipelineEvaluator:
        """Load everything once."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return PipelineEvaluator(self)


class PipelineEvaluator:
    """Holds a loaded pipeline, feature net and scorers, and runs variants on batches of images. A strategy stands for the variant that follows it."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        self.spec = spec
        self.pipe = load_pipeline(spec.model)
        self.data = Data(spec.data)
        self.net = load_features(spec.protocol.features, self.pipe.device) if spec.needs_features else None
        self.scorers = {name: load_scorer(name, self.pipe.device) for name in spec.scorers}
        self.similarities = {name: load_similarity(name, self.pipe.device) for name in dict.fromkeys((*spec.similarities, *spec.protocol.similarity))}
        self.editor = Editor(spec.edit, self.pipe, spec.model, self.data) if spec.edit else None
        self.device = device_name(self.pipe.device)
        self._baselines: dict[str, Baseline] = {}
        # Warm: the first calls of a process allocate and choose kernels, which no variant should pay for.
        generate(self.pipe, spec.model, self.data, spec.protocol.batches()[0], steps=2, warm_up=True)

    def run(self, variants: Sequence[Variant | Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        """Run the variants in turn on each batch, so that a drifting machine slows all of them alike.

        The error of one among several is in its shard, and its neighbours go on. Where none is left it is raised: it may be the worker's.
        """
        wanted = [_variant(v) for v in variants]
        shards = [Shard(torch.empty(0, self.net.num_features if self.net else 0), device=self.device) for _ in wanted]
        plain = next((v for v in wanted if v.is_plain(self.spec.model.steps)), None)
        for indices in batches:
            beside: torch.Tensor | None = None
            for variant, shard in sorted(zip(wanted, shards, strict=True), key=lambda pair: pair[0] is not plain):  # the others are compared with it
                if shard.error:
                    continue
                start = time.perf_counter()
                try:
                    attempt = partial(self._measure, variant, indices, beside, compare=variant is not plain)
                    made, images, beside = with_another_try(attempt, self.pipe.device, self.device, len(indices))
                    beside = images if variant is plain else beside
                    shard.add(replace(made, seconds=time.perf_counter() - start))
                except Exception as error:
                    shard.error = f"{type(error).__name__}: {error}"
                    if all(s.error for s in shards):
                        raise
        return shards

    def reference(self, variants: Sequence[Variant | Strategy], batches: Sequence[Sequence[int]]) -> Shard:
        """`run` of one variant under a name of its own, for images whose latency is not compared: any device may draw them."""
        return self.run(variants, batches)[0]

    def samples(self, variants: Sequence[Variant | Strategy], indices: Sequence[int]) -> list[torch.Tensor]:
        """(B, 3, H, W) uint8 images of each variant, for people to look at."""
        return [self._make(_variant(v), indices)[0].images for v in variants]

    def costs(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]], rounds: int = 3) -> dict[str, Any]:
        """This device's cost table, from so many runs of each calibration strategy on the first batch."""
        return measure_costs(self.pipe, self.spec.model, self.data, batches[0], strategies, self.device, rounds).to_dict()

    def real_moments(self, variants: Sequence[Variant], batches: Sequence[Sequence[int]]) -> tuple[Moments, list[str]]:
        """Of the real images: their features' moments, and which images cannot be read."""
        return self._real_images().moments()

    def real_features(self, variants: Sequence[Variant], batches: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[str]]:
        """Of the real images: (N, num_features) features, and which images cannot be read."""
        return self._real_images().features()

    def _real_images(self) -> RealImagesHere:
        if self.net is None:
            raise QualityError("no metric is taken on features, so that there is no net to extract the real images' with")
        return RealImagesHere(self.data, self.net)

    def model_info(self, variants: Sequence[Variant | Strategy], indices: Sequence[int]) -> dict[str, Any]:
        """What this pipeline is and what it ran without, for the provenance of what is measured on it."""
        return {**describe(self.pipe), "measured_without": left_out(self.spec.model)}

    def _measure(self, variant: Variant, indices: Sequence[int], beside: torch.Tensor | None, compare: bool) -> tuple[Shard, torch.Tensor, torch.Tensor | None]:
        """A batch's shard, its (B, 3, H, W) uint8 images, and the unaccelerated ones: given, generated where every variant is compared, or None."""
        made, calls = self._make(variant, indices)
        features, scores = torch.empty(0, 0), dict[str, list[float]]()
        if self.net is not None:
            features = extract(self.net, [made.images])
            if not torch.isfinite(features).all():
                bad = [i for i, row in zip(indices, features, strict=True) if not torch.isfinite(row).all()]
                raise QualityError(f"features of images {bad} are not finite; look at these images, or use model.dtype=float32")
        for name, scorer in self.scorers.items():
            scores[name] = scorer.score(made.images, [self.data.prompt(i) for i in indices]).float().tolist()
        if compare and self.similarities:
            if beside is None and self.spec.similarities:
                beside = self._make(Variant.unaccelerated(self.spec.model.steps), indices)[0].images
            if beside is not None:
                scores |= {name: similarity(made.images, beside).tolist() for name, similarity in self.similarities.items()}
        shard = Shard(
            features, [made.seconds * 1000 / len(indices)], [{k: v * 1000 / len(indices) for k, v in made.parts.items()}], calls,
            batch=len(indices), indices=list(indices), scores=scores,
        )  # fmt: skip
        return shard, made.images, beside

    def _make(self, variant: Variant, indices: Sequence[int]) -> tuple[Batch, dict[str, int]]:
        baseline = self._calibrated(variant)
        if self.editor:
            self.editor.prepare(indices)
        with baseline.applied(self.editor.pipe if self.editor else self.pipe, variant.options) as (pipe, steps):
            made = generate(self.editor or pipe, self.spec.model, self.data, indices, steps=steps, strategy=variant.baseline.strategy)
            report = dato.status(pipe)
        return made, {str(d): n for d, n in sorted(report.calls_by_depth.items(), key=lambda item: extent(item[0]))} if report else {}


    def _calibrated(self, variant: Variant) -> Baseline:
        """How a variant runs the pipeline, with what a cache has to see of the model first: always the same images, so that every worker sees the same."""
        if variant.baseline.cache is None:
            return variant.baseline
        if variant.digest not in self._baselines:
            spec, first = self.spec, self.spec.protocol.batches()[0]

            def run() -> None:
                if self.editor:
                    self.editor.prepare(first)
                generate(self.editor or self.pipe, spec.model, self.data, first, steps=variant.baseline.steps, warm_up=True)

            self._baselines[variant.digest] = variant.baseline.calibrated(self.editor.pipe if self.editor else self.pipe, run)
        return self._baselines[variant.digest]


def _variant(given: Variant | Strategy) -> Variant:
    return given if isinstance(given, Variant) else Variant.of(given)


def device_name(device: torch.device) -> str:
    """A device in words: the GPU's name, or the processor with the threads used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread" + ("s" if torch.get_num_threads() > 1 else "")


def is_processor(name: str) -> bool:
    """Whether `device_name` says this of a processor."""
    return re.search(r", \d+ threads?$", name) is not None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
