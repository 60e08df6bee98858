"""An evaluation's configuration as typed objects, and its course: workers, shards, results. Shared by several commands."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from dato.files import shown
from launch.config import ConfigError, evaluation_keys
from launch.environment import environment
from launch.estimate import Workload, first_batch_s
from launch.pinned import noted, pin_evaluation
from launch.pool import start_pool, warnings_of
from launch.schema import EvaluationKeys
from search.data.datasets import Data
from search.evaluate.edit import Edit
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.measure import check_metrics, load_metrics
from search.evaluate.model_files import pinned, pipeline_config, pipeline_source
from search.evaluate.pipelines import ModelError, ModelSpec, added_digests, check_model, left_out, weights_digest
from search.evaluate.results import EVALUATION_SCHEMA, Result, compare_to_plain, fid_by_images
from search.evaluate.rivals import fitting, rival_variants
from search.evaluate.shard_store import ShardStore
from search.evaluate.variants import Variant, strategy_variants, unique
from search.metrics.similarity import check_similarity
from search.run.comparison import compare, kept, missing
from search.run.jobs import Job, Task
from search.run.own_reference import OwnReference, own_reference
from search.run.pools import Pool
from search.run.real_images import RealImagesOnWorker


class EvaluationError(RuntimeError):
    """An evaluation that has nothing to compare with: the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything an evaluation needs, built and validated.

    Attributes:
        raw: The resolved configuration as plain data.
        keys: The same as typed objects.
        name: Model, data and a digest of every key that changes what an image or a metric is.
        spec: For the workers.
        shards: Batches of image indices, by shard.
        folder: Where shards, results and tables go.
    """

    raw: dict[str, Any]
    keys: EvaluationKeys
    name: str
    spec: EvaluatorSpec
    shards: list[list[list[int]]]
    folder: Path

    @property
    def steps(self) -> int:
        """Of the unaccelerated pipeline."""
        return self.spec.model.steps

    @property
    def reference(self) -> str:
        """What FIDs are taken against, in words, before anything is read or drawn."""
        return Data(self.spec.data).reference_in_words()

    def strategies(self) -> list[Variant]:
        """Variants of the configured strategies."""
        return strategy_variants(self.keys.strategy, self.steps)

    def rivals(self, say: Callable[[str], None]) -> list[Variant]:
        """The unaccelerated pipeline, and the configured rivals or those that fit the model; `say` is told where these are not known."""
        model = pinned(self.spec.model, noted(self.folder) or {})
        try:
            config = pipeline_config(pipeline_source(model))
        except (ModelError, OSError, ValueError) as error:
            say(f"warning: {error}. So it is not known here which rivals fit the model: those of a UNet are taken, rivals.* names others")
            config = {}
        return rival_variants(self.steps, fitting(self.keys.rivals, config))


def build_evaluation(command: str, raw: dict[str, Any]) -> Evaluation:
    """Check a resolved configuration of an evaluation. Raises ValueError subclasses that say what is allowed."""
    keys = evaluation_keys(raw)
    settings, model, data = keys.evaluation, keys.model, keys.data
    protocol = replace(keys.protocol, images=settings.images, similarity=(), fidelities=())
    try:
        edit = Edit(**settings.edit) if settings.edit else None
    except TypeError as error:
        raise ConfigError(f"evaluation.edit is {shown(settings.edit)} ({error}); write {{strength: 0.6, inputs: generated, size: null}}") from None
    spec = EvaluatorSpec(model, data, protocol, settings.metrics, edit, keys.cluster.threads)
    if edit and edit.inputs == "real" and data.own_reference:
        raise ConfigError("evaluation.edit.inputs is 'real', and data of kind 'prompts' have no real images; set inputs: generated, or data=folder with data.images")
    check_similarity(spec.similarities, "evaluation.metrics")
    check_model(model)
    batches, size = protocol.batches(fresh=settings.held_out), settings.shard
    shards = [batches[i : i + size] for i in range(0, len(batches), size)]
    identity = {
        "model": raw["model"], "weights": weights_digest(model), "data": raw["data"], "protocol": raw["protocol"],
        **({"added": added} if (added := added_digests(model)) else {}),
        "evaluation": {k: raw["evaluation"][k] for k in ("images", "held_out", "metrics", "shard", "edit")}, "threads": spec.threads,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{command}-{model.name}-{data.name}-{digest}"
    return Evaluation(raw=raw, keys=keys, name=name, spec=spec, shards=shards, folder=Path(keys.output).absolute() / name)


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, flush=True)


@dataclass(frozen=True)
class Outcome:
    """An evaluation's results and what they rest on.

    Attributes:
        results: The unaccelerated model's first.
        about: The reference's size, unreadable images, hardware and versions.
    """

    results: list[Result]
    about: dict[str, Any]


def evaluate(evaluation: Evaluation, variants: Sequence[Variant]) -> Outcome:
    """Compute what is missing of the variants and compare them all; the same call continues where it was stopped."""
    variants, spec = unique(variants), evaluation.spec
    check_metrics(spec)
    own = own_reference(evaluation.folder, spec)
    features = own.kept() if own else None
    real = own is None and bool({"fid", "kid"} & set(spec.metrics))
    store, count = ShardStore(evaluation.folder / "shards", time.strftime("%Y%m%dT%H%M%S")), len(evaluation.shards)
    say(f"evaluation {evaluation.name}  (folder {evaluation.folder})")
    errors: dict[str, str] = {}
    warned: list[str] = []
    if any(missing(variants, count, store)) or (own and features is None):
        pool = start_pool(evaluation, pin_evaluation(evaluation.folder, spec, say), max(map(len, evaluation.shards)), say)
        warned = warnings_of(evaluation, pool)
        try:
            drawn = say_how_long(evaluation, variants, store, pool, own)
            if real:
                say("reference statistics of the real images")
            metrics = load_metrics(spec, drawn if features is None else features, RealImagesOnWorker(pool))
            errors = compare(pool, variants, evaluation.shards, store, say)
            plain = next((v for v in variants if v.family == "plain"), None)
            if plain and plain.name in errors:
                raise EvaluationError(f"the unaccelerated pipeline itself fails, so that there is nothing to compare with: {errors[plain.name]}")
            _draw_samples(pool, evaluation, [v for v in variants if v.name not in errors])
        finally:
            pool.close()
            ray.shutdown()
    else:
        metrics = load_metrics(spec, features)
    say("computing metrics")
    shards = {v.digest: kept(store, v, count) for v in variants if v.name not in errors}
    results = compare_to_plain(variants, shards, metrics, errors)
    about: dict[str, Any] = {"unreadable": list(metrics.unreadable)}
    if metrics.reference_images is not None:
        words = Data(spec.data).reference_in_words(metrics.reference_images if metrics.unreadable else None)
        about |= {"reference": words, "reference_images": metrics.reference_images}
    if metrics.fid is not None:
        curved = [v for v in variants if v.family in ("plain", "strategy") and v.digest in shards]
        about["fid_by_images"] = {v.name: fid_by_images(shards[v.digest], metrics.fid.reference) for v in curved}
    about |= {"environment": environment(), "config": evaluation.raw, "weights": weights_digest(spec.model), "measured_without": _left_out(spec.model)}
    commits = noted(evaluation.folder)
    about |= {k: v for k, v in {"pinned": commits, "warnings": warned}.items() if v}
    content = {"schema": EVALUATION_SCHEMA, "name": evaluation.name, **about, "results": [r.to_dict() for r in results]}
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    (evaluation.folder / "evaluation.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return Outcome(results, about)


def say_how_long(evaluation: Evaluation, variants: Sequence[Variant], store: ShardStore, pool: Pool, own: OwnReference | None) -> torch.Tensor | None:
    """Say how long what is missing will take, from a first timed batch; the features of the pipeline's own reference, once drawn."""
    plain = Variant.unaccelerated(evaluation.steps)
    images = dict.fromkeys((v.digest for v in variants), 0)
    for shard, due in zip(evaluation.shards, missing(variants, len(evaluation.shards), store), strict=True):
        for variant in due:
            images[variant.digest] += sum(map(len, shard))
    fetched = own.fetch(pool) if own else None
    work = Workload(
        plain={"of the reference": own.count if own and fetched is None else 0, "of the unaccelerated pipeline": images.pop(plain.digest, 0)},
        fast={f"of {len(images)} ways to be faster": sum(images.values())},
    )

    def told(seconds: float) -> None:
        say("how long  " + work.timed(seconds, pool.size, " and ".join(sorted(set(getattr(pool, "devices", [])))), "its first batch"))

    if own is None or fetched is not None:
        told(first_batch_s(pool, plain, evaluation.shards[0][0]))
    return own.draw(pool, plain, told) if own and fetched is None else fetched


def _left_out(model: ModelSpec) -> list[str]:
    try:
        return left_out(model)
    except ModelError:
        return ["whatever the model has of safety checker and watermark: it is not on this machine"]


def _draw_samples(pool: Pool, evaluation: Evaluation, variants: Sequence[Variant]) -> None:
    """A PNG row of the first images of every variant that has none yet."""
    from launch.image_grid import write_row  # Pillow is not needed to plan

    count = evaluation.keys.evaluation.samples
    indices = [i for shard in evaluation.shards for batch in shard for i in batch][:count]
    folder = evaluation.folder / "samples"
    wanted = {v.digest: v for v in variants if not (folder / f"{v.digest}.png").is_file()}
    if not indices or not wanted:
        return
    size = evaluation.spec.protocol.batch
    for job, made in pool.map([Job(d, [v], indices[:size], Task.SAMPLES) for d, v in wanted.items()]):
        if made is not None:
            write_row(folder / f"{job.key}.png", made[0])

