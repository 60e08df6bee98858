"""``dato search``: search, validate, export, report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from launch.config import ConfigError, SearchConfig, build
from launch.deliver import deliver, make_tracker
from launch.environment import environment
from launch.estimate import baselines_of, calibration_of, say_how_long
from launch.hydra_app import run_with_hydra
from launch.live_report import ReportKeeper
from launch.pinned import pin_search
from launch.pool import connect_cluster, start_workers, warnings_of
from launch.samples import draw_samples, write_samples
from launch.terminal import SearchView
from search.data.datasets import Data
from search.evaluate.measure import check_metrics, load_metrics, measure
from search.evaluate.pipelines import check_model
from search.evaluate.shard_store import ShardStore
from search.ledger import Ledger, read_ledger, set_aside
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.publish.strategies import MODEL_FILE, read_model_info, write_model_info
from search.records import UNACCELERATED, SearchRecord
from search.run import interrupt
from search.run.driver import Driver
from search.run.jobs import Job, Task
from search.run.loops import Loop, make_loop
from search.run.measurer import PipelineMeasurer
from search.run.own_reference import own_reference
from search.run.pools import Pool
from search.run.ray_pool import RayPool
from search.run.real_images import RealImagesOnWorker
from search.run.recorder import Recorder
from search.run.settings import SearchPlan


def run(overrides: Sequence[str]) -> int:
    """Run or continue the search of a configuration; returns the exit code."""
    return run_with_hydra("search", "search", overrides, lambda raw: _run(build(raw)))


def _run(config: SearchConfig) -> int:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    check_model(config.evaluator.model)
    if config.keys.fresh_start and config.folder.exists():
        set_aside(config.ledger_path)
    latencies = recorded_latencies(config.keys.latency_from)
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
        if config.keys.search.retry_failed and any(not m.ok for m in ledger.record.results.values()):
            view.say("note: search.retry_failed does nothing here: winners are validated, and what failed is tried again in a search that is not finished only")
    if not ledger.record.finished and not ledger.record.notes.get("reference"):  # MLflow's runs are tagged with it
        ledger.append("notes", notes={"reference": Data(config.evaluator.data).reference_in_words()})
    tracker = make_tracker(config, config.folder)
    if tracker:
        tracker.begin(ledger.record)
    if not ledger.record.finished:
        view.say(f"watch     from another shell: dato report folder={config.folder} watch=true")
        spec = config.evaluator
        own = own_reference(config.folder, spec)
        check_metrics(spec)
        loaded = pin_search(ledger, spec, view.say)
        factory = PipelineMeasurer(loaded)
        machines = connect_cluster(config, config.plan.population)
        pool: RayPool | None = None

        def after(pool: Pool, record: SearchRecord) -> None:
            view.stop()
            view.say("drawing samples")
            write_samples(config.folder, record, draw_samples(pool, record, spec.model.steps))

        def before(pool: Pool) -> None:
            _check_devices(config, ledger.record, pool)
            _note_model(pool, config.folder)
            if "measured_without" not in ledger.record.notes:
                ledger.append("notes", notes={"measured_without": (read_model_info(config.folder) or {}).get("measured_without", [])})
            if (said := warnings_of(config, pool)) and ledger.record.notes.get("warnings") != said:
                ledger.append("notes", notes={"warnings": said})
            features = say_how_long(config, pool, view.say, ledger.record, own)
            if own is None and spec.needs_features:
                view.say("reference statistics of the real images")
            factory.metrics = metrics = load_metrics(spec, features, RealImagesOnWorker(pool))
            recorder.measure = partial(measure, metrics=metrics)
            if own is None and metrics.unreadable and (read := Data(spec.data).reference_in_words(metrics.reference_images)) != ledger.record.reference:
                ledger.append("notes", notes={"reference": read})
            view.say(f"measuring {'the cost table, ' if config.plan.latency == 'predicted' else ''}the unaccelerated pipeline and the DeepCache-like schedule")

        pages = ReportKeeper(config.ledger_path, config.folder / "report.html", view.say)
        recorder = Recorder(
            ledger, config.plan, None, watchers=[w for w in (view, tracker, pages) if w], latencies=latencies,
            retry_failed=config.keys.search.retry_failed,
        )  # fmt: skip
        tune = config.keys.search.engine == "tune"
        loop = _tune_loop(config, machines.workers, factory, algorithm) if tune else make_loop(algorithm)
        driver = Driver(
            recorder, spec.protocol, loop, baselines_of(config), kept=ShardStore(config.folder / "kept"), calibration=calibration_of(config), before=before, after=after,
            say=view.say,
        )  # fmt: skip
        start = partial(start_workers, config, loaded, machines, view.say, partial(waiting_workers, config.plan))
        try:
            pool = start()
            driver.prepare(pool)
            if tune:  # which has the machines meanwhile
                pool.close()
            driver.search(pool)
            if tune:
                pool = start()
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
            pages.close()
            if pool:
                pool.close()
            ray.shutdown()
    deliver(config, ledger.record, tracker, view)
    view.say(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def waiting_workers(plan: SearchPlan, workers: int) -> str | None:
    """What to say where workers outnumber a generation's candidates and so wait for its end; None where they do not."""
    if plan.mode == "asynchronous" or workers <= plan.population:
        return None
    return (
        f"note: {workers} workers share generations of {plan.population} candidates, and wait for the end of each; "
        f"search.mode=asynchronous keeps them busy, a search.population of {2 * workers} or more busier"
    )


