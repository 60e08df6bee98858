"""The worker's side of a comparison: entries run in turn on the same batches, measured as features, scores and times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForImage2Image

import dato
from dato import baselines
from dato.provenance import describe
from search.data.datasets import Data, DataSpec
from search.evaluate.evaluator import device_name
from search.evaluate.generate import Batch, generate
from search.evaluate.pipelines import ModelSpec, left_out, load_pipeline
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.variants import Entry
from search.metrics.feature_net import extract
from search.metrics.features import load_features
from search.metrics.quality import QualityError, load_scorer
from search.metrics.similarity import is_similarity, load_similarity

FEATURE_METRICS = ("fid", "kid", "is")
"""Metrics over the features of all images; every other name compares pairs of images (`search.similarity`) or scores single ones."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Image-to-image in place of text-to-image."""

    strength: float = 0.6
    """How much of the noise schedule is run again, in (0, 1]."""
    inputs: str = "generated"
    """"generated": by the same model, unaccelerated, as in the paper's Table 5; or "real": the data's real images."""
    size: int | None = None
    """Side that the inputs are resized to, in pixels; None leaves them as they are."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"evaluation.edit.strength is {self.strength!r}; give a number above 0, at most 1")
        if self.inputs not in ("generated", "real"):
            raise ValueError(f"evaluation.edit.inputs is {self.inputs!r}; allowed are 'generated' and 'real'")
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ValueError(f"evaluation.edit.size is {self.size!r}; give a multiple of 8, or null")


@dataclass
class EntryShard:
    """One entry on some batches.

    Attributes:
        indices: Image indices.
        features: (N, F) float32; (N, 0) where no metric needs features.
        scores: (N,) of every scorer by name.
        batch_ms: Milliseconds per image of each batch.
        parts_ms: Of text_encoder, unet and vae, by batch.
        calls_by_depth: UNet calls of one run at each cache depth; empty for what follows no strategy.
        device: Where.
        seconds: Wall time spent.
        error: Why there is nothing, or None.
    """

    indices: list[int]
    features: torch.Tensor
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    batch_ms: list[float] = field(default_factory=list)
    parts_ms: list[dict[str, float]] = field(default_factory=list)
    calls_by_depth: dict[str, int] = field(default_factory=dict)
    device: str = ""
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class ComparisonSpec:
    """What a worker needs to build its evaluator; small, and sent to it as it is."""

    model: ModelSpec
    data: DataSpec
    protocol: EvaluationProtocol
    metrics: tuple[str, ...] = ("fid",)
    edit: Edit | None = None
    threads: int | None = None

    @property
    def scorers(self) -> tuple[str, ...]:
        """Metrics that score single images."""
        return tuple(m for m in self.metrics if m not in FEATURE_METRICS and not is_similarity(m))

    @property
    def similarities(self) -> tuple[str, ...]:
        """Metrics that compare images with the unaccelerated ones."""
        return tuple(m for m in self.metrics if is_similarity(m))

    @property
    def needs_features(self) -> bool:
        """Whether a metric is taken on features."""
        return any(m in FEATURE_METRICS for m in self.metrics)

    def build(self) -> ComparisonEvaluator:
        """Load everything once."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return ComparisonEvaluator(self)


