"""``dato doctor``: whether a search of this configuration could run, before anything is spent on it."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import ray
import torch
from rich.console import Console
from rich.table import Table

from analysis.progress import in_use
from dato.files import refuse_target, user_path
from dato.mlflow_store import ANSWER_S, StoreError, ask, check_address
from dato.sources import without_credentials
from dato.strategy import Strategy
from launch.config import ConfigError, SearchConfig, build
from launch.estimate import calibration_of, first_batch_s, search_workload
from launch.hydra_app import run_with_hydra
from launch.pool import join_ray, worker_settings
from launch.preflight import LEAST_GB, Finding, look
from launch.search import recorded_latencies
from search.data.datasets import Data
from search.data.images import glance, unreadable_error
from search.evaluate.hub import UnreachableError, commit_of
from search.evaluate.model_files import EMBEDDED_MODELS, check_model, here, parts
from search.ledger import read_ledger
from search.metrics.features import load_features
from search.metrics.inception import WEIGHTS_URL
from search.metrics.moments import Moments
from search.metrics.reference import weight_files
from search.metrics.similarity import is_similarity, load_similarity
from search.optimize.winners import SearchFailed
from search.run.ray_cluster import ClusterError
from search.run.ray_pool import RayPool, WorkerError

READ_WHOLE = 100
"""Real images that are read to their ends; of a folder with more, the others' headers tell."""


def run(overrides: Sequence[str]) -> int:
    """Print what was found and what to fix; 0 where a search could start, 1 where it could not."""
    given = [o for o in overrides if o.startswith("time=")]
    if any(o not in ("time=true", "time=false") for o in given):
        raise ConfigError(f"{given[0]!r} is not allowed; write time=true, which loads the model on one worker and times a batch, or time=false")
    return run_with_hydra("doctor", "search", [o for o in overrides if o not in given], lambda raw: _examine(build(raw), timed="time=true" in given))


def _examine(config: SearchConfig, timed: bool) -> int:
    findings = [*check_here(config), check_mlflow(config), *check_cluster(config, timed)]
    table = Table(title=f"search {config.search_id}", title_justify="left")
    for name in ("what", "where", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for f in findings:
        table.add_row(f.what, f.where, f.found, f.fix, style="" if not f.fix else "red" if f.fatal else "yellow")
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 160).print(table)
    wrong = sum(1 for f in findings if f.fix and f.fatal)
    print(f"{wrong} thing{'s' if wrong != 1 else ''} to fix" if wrong else "ready")
    return 1 if wrong else 0


def check_here(config: SearchConfig) -> list[Finding]:
    """Whatever a search looks at on this machine before it starts, by the functions that it calls itself; writes nothing."""
    features, similarities = config.evaluator.protocol.features, filter(is_similarity, config.evaluator.protocol.similarity)
    checks = {"model.path": _look_at_model, "latency_from": _read_latencies, "search.warm_start": _read_strategies, "data": _read_data, "output": _look_at_ledger}
    found = [checked(what, partial(check, config)) for what, check in checks.items()]
    found += [checked(f"protocol.similarity {name}", partial(_load, name)) for name in similarities]
    if features.partition(":")[0] == "inception":
        found.append(check_inception(features.partition(":")[2]))
    return [f for f in [*found, check_disk(config.folder)] if f.found]


def checked(what: str, check: Callable[[], str]) -> Finding:
    """What a check finds, or the message and the way out of what it refuses."""
    try:
        return Finding(what, "here", check())
    except (ValueError, RuntimeError, OSError) as error:
        message, _, fix = str(error).rpartition("; ")
        return Finding(what, "here", message or str(error), fix if message else f"correct {what}")


def _look_at_model(config: SearchConfig) -> str:
    """Where each part of the model is; what the hub refuses is refused here, and where it does not answer is said."""
    model = config.evaluator.model
    check_model(model)
    found = ["embedded"] if model.path in EMBEDDED_MODELS else []
    for part in parts(model):
        if path := here(part, model.mirror):
            found.append(part.given if part.local else f"{part.given} in the mirror, {path}")
        elif part.hub:
            try:
                found.append(f"{part.given} at commit {commit_of(part.hub, part.key)[:12]}, a hub id: each node fetches it once into its Hugging Face cache")
            except UnreachableError as error:
                found.append(f"{part.given}, a hub id: {error}")
    return "; ".join(found)


def _read_latencies(config: SearchConfig) -> str:
    found = recorded_latencies(config.keys.latency_from)
    return f"{len(found)} latencies of {config.keys.latency_from}" if config.keys.latency_from else ""


def _read_strategies(config: SearchConfig) -> str:
    config.algorithm()
    return f"{', '.join(config.keys.search.warm_start)} can be read" if config.keys.search.warm_start else ""


def _load(similarity: str) -> str:
    load_similarity(similarity)
    return "can be used"


def _read_data(config: SearchConfig) -> str:
    data, features = Data(config.evaluator.data), config.evaluator.protocol.features
    if weight_files(features):
        load_features(features)
    if data.spec.statistics:
        Moments.load(data.spec.statistics)
        return f"{len(data.prompts)} prompts; {data.reference_in_words()}"
    unreadable = glance(data.paths, READ_WHOLE)
    if unreadable and data.spec.on_unreadable == "fail":
        raise unreadable_error(len(data.paths), unreadable)
    left_out = f"; {len(unreadable)} cannot be read and are left out" if unreadable else ""
    more = f"; read: every header, and {READ_WHOLE} images at most to their ends (a search reads all)" if len(data.paths) > READ_WHOLE else ""
    return f"{len(data.prompts)} prompts; {data.reference_in_words()}{left_out}{more}"


