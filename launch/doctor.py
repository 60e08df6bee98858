"""``dato doctor``: whether a search of this configuration could run, before anything is spent on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import ray
import torch
from rich.console import Console
from rich.table import Table

from dato.files import user_path
from dato.strategy import Strategy
from launch.config import ConfigError, SearchConfig, build
from launch.estimate import calibration_of, first_batch_s, search_workload
from launch.hydra_app import run_with_hydra
from launch.pool import join_ray, worker_settings
from launch.preflight import LEAST_GB, Finding, look
from search.evaluate.pipelines import ModelError, check_model
from search.metrics.inception import WEIGHTS_URL
from search.optimize.winners import SearchFailed
from search.run.ray_cluster import ClusterError
from search.run.ray_pool import RayPool, WorkerError

MLFLOW_S = 5
"""Seconds that a tracking server has to answer."""


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
    """The model, the output folder and the driver's disk, on this machine."""
    try:
        check_model(config.evaluator.model)
        path = config.evaluator.model.path
        local = path == "embedded" or os.path.exists(user_path(path))
        model = Finding("model.path", "here", path if local else f"{path}, a hub id: each node downloads it into its Hugging Face cache")
    except ModelError as error:
        message, _, fix = str(error).rpartition("; ")
        model = Finding("model.path", "here", message, fix)
    found = [model]
    features = config.evaluator.protocol.features
    if features.partition(":")[0] == "inception":
        found.append(check_inception(features.partition(":")[2]))
    folder = config.folder
    while not os.path.isdir(folder):
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    found.append(Finding("output", "here", f"{folder}, {free:.0f} GB free", "" if free >= LEAST_GB else f"free at least {LEAST_GB:.0f} GB, or set output"))
    if not os.access(folder, os.W_OK):
        found.append(Finding("output", "here", f"{folder} cannot be written", "set output to a folder that you may write"))
    return found


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
        findings, workers = look(config)
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
    parts = urlsplit(uri)
    shown = uri.replace(f"{parts.username}:{parts.password}@", "") if parts.password else uri
    fix = "start the server or correct mlflow.uri; a search goes on without it, and dato sync folder=... completes its view later"
    if parts.scheme in ("http", "https"):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=MLFLOW_S) as answer:
                return Finding("MLflow", "here", f"{shown} answers" if answer.status == 200 else f"{shown}: status {answer.status}")
        except (OSError, ValueError, urllib.error.URLError) as error:
            return Finding("MLflow", "here", f"{shown} does not answer ({error})", fix, fatal=False)
    if parts.scheme.startswith(("postgresql", "mysql", "mssql")):
        if parts.scheme.startswith("postgresql") and importlib.util.find_spec("psycopg") is None:
            return Finding("MLflow", "here", f"{shown}: psycopg is missing", "pip install 'dato-search[postgres]'", fatal=False)
        try:
            with socket.create_connection((parts.hostname or "localhost", parts.port or 5432), timeout=MLFLOW_S):
                return Finding("MLflow", "here", f"{shown}: the database answers")
        except OSError as error:
            return Finding("MLflow", "here", f"{shown}: no database answers ({error})", fix, fatal=False)
    if parts.scheme == "sqlite":
        folder = Path(parts.path.removeprefix("/") or ".").absolute().parent
        writable = os.access(folder, os.W_OK)
        return Finding("MLflow", "here", f"{shown} in {folder}" if writable else f"{folder} cannot be written", "" if writable else "set mlflow.uri", fatal=False)
    return Finding("MLflow", "here", f"{shown}, which is not checked")
