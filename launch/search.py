"""``dato search``: search, validate, export, report."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from analysis.progress import progress
from analysis.report import front_page, write_report
from dato.card import write_card
from dato.sources import without_credentials
from dato.strategy import Step, Strategy
from launch.config import ConfigError, SearchConfig, build, compose_config
from launch.environment import environment
from launch.estimate import search_workload
from launch.pictures import grid, write_row
from launch.preflight import require
from launch.view import SearchView
from search.data.datasets import FRESH_OFFSET, Data
from search.evaluate.latency import calibration
from search.evaluate.measure import Metrics, load_metrics, measure
from search.evaluate.pipelines import check_model
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard, make_join
from search.ledger import Ledger, read_ledger, set_aside
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.winners import SearchFailed
from search.publish.strategies import MODEL_FILE, read_model_info, winner_strategies, write_model_info
from search.records import UNACCELERATED, Measurement, SearchRecord, prediction_error
from search.run import interrupt
from search.run.driver import Driver
from search.run.jobs import Job, Task
from search.run.loops import Loop, make_loop
from search.run.measurer import PipelineMeasurer
from search.run.own_reference import OwnReference, own_reference
from search.run.pools import Pool
from search.run.ray_cluster import connect
from search.run.ray_pool import RayPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan


def run(overrides: Sequence[str]) -> int:
    """Run or continue the search of a configuration; returns the exit code."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    config = build(compose_config("search", overrides))
    check_model(config.evaluator.model)
    if config.raw["fresh_start"] and config.folder.exists():
        set_aside(config.ledger_path)
    latencies = _recorded_latencies(config.raw["latency_from"])
    algorithm = config.algorithm()
    Data(config.evaluator.data)
    view = SearchView(config.plan.population * config.plan.generations, config.plan.generations)
    ledger = Ledger(config.ledger_path, config.search_id, config.raw, environment())
    try:
        return _search(config, ledger, algorithm, latencies, view)
    finally:
        view.stop()
        ledger.close()