def _tune_loop(config: SearchConfig, workers: int, factory: PipelineMeasurer, algorithm: Nsga2 | AsynchronousNsga2) -> Loop:
    from search.run.tune import NSGA2Search  # Ray Tune takes seconds to import
    from search.run.tune_loop import TuneLoop

    cluster = config.keys.cluster
    return TuneLoop(
        NSGA2Search(**algorithm.settings),
        lambda plain: replace(factory, plain=plain),
        workers=workers,
        resources={"cpu": cluster.cpus, "gpu": cluster.gpus},
        storage=config.folder / "tune",
        tries=cluster.max_attempts,
        deadline_s=cluster.batch_timeout_s,
    )


def _check_devices(config: SearchConfig, record: SearchRecord, pool: Pool) -> None:
    """Refuse to go on with latencies of devices that do not compare with those of the record."""
    if UNACCELERATED not in record.baselines or config.plan.latency != "measured" or config.keys.latency_from or config.keys.cluster.latency_device:
        return
    before, now = record.plain(record.images or config.evaluator.protocol.images).device, sorted(set(getattr(pool, "devices", [])))
    if before and now and not any(device in before for device in now):
        raise ConfigError(
            f"this search measured latencies on {before}, and its workers are now {' and '.join(now)}: they do not compare. Go on with cluster.threads and "
            "machines as before, or search anew with fresh_start=true or another output (search.latency=predicted prices all candidates by one table)"
        )


def _note_model(pool: Pool, folder: Path) -> None:
    """Write down which pipeline the workers hold; its winners' provenance tells it to whoever uses them."""
    if not (folder / MODEL_FILE).exists():
        for _, model_info in pool.map([Job("model info", [], [], Task.MODEL_INFO)]):
            if model_info is not None:
                write_model_info(folder, model_info)


def recorded_latencies(folder: str | None) -> dict[tuple[str, int], float]:
    """Latencies of another search, by strategy and images. Raises `ConfigError` where there is none, `LedgerError` where it cannot be read."""
    if folder is None:
        return {}
    path = Path(folder) / "ledger.jsonl"
    if not os.path.isfile(path):
        raise ConfigError(f"latency_from is {folder!r}, which holds no ledger.jsonl; give the folder of a search")
    return read_ledger(path).latencies
