"""An evaluation's configuration as typed objects, and its course: workers, shards, results. Shared by several commands."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from dato import baselines
from dato.files import shown
from launch.config import ConfigError, evaluation_keys
from launch.environment import environment
from launch.estimate import Workload, first_batch_s
from launch.pool import start_pool
from launch.schema import EvaluationKeys
from search.data.datasets import Data
from search.evaluate.compare import ComparisonSpec, Edit
from search.evaluate.pipelines import ModelError, ModelSpec, check_model, left_out, resolve_device, weights_digest
from search.evaluate.results import EVALUATION_SCHEMA, Metrics, Result, fid_by_images, judge
from search.evaluate.variants import Entry, strategy_entries, unique
from search.metrics.features import load_features
from search.metrics.intervals import Groups
from search.metrics.quality import Fid, Kid
from search.metrics.reference import reference_features, reference_moments
from search.metrics.similarity import check_similarity, load_similarity
from search.run.compared_shards import ShardStore, compare
from search.run.own_reference import OwnReference
from search.run.pools import InProcessPool, Job, RayPool


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
    spec: ComparisonSpec
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

    def strategies(self) -> list[Entry]:
        """Entries of the configured strategies."""
        return strategy_entries(self.keys.strategy, self.steps)


def build_evaluation(command: str, raw: dict[str, Any]) -> Evaluation:
    """Check a resolved configuration of an evaluation. Raises ValueError subclasses that say what is allowed."""
    keys = evaluation_keys(raw)
    settings, model, data = keys.evaluation, keys.model, keys.data
    protocol = replace(keys.protocol, images=settings.images, fidelities=())
    try:
        edit = Edit(**settings.edit) if settings.edit else None
    except TypeError as error:
        raise ConfigError(f"evaluation.edit is {shown(settings.edit)} ({error}); write {{strength: 0.6, inputs: generated, size: null}}") from None
    spec = ComparisonSpec(model=model, data=data, protocol=protocol, metrics=settings.metrics, edit=edit, threads=keys.cluster.threads)
    if edit and edit.inputs == "real" and data.own_reference:
        raise ConfigError("evaluation.edit.inputs is 'real', and data of kind 'prompts' have no real images; set inputs: generated, or data=folder with data.images")
    check_similarity(spec.similarities, "evaluation.metrics")
    check_model(model)
    batches, size = protocol.batches(fresh=settings.held_out), settings.shard
    shards = [batches[i : i + size] for i in range(0, len(batches), size)]
    identity = {
        "model": raw["model"], "weights": weights_digest(model), "data": raw["data"], "protocol": raw["protocol"],
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


def evaluate(evaluation: Evaluation, entries: Sequence[Entry]) -> Outcome:
    """Compute what is missing of the entries and judge them all; the same call continues where it was stopped."""
    entries = unique(entries)
    data = Data(evaluation.spec.data)
    own, features = own_reference(evaluation), None
    if own is None or (features := own.kept()) is not None:
        metrics, about = prepare_metrics(evaluation.spec, data, features)
    store = ShardStore(evaluation.folder / "shards", time.strftime("%Y%m%dT%H%M%S"))
    say(f"evaluation {evaluation.name}  (folder {evaluation.folder})")
    errors: dict[str, str] = {}
    missing = sum(store.load(e, k) is None for e in {e.digest: e for e in entries}.values() for k in range(len(evaluation.shards)))
    if missing or (own and features is None):
        pool = start_pool(evaluation, evaluation.spec, say)
        try:
            drawn = say_how_long(evaluation, entries, store, pool, own)
            if drawn is not None and features is None:
                metrics, about = prepare_metrics(evaluation.spec, data, drawn)
            errors = compare(pool, entries, evaluation.shards, store, say)
            plain = next((e for e in entries if e.family == "plain"), None)
            if plain and plain.name in errors:
                raise EvaluationError(f"the unaccelerated pipeline itself fails, so that there is nothing to compare with: {errors[plain.name]}")
            _draw_samples(pool, evaluation, [e for e in entries if e.name not in errors])
        finally:
            pool.close()
            ray.shutdown()
    say("computing metrics")
    shards = {e.digest: [found for k in range(len(evaluation.shards)) if (found := store.load(e, k))] for e in entries if e.name not in errors}
    results = judge(entries, shards, metrics, errors)
    if metrics.fid is not None:
        curved = [e for e in entries if e.family in ("plain", "strategy") and e.digest in shards]
        about["fid_by_images"] = {e.name: fid_by_images([s for s, _ in shards[e.digest]], metrics.fid.reference) for e in curved}
    about |= {"environment": environment(), "config": evaluation.raw, "weights": weights_digest(evaluation.spec.model), "measured_without": _left_out(evaluation.spec.model)}
    content = {"schema": EVALUATION_SCHEMA, "name": evaluation.name, **about, "results": [r.to_dict() for r in results]}
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    (evaluation.folder / "evaluation.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return Outcome(results, about)


def own_reference(evaluation: Evaluation) -> OwnReference | None:
    """The pipeline's own images, where these are the reference and a metric needs one."""
    spec = evaluation.spec
    if not spec.data.own_reference or not {"fid", "kid"} & set(spec.metrics):
        return None
    more = {"edit": asdict(spec.edit)} if spec.edit else {}
    return OwnReference(folder=evaluation.folder, model=spec.model, data=Data(spec.data), features=spec.protocol.features, batch=spec.protocol.batch, more=more)