def _search(config: SearchConfig, ledger: Ledger, algorithm: Nsga2 | AsynchronousNsga2, latencies: dict[tuple[str, int], float], view: SearchView) -> int:
    began = time.monotonic()
    view.say(f"search {config.search_id}  (folder {config.folder})")
    if ledger.record.finished:
        view.say("this search is finished; set seed=1 or any other key for another one, or fresh_start=true for the same again")
        if config.raw["search"].get("retry_failed") and any(not m.ok for m in ledger.record.results.values()):
            view.say("note: search.retry_failed does nothing here: winners are validated, and what failed is tried again in a search that is not finished only")
    tracker = make_tracker(config)
    if tracker:
        tracker.begin(ledger.record)
    if not ledger.record.finished:
        spec = config.evaluator
        own = own_reference(config.folder, spec)
        factory, known = PipelineMeasurer(spec), list[Metrics]() if own else [load_metrics(spec)]
        if not ledger.record.notes.get("reference"):
            ledger.append("notes", notes={"reference": Data(spec.data).reference_in_words(known[0].reference_images if known else None)})
        workers = connect_cluster(config)
        pool: RayPool | None = None

        def after(pool: Pool, record: SearchRecord) -> None:
            view.stop()
            view.say("drawing samples")
            _write_samples(config, record, _samples(pool, record, spec.model.steps))

        def before(pool: Pool) -> None:
            _check_devices(config, ledger.record, pool)
            _note_model(pool, config.folder)
            if "measured_without" not in ledger.record.notes:
                ledger.append("notes", notes={"measured_without": (read_model_info(config.folder) or {}).get("measured_without", [])})
            features = say_how_long(config, pool, view.say, ledger.record, own)
            if features is not None:
                factory.own = features
                known.append(load_metrics(spec, features))
            view.say(f"measuring {'the cost table, ' if config.plan.latency == 'predicted' else ''}the unaccelerated pipeline and the DeepCache-like schedule")

        def measured(shards: Sequence[Shard]) -> Measurement:
            return measure(shards, known[0])

        recorder = Recorder(
            ledger, config.plan, measured, watchers=[view, tracker] if tracker else [view], latencies=latencies,
            retry_failed=config.raw["search"].get("retry_failed", False),
        )  # fmt: skip
        tune = config.raw["search"]["engine"] == "tune"
        loop = _tune_loop(config, workers, factory, algorithm) if tune else make_loop(algorithm)
        driver = Driver(
            recorder, spec.protocol, loop, _baselines(config), kept=ShardStore(config.folder / "kept"), calibration=calibration_of(config), before=before, after=after,
            say=view.say,
        )  # fmt: skip
        try:
            pool = start_workers(config, workers, view.say)
            driver.prepare(pool)
            if tune:  # which has the machines meanwhile
                pool.close()
            driver.search(pool)
            if tune:
                pool = start_workers(config, workers, view.say)
            driver.finish(pool)
        except KeyboardInterrupt:
            view.stop()
            if tracker:
                tracker.stopped()
            view.say(f"\nstopped; {len(ledger.record.results)} results are safe in {ledger.path}. The same command continues")
            return interrupt.exit_code()
        except Exception:
            if tracker:
                tracker.stopped()  # which writes what is still waiting
            raise
        finally:
            if pool:
                pool.close()
            ray.shutdown()
    _deliver(config, ledger.record, tracker, view)
    view.say(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def connect_cluster(config: SearchConfig) -> int:
    """Join or start Ray and look at every node; how many workers there is room for. Raises where one of these cannot be, naming the fix."""
    cluster = config.raw["cluster"]
    connect(cluster["address"], cpus=(cluster["workers"] or 1) * cluster["cpus"], code=cluster["code"])
    try:
        return require(config)
    except BaseException:
        ray.shutdown()
        raise


def start_workers(config: SearchConfig, workers: int, say: Callable[[str], None]) -> RayPool:
    """Load the pipeline in every worker."""
    cluster = config.raw["cluster"]
    say(f"starting {workers} workers; each loads the pipeline once")
    if waiting := waiting_workers(config.plan, workers):
        say(waiting)
    keys = ("min_workers", "cpus", "gpus", "code", "latency_device", "max_attempts", "batch_timeout_s", "load_timeout_s")
    pool = RayPool(config.evaluator, workers=workers, join=make_join(cluster["latency_device"]), **{k: cluster[k] for k in keys})
    kinds = sorted(set(pool.devices))
    if len(kinds) > 1 and cluster["latency_device"] is None:
        say(f"warning: the workers' devices differ ({'; '.join(kinds)}), so latencies do not compare; set cluster.latency_device to one of them")
    return pool


def waiting_workers(plan: SearchPlan, workers: int) -> str | None:
    """What to say where workers outnumber a generation's candidates and so wait for its end; None where they do not."""
    if plan.mode == "asynchronous" or workers <= plan.population:
        return None
    return (
        f"note: {workers} workers share generations of {plan.population} candidates, and wait for the end of each; "
        f"search.mode=asynchronous keeps them busy, a search.population of {2 * workers} or more busier"
    )


def say_how_long(
    config: SearchConfig, pool: Pool, say: Callable[[str], None], record: SearchRecord, own: OwnReference | None
) -> torch.Tensor | None:
    """Say how long the search will take, from a first timed batch of the unaccelerated pipeline; the features of its own reference, once drawn.

    Raises:
        SearchFailed: The unaccelerated pipeline fails.
    """
    plain, workers = Strategy.full(config.evaluator.model.steps), getattr(pool, "size", 1)
    device = " and ".join(sorted(set(getattr(pool, "devices", []))))
    features = own.fetch(pool) if own else None

    def told(seconds: float, source: str = "its first batch") -> None:
        say("how long  " + search_workload(config, record, None if own and features is None else 0, len(calibration_of(config))).timed(seconds, workers, device, source))

    if own:
        say(f"the reference is {own.data.reference_in_words()}" + ("; they are drawn once, and kept with the search" if features is None else "; they are there already"))
    if UNACCELERATED in record.baselines:
        told(record.plain(record.images or config.evaluator.protocol.images).latency_ms / 1000, "as measured before")
    elif own is None or features is not None:
        told(first_batch_s(pool, plain, config.evaluator.protocol.batches()[0]))
    return own.draw(pool, plain, told) if own and features is None else features


def first_batch_s(pool: Pool, plain: Any, indices: Sequence[int]) -> float:
    """Seconds per image, features included, of one batch of the unaccelerated pipeline on a worker. Raises `SearchFailed` where it fails."""
    ((job, shard),) = pool.map([Job("first batch", [plain], [list(indices)], Task.REFERENCE)])
    if shard is None:
        raise SearchFailed(f"the unaccelerated pipeline itself fails, so that there is nothing to search: {job.errors[0]}")
    return float(shard.seconds / len(indices))


def _tune_loop(config: SearchConfig, workers: int, factory: PipelineMeasurer, algorithm: Nsga2 | AsynchronousNsga2) -> Loop:
    from search.run.tune import NSGA2Search  # Ray Tune takes seconds to import
    from search.run.tune_loop import TuneLoop

    cluster = config.raw["cluster"]
    return TuneLoop(
        NSGA2Search(**algorithm.settings),
        lambda plain: replace(factory, plain=plain),
        workers=workers,
        resources={"cpu": cluster["cpus"], "gpu": cluster["gpus"]},
        storage=config.folder / "tune",
        tries=cluster["max_attempts"],
        deadline_s=cluster["batch_timeout_s"],
    )


def _baselines(config: SearchConfig) -> dict[str, Strategy]:
    steps, interval = config.evaluator.model.steps, config.raw["search"]["deepcache_interval"]
    return {UNACCELERATED: Strategy.full(steps), f"DeepCache-like, every {interval}": Strategy.uniform(steps, interval)}


def calibration_of(config: SearchConfig) -> list[Strategy]:
    """What a cost table is measured with: every kind of call of the space and of the baselines."""
    steps, space = config.evaluator.model.steps, config.space
    own = [Step(d, r) for d in space.depths for r in space.ratios]
    entries = [*own, *space.frozen.values(), *(step for s in _baselines(config).values() for step in s)]
    depths = {e.cache_depth for e in entries} | {d for d in space.fixed_depths or ()}
    ratios = {e.prune_ratio for e in entries} | {r for r in space.fixed_ratios or ()}
    return calibration(steps, sorted(depths), sorted(ratios))


def make_tracker(config: SearchConfig) -> Any:
    """The tracker that a configuration asks for, or None."""
    if not config.raw["mlflow"]["enabled"]:
        return None
    from search.publish.mlflow_runs import Tracker  # MLflow takes seconds to import

    settings = config.raw["mlflow"]
    return Tracker(
        experiment=settings["experiment"], uri=settings["uri"], children=settings["children"], front_page=front_page, summary=_summary(config),
        flush_s=settings.get("flush_s", 60.0),  # ledgers of earlier versions do not hold it
    )  # fmt: skip


def _summary(config: SearchConfig) -> Callable[[SearchRecord], dict[str, float]]:
    """What the parent run shows after each generation; speedup is 1, the unaccelerated one, until a candidate reaches its FID."""
    gpus = config.raw["cluster"]["gpus"]

    def summary(record: SearchRecord) -> dict[str, float]:
        now = progress(record)
        found: dict[str, float] = {"front_size": now.front, "evaluations": now.done, "failures": now.failures, "device_hours": now.device_hours}
        return found | ({"gpu_hours": gpus * now.device_hours} if gpus else {}) | {"speedup": now.speedup or 1.0}

    return summary


def _deliver(config: SearchConfig, record: SearchRecord, tracker: Any, view: SearchView) -> None:
    """Write winners as JSON, the report, and the registry's versions; all of it again when run again."""
    strategies = winner_strategies(record, read_model_info(config.folder))
    folder = config.folder / "winners"
    for alias, strategy in strategies.items():
        write_card(strategy, folder / alias, replace=True)
        strategy.save(folder / f"{alias}.json")
    samples = {p.stem.split("-", 1)[1]: p.read_bytes() for p in sorted((config.folder / "samples").glob("*.png"))}
    report = write_report(record, config.folder / "report.html", samples)
    name, versions, stayed = config.raw["registry"]["name"], dict[str, str](), dict[str, str]()
    if tracker:
        from search.publish.registry import RegistryError, register

        tracker.finished(record, {"": report})
        if tracker.trouble or tracker.run_id is None:
            view.say(f"warning: MLflow does not have this search yet ({tracker.trouble}); once it answers, {_script('dato')} sync folder={config.folder}")
            view.say("         completes it and registers the winners")
        else:
            try:
                made = register(name, strategies, tracker.run_id, replace=config.raw["registry"]["replace"])
                versions, stayed = made.versions, made.stayed
            except RegistryError as error:
                view.say(f"warning: {error}")
    view.winners(record)
    if (apart := prediction_error(record)) is not None:
        view.say(f"latency   of candidates is the cost table's, {apart:.1%} from their own times (median); winners are timed beside the unaccelerated pipeline")
    view.say(f"report    {report}")
    view.say(f"winners   {folder}/*.json" + (f", and models:/{name} in the MLflow registry" if versions else ""))
    if tracker:
        view.say("browse    " + _mlflow_command())
    for alias, why in stayed.items():
        view.say(f"          models:/{name}@{alias} stays where it was: {why}. The new one is version {versions[alias]}; registry.replace=true moves the alias")
    if not strategies:
        return
    alias = "fastest" if "fastest" in strategies else next(iter(strategies))
    source = f"models:/{name}@{alias}" if versions and alias not in stayed else str(folder / f"{alias}.json")
    view.say(f"rivals    {_script('dato')} evaluate 'strategy=[{config.folder}]' compares the front with other ways to be fast, on the same images;")
    view.say(f"          {_script('dato')} report folder={config.folder} evaluation=<the folder it names> shows them in the report")
    view.say("use one   import dato")
    view.say(f'          strategy = dato.Strategy.load("{source}")')
    view.say("          with dato.accelerate(pipe, strategy):")
    view.say(f"              image = pipe(prompt, num_inference_steps={config.evaluator.model.steps}).images[0]")


def _mlflow_command() -> str:
    import mlflow

    return f"{_script('mlflow')} ui --backend-store-uri {without_credentials(mlflow.get_tracking_uri())}"


def _check_devices(config: SearchConfig, record: SearchRecord, pool: Pool) -> None:
    """Refuse to go on with latencies of devices that do not compare with those of the record."""
    if UNACCELERATED not in record.baselines or config.plan.latency != "measured" or config.raw["latency_from"] or config.raw["cluster"]["latency_device"]:
        return
    before, now = record.plain(record.images or config.evaluator.protocol.images).device, sorted(set(getattr(pool, "devices", [])))
    if before and now and not any(device in before for device in now):
        raise ConfigError(
            f"this search measured latencies on {before}, and its workers are now {' and '.join(now)}: they do not compare. Go on with cluster.threads and "
            "machines as before, or search anew with fresh_start=true or another output (search.latency=predicted prices all candidates by one table)"
        )


def _script(name: str) -> str:
    """A command of this environment, as one types it here."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() and shutil.which(name) != str(beside) else name


def _note_model(pool: Pool, folder: Path) -> None:
    """Write down which pipeline the workers hold; its winners' provenance tells it to whoever uses them."""
    if not (folder / MODEL_FILE).exists():
        for _, model_info in pool.map([Job("model info", [], [], Task.MODEL_INFO)]):
            if model_info is not None:
                write_model_info(folder, model_info)


def _recorded_latencies(folder: str | None) -> dict[tuple[str, int], float]:
    if folder is None:
        return {}
    path = Path(folder) / "ledger.jsonl"
    if not os.path.isfile(path):
        raise ConfigError(f"latency_from is {folder!r}, which holds no ledger.jsonl; give the folder of a search")
    return read_ledger(path).latencies


def _samples(pool: Pool, record: SearchRecord, steps: int) -> dict[str, torch.Tensor]:
    """Ten images of the unaccelerated pipeline and of each winner, same prompts and seeds."""
    strategies = {UNACCELERATED: Strategy.full(steps), **{alias: w.candidate.strategy for alias, w in record.winners.items()}}
    indices = list(range(FRESH_OFFSET, FRESH_OFFSET + 10))
    jobs = [Job(label, [s], indices, Task.SAMPLES) for label, s in strategies.items()]
    made = {job.key: pictures[0] for job, pictures in pool.map(jobs) if pictures is not None}
    return {label: made[label] for label in strategies if label in made}


def _write_samples(config: SearchConfig, record: SearchRecord, samples: dict[str, torch.Tensor]) -> None:
    """A row of images for each, and ``samples.png`` with all rows named."""
    folder, rows = config.folder / "samples", []
    for i, (label, images) in enumerate(samples.items()):
        path = folder / f"{i}-{label}.png"
        write_row(path, images)
        won = record.winners.get(label)
        rows.append((f"{label}, {won.speedup:.1f}x" if won else label, path))
    if rows:
        small = min(images.shape[-1] for images in samples.values()) < 128
        grid(rows, scale=2 if small else 1).save(config.folder / "samples.png")