def _look_at_ledger(config: SearchConfig) -> str:
    path = config.ledger_path
    if not os.path.exists(path):
        return ""
    if why := refuse_target(path):
        raise ConfigError(f"cannot write {path}: {why}; set output to a folder of your own")
    if in_use(path):
        raise ConfigError(f"a search runs in {config.folder} already; wait for its end, or set another output")
    if config.keys.fresh_start or not path.stat().st_size:
        return ""
    record = read_ledger(path)
    if record.search_id != config.search_id:
        raise ConfigError(f"{path} belongs to search {record.search_id}, not {config.search_id}; set another output")
    return f"{len(record.results)} results there, with which the search goes on" + (", and it is finished" if record.finished else "")


def check_disk(folder: Path) -> Finding:
    """Whether the search's folder can be made, and has room."""
    base = folder
    while not os.path.lexists(base):
        base = base.parent
    if not os.path.isdir(base):
        return Finding("output", "here", f"{folder} cannot be made: {base} is no folder", "set output to a folder that you may write")
    if not os.access(base, os.W_OK):
        return Finding("output", "here", f"{base} cannot be written", "set output to a folder that you may write")
    free = shutil.disk_usage(base).free / 1e9
    return Finding("output", "here", f"{base}, {free:.0f} GB free", "" if free >= LEAST_GB else f"free at least {LEAST_GB:.0f} GB, or set output")


def check_inception(given: str) -> Finding:
    """Inception's weights, which every node needs: the file that is named, or the one that is downloaded once."""
    path = user_path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS_URL).name
    if path.is_file():
        return Finding("protocol.features", "here", f"inception, weights in {path}")
    if given:
        return Finding("protocol.features", "here", f"{path} does not exist", f"download {WEIGHTS_URL} and give protocol.features=inception:<that file>")
    return Finding("protocol.features", "here", f"inception: each node downloads 91 MB from {urlsplit(WEIGHTS_URL).hostname}, once")


def check_cluster(config: SearchConfig, timed: bool = False) -> list[Finding]:
    """The cluster and each of its nodes, and how long the search would take there; `timed`: from a batch on one worker."""
    cluster = config.keys.cluster
    try:
        join_ray(cluster)
    except ClusterError as error:
        message, _, fix = str(error).rpartition("; ")
        return [Finding("cluster.address", "here", message, fix)]
    try:
        findings, workers, _ = look(config)
        findings.append(check_time(config, workers, timed and not any(f.fix and f.fatal for f in findings)))
    finally:
        ray.shutdown()
    return [Finding("cluster.address", "here", str(cluster.address or "this machine alone")), *findings]


def check_time(config: SearchConfig, workers: int, timed: bool) -> Finding:
    """How long the search would take: as it says itself when it starts, from a first batch of the unaccelerated pipeline on one worker."""
    work, cluster = search_workload(config, calibration=len(calibration_of(config))), config.keys.cluster
    if not timed:
        return Finding("how long", "cluster", f"{work.in_words()} on {workers} workers; dato doctor ... time=true loads the model on one of them and times a batch")
    try:
        pool = RayPool(config.evaluator, workers=1, **{**worker_settings(cluster), "max_attempts": 1})
        try:
            seconds = first_batch_s(pool, Strategy.full(config.evaluator.model.steps), config.evaluator.protocol.batches()[0])
            return Finding("how long", "cluster", work.timed(seconds, workers, " and ".join(pool.devices), "a first batch on one worker"))
        finally:
            pool.close()
    except (SearchFailed, WorkerError) as error:
        message, _, fix = str(error).partition("; ")
        return Finding("how long", "cluster", message, fix or "see what the worker says")


def check_mlflow(config: SearchConfig) -> Finding:
    """Whether the tracking server answers. A search runs without it, so nothing here is fatal."""
    if not config.keys.mlflow.enabled:
        return Finding("MLflow", "here", "off")
    uri = config.keys.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    shown, go_on = without_credentials(uri), "a search goes on without it, and dato sync folder=... completes its view later"
    try:
        check_address(uri, "mlflow.uri" if config.keys.mlflow.uri else "MLFLOW_TRACKING_URI")
        ask(uri)
        if uri.startswith(("http://", "https://")):
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_S):
                return Finding("MLflow", "here", f"{shown} answers")
    except StoreError as error:
        message, _, fix = without_credentials(str(error)).rpartition("; ")
        return Finding("MLflow", "here", message, f"{fix}; {go_on}", fatal=False)
    except (OSError, ValueError) as error:
        return Finding("MLflow", "here", f"{shown} does not answer ({error})", f"start the server or correct mlflow.uri; {go_on}", fatal=False)
    return Finding("MLflow", "here", f"{shown} answers" if urlsplit(uri).scheme.startswith(("sqlite", "postgresql", "mysql", "mssql")) else f"{shown}, which is not checked")