def say_how_long(
    evaluation: Evaluation, entries: Sequence[Entry], store: ShardStore, pool: RayPool | InProcessPool, own: OwnReference | None
) -> torch.Tensor | None:
    """Say how long what is missing will take, from a first timed batch; the features of the pipeline's own reference, once drawn."""
    plain = Entry(name="unaccelerated", baseline=baselines.plain(evaluation.steps), family="plain")
    sizes = [sum(map(len, shard)) for shard in evaluation.shards]
    missing = {e.digest: sum(n for k, n in enumerate(sizes) if store.load(e, k) is None) for e in entries}
    kept = own.fetch(pool) if own else None
    work = Workload(
        plain={"of the reference": own.count if own and kept is None else 0, "of the unaccelerated pipeline": missing.pop(plain.digest, 0)},
        fast={f"of {len(missing)} ways to be faster": sum(missing.values())},
    )

    def told(seconds: float) -> None:
        say("how long  " + work.timed(seconds, pool.size, " and ".join(sorted(set(getattr(pool, "devices", [])))), "its first batch"))

    if own is None or kept is not None:
        told(first_batch_s(pool, plain, evaluation.shards[0][0]))
    return own.draw(pool, plain, told) if own and kept is None else kept


def _left_out(model: ModelSpec) -> list[str]:
    try:
        return left_out(model)
    except ModelError:
        return ["whatever the model has of safety checker and watermark: it is not on this machine"]


def prepare_metrics(spec: ComparisonSpec, data: Data, own: torch.Tensor | None = None) -> tuple[Metrics, dict[str, Any]]:
    """The metrics with their references, and a record of these references; `own` (N, num_features) of the pipeline's own images."""
    metrics = Metrics(names=spec.metrics, groups=Groups(turn=data.turn, most=spec.protocol.interval_groups))
    about: dict[str, Any] = {"unreadable": []}
    if {"fid", "kid"} & set(spec.metrics):
        about["reference"] = data.reference_in_words()
    device = resolve_device(spec.model.device)
    features = spec.protocol.features
    if own is not None:
        about["reference_images"] = len(own)
        fid = Fid(own) if "fid" in spec.metrics else None
        kid = Kid(own, subset_size=min(1000, spec.protocol.images, len(own))) if "kid" in spec.metrics else None
        metrics = replace(metrics, fid=fid, kid=kid)
    elif "fid" in spec.metrics:
        say("reference statistics of the real images")
        moments, unreadable = reference_moments(data, features, device)
        about |= {"reference_images": moments.count, "unreadable": unreadable}
        if unreadable:
            say(f"warning: {len(unreadable)} real images cannot be read and were left out, such as {unreadable[0]}")
        metrics = replace(metrics, fid=Fid(moments))
    if "kid" in spec.metrics and own is None:
        real, unreadable = reference_features(data, features, device)
        about |= {"reference_images": len(real), "unreadable": unreadable}
        metrics = replace(metrics, kid=Kid(real, subset_size=min(1000, spec.protocol.images, len(real))))
    if about["unreadable"]:
        about["reference"] = data.reference_in_words(about["reference_images"])
    for name in spec.similarities:
        load_similarity(name)  # a weight file that cannot be read is said before workers start
    if "is" in spec.metrics:
        metrics = replace(metrics, net=load_features(features, device))
    return metrics, about


def _draw_samples(pool: RayPool | InProcessPool, evaluation: Evaluation, entries: Sequence[Entry]) -> None:
    """A PNG row of the first images of every entry that has none yet."""
    from launch.image_grid import write_row  # Pillow is not needed to plan

    count = evaluation.keys.evaluation.samples
    indices = [i for shard in evaluation.shards for batch in shard for i in batch][:count]
    folder = evaluation.folder / "samples"
    wanted = {e.digest: e for e in entries if not (folder / f"{e.digest}.png").is_file()}
    if not indices or not wanted:
        return
    size = evaluation.spec.protocol.batch
    for job, made in pool.map([Job(d, [e], indices[:size], method="samples") for d, e in wanted.items()]):
        if made is not None:
            write_row(folder / f"{job.key}.png", made[0])

