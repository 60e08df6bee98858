"""``dato search``: search, validate, export, report."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from PIL import Image

from analysis.figures import front_figure
from analysis.report import write_report
from dato.strategy import Strategy
from launch.config import ConfigError, SearchConfig, build, compose_config
from launch.preflight import require
from launch.view import SearchView
from search.cluster import connect
from search.data import FRESH_OFFSET, Data
from search.driver import UNACCELERATED, Driver
from search.evaluate import measure, reference_features
from search.ledger import Ledger, read_ledger
from search.models import check_model, weights_digest
from search.nsga2 import Nsga2
from search.quality import Fid
from search.records import SearchRecord, Winner
from search.shards import make_join
from search.workers import Job, RayPool

_VERSIONED = ("torch", "diffusers", "transformers", "ray", "pymoo", "mlflow", "torchmetrics")


def run(overrides: Sequence[str]) -> int:
    """Run or continue the search of a configuration; returns the exit code."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    config = build(compose_config("search", overrides))
    check_model(config.evaluator.model)
    if config.raw["restart"] and config.folder.exists():
        config.folder.rename(config.folder.with_name(f"{config.folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
    latencies = _recorded_latencies(config.raw["replay_latency"])
    algorithm = Nsga2(
        space=config.space, population=config.plan.population, seed=config.raw["seed"], operators=config.raw["search"]["operators"]
    )
    Data(config.evaluator.data)
    view = SearchView(config.plan.population * config.plan.generations, config.plan.generations)
    ledger = Ledger(config.ledger_path, config.search_id, config.raw, environment())
    try:
        return _search(config, ledger, algorithm, latencies, view)
    finally:
        view.stop()
        ledger.close()


def _search(config: SearchConfig, ledger: Ledger, algorithm: Nsga2, latencies: dict[str, float], view: SearchView) -> int:
    began = time.monotonic()
    view.say(f"search {config.search_id}  (folder {config.folder})")
    if ledger.record.finished:
        view.say("this search is finished; set seed=1 or any other key for another one, or restart=true for the same again")
    tracker = make_tracker(config)
    if not ledger.record.finished:
        spec = config.evaluator
        fid = Fid(reference_features(spec))
        pool = start_workers(config, view.say)
        try:
            driver = Driver(
                ledger=ledger,
                algorithm=algorithm,
                plan=config.plan,
                protocol=spec.protocol,
                pool=pool,
                measure=lambda shards: measure(shards, fid, spec.protocol.bootstrap),
                baselines=_baselines(config),
                watchers=[view, tracker] if tracker else [view],
                latencies=latencies,
            )
            view.say("measuring the unaccelerated pipeline and the DeepCache-like schedule")
            record = driver.run()
            view.stop()
            view.say("drawing samples")
            samples = _samples(pool, record, config.evaluator.model.steps)
        except KeyboardInterrupt:
            view.stop()
            if tracker:
                tracker.stopped()
            view.say(f"\nstopped; {len(ledger.record.results)} results are safe in {ledger.path}. The same command continues")
            return 130
        finally:
            pool.close()
            ray.shutdown()
        _write_samples(config.folder / "samples", samples)
    _deliver(config, ledger.record, tracker, view)
    view.say(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def start_workers(config: SearchConfig, say: Callable[[str], None]) -> RayPool:
    """Join or start Ray, look at every node, and load the workers. Raises where one of these cannot be, naming the fix."""
    cluster = config.raw["cluster"]
    connect(cluster["address"], cpus=(cluster["workers"] or 1) * cluster["cpus"])
    try:
        workers = require(config)
        say(f"starting {workers} workers; each loads the pipeline once")
        keys = ("min_workers", "cpus", "gpus", "code", "latency_device", "tries", "deadline_s", "start_s")
        pool = RayPool(config.evaluator, workers=workers, join=make_join(cluster["latency_device"]), **{k: cluster[k] for k in keys})
    except BaseException:
        ray.shutdown()
        raise
    kinds = sorted(set(pool.devices))
    if len(kinds) > 1 and cluster["latency_device"] is None:
        say(f"warning: the workers' devices differ ({'; '.join(kinds)}), so latencies do not compare; set cluster.latency_device to one of them")
    return pool


def _baselines(config: SearchConfig) -> dict[str, Strategy]:
    steps, interval = config.evaluator.model.steps, config.raw["search"]["deepcache_interval"]
    return {UNACCELERATED: Strategy.full(steps), f"DeepCache-like, every {interval}": Strategy.uniform(steps, interval)}


def make_tracker(config: SearchConfig) -> Any:
    """The tracker that a configuration asks for, or None."""
    if not config.raw["mlflow"]["enabled"]:
        return None
    from search.tracking import Tracker  # MLflow takes seconds to import

    settings = config.raw["mlflow"]
    return Tracker(
        experiment=settings["experiment"], uri=settings["uri"], front_figure=front_figure, front_size=lambda r: len(r.front())
    )


def _deliver(config: SearchConfig, record: SearchRecord, tracker: Any, view: SearchView) -> None:
    """Write winners as JSON, the report, and the registry's versions; all of it again when run again."""
    strategies = {alias: w.candidate.strategy.with_provenance(**provenance(config, record, w)) for alias, w in record.winners.items()}
    folder = config.folder / "winners"
    folder.mkdir(exist_ok=True)
    for alias, strategy in strategies.items():
        strategy.save(folder / f"{alias}.json")
    samples = {p.stem.split("-", 1)[1]: p.read_bytes() for p in sorted((config.folder / "samples").glob("*.png"))}
    report = write_report(record, config.folder / "report.html", samples)
    name, versions = config.raw["registry"]["name"], {}
    if tracker:
        from search.registry import RegistryError, register, registered_digest

        if tracker.run_id is None:
            tracker.started(record)
        tracker.finished(record, {"": report})
        stale = {a: s for a, s in strategies.items() if registered_digest(name, a) != s.digest}
        try:
            versions = register(name, stale, tracker.run_id) if stale and tracker.run_id else {}
        except RegistryError as error:
            view.say(f"warning: {error}")
    view.winners(record)
    view.say(f"report    {report}")
    view.say(f"winners   {folder}/*.json" + (f", and models:/{name} in the MLflow registry" if tracker else ""))
    if tracker:
        view.say("browse    " + _mlflow_command())
    source = f"models:/{name}@fastest" if tracker and (versions or not stale) else str(folder / "fastest.json")
    view.say("use one   import dato")
    view.say(f'          strategy = dato.Strategy.load("{source}")')
    view.say("          with dato.accelerate(pipe, strategy):")
    view.say(f"              image = pipe(prompt, num_inference_steps={config.evaluator.model.steps}).images[0]")


def _mlflow_command() -> str:
    import mlflow

    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {mlflow.get_tracking_uri()}"


def provenance(config: SearchConfig, record: SearchRecord, winner: Winner) -> dict[str, Any]:
    """Where a strategy comes from and what it gave, for its JSON."""
    model, fresh, plain = config.evaluator.model, winner.fresh, winner.fresh_baseline
    return {
        "search_id": config.search_id,
        "alias": winner.alias,
        "model": {"path": model.path, "unet_sha256": weights_digest(model), "dtype": model.dtype},
        "sampler": {"scheduler": model.scheduler or "the model's own", "steps": model.steps, "guidance": model.guidance},
        "size": [model.height, model.width],
        "quality": {
            "metric": f"FID, {config.evaluator.protocol.features} features",
            "value": fresh.fid,
            "interval": [_number(fresh.fid_low), _number(fresh.fid_high)],
            "baseline": plain.fid,
            "in_search": winner.searched.fid,
            "images": fresh.images,
            "reference": config.evaluator.data.name,
        },
        "latency": {
            "value": fresh.latency_ms,
            "baseline": plain.latency_ms,
            "unit": "ms per image",
            "speedup": winner.speedup,
            "device": fresh.device,
            "batch": fresh.batch,
        },
        "environment": record.environment,
    }


def _number(value: float) -> float | None:
    return value if value == value else None


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONED}
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {"versions": versions, "machine": machine}


def _recorded_latencies(folder: str | None) -> dict[str, float]:
    if folder is None:
        return {}
    path = Path(folder) / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError(f"replay_latency is {folder!r}, which holds no ledger.jsonl; give the folder of a search")
    record = read_ledger(path)
    found = {c.strategy.digest: m.latency_ms for c, m in record.baselines.values()}
    return found | {c.strategy.digest: m.latency_ms for c, m in record.evaluated()}


def _samples(pool: RayPool, record: SearchRecord, steps: int) -> dict[str, torch.Tensor]:
    """Ten images of the unaccelerated pipeline and of each winner, same prompts and seeds."""
    strategies = {UNACCELERATED: Strategy.full(steps), **{alias: w.candidate.strategy for alias, w in record.winners.items()}}
    indices = list(range(FRESH_OFFSET, FRESH_OFFSET + 10))
    jobs = [Job(label, [s], indices, method="samples") for label, s in strategies.items()]
    made = {job.key: pictures[0] for job, pictures in pool.map(jobs) if pictures is not None}
    return {label: made[label] for label in strategies if label in made}


def _write_samples(folder: Path, samples: dict[str, torch.Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    for i, (label, images) in enumerate(samples.items()):
        row = torch.cat(list(images), dim=2).permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(row).save(buffer, format="PNG")
        (folder / f"{i}-{label}.png").write_bytes(buffer.getvalue())