class ComparisonEvaluator:
    """Holds a loaded pipeline, feature net and scorers, and runs entries on batches of images."""

    def __init__(self, spec: ComparisonSpec) -> None:
        self.spec = spec
        self.pipe = load_pipeline(spec.model)
        self.data = Data(spec.data)
        self.net = load_features(spec.protocol.features, self.pipe.device) if spec.needs_features else None
        self.similarities = {name: load_similarity(name, self.pipe.device) for name in spec.similarities}
        self._plain_entry = Entry(name="unaccelerated", baseline=baselines.plain(spec.model.steps), family="plain")
        self._plain: tuple[tuple[int, ...], torch.Tensor] | None = None
        self.scorers = {name: load_scorer(name, self.pipe.device) for name in spec.scorers}
        self.editor: Any = AutoPipelineForImage2Image.from_pipe(self.pipe) if spec.edit else None
        if self.editor is not None:
            self.editor.set_progress_bar_config(disable=True)
            self.editor.watermark = None  # from_pipe makes one, where invisible-watermark is installed
        self._inputs: tuple[tuple[int, ...], torch.Tensor] | None = None
        # Warm: the first calls of a process allocate and choose kernels, which no entry should pay for.
        generate(self.pipe, spec.model, self.data, spec.protocol.batches()[0], steps=2, warm_up=True)

    def run(self, entries: Sequence[Entry], batches: Sequence[Sequence[int]]) -> list[EntryShard]:
        """Run the entries in turn on each batch, so that a drifting machine slows all of them alike; errors are in the shards."""
        shards = [self._empty(batches) for _ in entries]
        for indices in batches:
            for entry, shard in zip(entries, shards, strict=True):
                if shard.error is None:
                    try:
                        self._measure(entry, indices, shard)
                    except Exception as error:  # a failing entry is a row of the table: its neighbours go on
                        shard.error = f"{type(error).__name__}: {error}"
        return shards

    def run_alone(self, entries: Sequence[Entry], batches: Sequence[Sequence[int]]) -> list[EntryShard]:
        """`run` for an entry that failed beside others; raises its error, so that it is tried on another worker."""
        shards = [self._empty(batches) for _ in entries]
        for indices in batches:
            for entry, shard in zip(entries, shards, strict=True):
                self._measure(entry, indices, shard)
        return shards

    def reference(self, entries: Sequence[Entry], batches: Sequence[Sequence[int]]) -> EntryShard:
        """`run_alone` of one entry under a name of its own, as the evaluator of a search has it."""
        return self.run_alone(entries, batches)[0]

    def facts(self, entries: Sequence[Entry], indices: Sequence[int]) -> dict[str, Any]:
        """What this pipeline is and what it ran without."""
        return {**describe(self.pipe), "measured_without": left_out(self.spec.model)}

    def samples(self, entries: Sequence[Entry], indices: Sequence[int]) -> list[torch.Tensor]:
        """(B, 3, H, W) uint8 images of each entry, for people to look at."""
        return [self._make(entry, indices)[0].images for entry in entries]

    def _empty(self, batches: Sequence[Sequence[int]]) -> EntryShard:
        size = self.net.num_features if self.net is not None else 0
        return EntryShard([i for b in batches for i in b], torch.empty(0, size), device=device_name(self.pipe.device))

    def _measure(self, entry: Entry, indices: Sequence[int], shard: EntryShard) -> None:
        start = time.perf_counter()
        made, calls = self._make(entry, indices)
        if self.net is not None:
            found = extract(self.net, [made.images])
            if not torch.isfinite(found).all():
                bad = [i for i, row in zip(indices, found, strict=True) if not torch.isfinite(row).all()]
                raise QualityError(f"features of images {bad} are not finite; look at these images, or use model.dtype=float32")
            shard.features = torch.cat([shard.features, found])
        elif not len(shard.features):
            shard.features = torch.empty(len(shard.indices), 0)
        prompts = [self.data.prompt(i) for i in indices]
        for name, scorer in self.scorers.items():
            scores = scorer.score(made.images, prompts).float().cpu()
            shard.scores[name] = torch.cat([shard.scores.get(name, torch.empty(0)), scores])
        if self.similarities:
            self._compare(entry, made.images, indices, shard)
        shard.batch_ms.append(made.seconds * 1000 / len(indices))
        shard.parts_ms.append({k: v * 1000 / len(indices) for k, v in made.parts.items()})
        shard.calls_by_depth = calls or shard.calls_by_depth
        shard.seconds += time.perf_counter() - start

    def _compare(self, entry: Entry, images: torch.Tensor, indices: Sequence[int], shard: EntryShard) -> None:
        """Score the images against the unaccelerated ones of the same batch, which are kept while the entries run in turn on it.

        They are generated where the unaccelerated entry does not run before this one: when it is done already, or after it.
        """
        if entry.digest == self._plain_entry.digest:
            self._plain = (tuple(indices), images)
            return
        if self._plain is None or self._plain[0] != tuple(indices):
            self._plain = (tuple(indices), self._make(self._plain_entry, indices)[0].images)
        for name, similarity in self.similarities.items():
            shard.scores[name] = torch.cat([shard.scores.get(name, torch.empty(0)), similarity(images, self._plain[1])])

    def _make(self, entry: Entry, indices: Sequence[int]) -> tuple[Batch, dict[str, int]]:
        inputs = self._input_images(indices) if self.spec.edit else None
        with entry.baseline.applied(self.editor or self.pipe, entry.options) as (pipe, steps):
            if inputs is None or self.spec.edit is None:
                made = generate(pipe, self.spec.model, self.data, indices, steps=steps, strategy=entry.baseline.strategy)
            else:
                editing = _Editing(pipe, inputs, self.spec.edit.strength)
                made = generate(editing, self.spec.model, self.data, indices, steps=steps, strategy=entry.baseline.strategy)
            report = dato.status(pipe)
        return made, {str(d): n for d, n in sorted(report.calls_by_depth.items())} if report else {}

    def _input_images(self, indices: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) float in [0, 1]; kept for the other entries of the same batch."""
        assert self.spec.edit is not None
        if self._inputs is None or self._inputs[0] != tuple(indices):
            if self.spec.edit.inputs == "generated":
                images = generate(self.pipe, self.spec.model, self.data, indices).images
            else:
                images = _stack([self.data.real(i) for i in indices])
            x = images.float() / 255
            if self.spec.edit.size:
                side = (self.spec.edit.size, self.spec.edit.size)
                x = F.interpolate(x, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            self._inputs = (tuple(indices), x)
        return self._inputs[1]


class _Editing:
    """An image-to-image pipeline that `generate` calls like a text-to-image one."""

    def __init__(self, pipe: Any, inputs: torch.Tensor, strength: float) -> None:
        self._pipe, self._inputs, self._strength = pipe, inputs, strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, prompts: Sequence[str], *, height: int | None, width: int | None, **settings: Any) -> Any:
        """The inputs have a size of their own."""
        return self._pipe(prompts, image=self._inputs, strength=self._strength, **settings)


def _stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(x.shape) for x in images}
    if len(shapes) > 1:
        raise ValueError(f"real images of one batch have different sizes, such as {sorted(shapes)[:2]}; set data.image_size")
    return torch.stack(list(images))
