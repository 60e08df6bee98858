"""Where a command's pipelines run: join or start Ray, look at every node, load the workers. One way for all commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray

from launch.preflight import Configured, Machines, require
from launch.schema import SearchKeys
from search.evaluate.evaluator import is_processor
from search.evaluate.shards import make_join
from search.run.pools import EvaluatorFactory, InProcessPool
from search.run.ray_cluster import connect
from search.run.ray_pool import RayPool
from search.run.settings import ClusterSettings
from search.run.shared_gpu import shared_gpu_warning


def start_pool(config: Configured, factory: EvaluatorFactory, useful: int, say: Callable[[str], None]) -> RayPool | InProcessPool:
    """Ray workers with the pipeline loaded, on nodes that were looked at; this process alone where there are to be no workers.

    Args:
        config: Of a search or an evaluation.
        factory: Builds the evaluator of each worker.
        useful: How many workers could be busy at once.
        say: Prints a line.

    Raises:
        ClusterError: The cluster cannot be joined.
        PreflightError: A node lacks something; the message names both and the fix.
        WorkerError: The workers do not load.
    """
    if config.keys.cluster.workers == 0:
        return InProcessPool(factory)
    machines = connect_cluster(config, useful)
    try:
        return start_workers(config, factory, machines, say)
    except BaseException:
        ray.shutdown()
        raise


def connect_cluster(config: Configured, useful: int) -> Machines:
    """Join or start Ray and look at every node; `useful` workers could be busy at once. Raises where one of these cannot be, naming the fix."""
    join_ray(config.keys.cluster)
    try:
        return require(config, useful)
    except BaseException:
        ray.shutdown()
        raise


def join_ray(cluster: ClusterSettings) -> None:
    """Join the cluster, or start Ray here with room for the workers. Raises `ClusterError`."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    connect(cluster.address, cpus=(cluster.workers or 1) * cluster.cpus, code=cluster.code)


def start_workers(
    config: Configured, factory: EvaluatorFactory, machines: Machines, say: Callable[[str], None], note: Callable[[int], str | None] = lambda workers: None
) -> RayPool:
    """Load the pipeline in every worker of the joined cluster; `note` is what else to say of so many."""
    cluster = config.keys.cluster
    say(f"starting {machines.workers} workers; each loads the pipeline once" + ("; more as machines join" if cluster.workers is None else ""))
    if said := note(machines.workers):
        say(said)
    settings = {**worker_settings(cluster), "join": make_join(cluster.latency_device), "latency_device": cluster.latency_device}
    pool = RayPool(
        factory,
        workers=cluster.workers or cluster.max_workers,
        # Bounded from above, it still begins with what there is room for.
        min_workers=cluster.min_workers or (machines.workers if cluster.max_workers else None),
        gate=machines.check,
        demand=machines.demand,
        say=say,
        **settings,
    )
    kinds = sorted(set(pool.devices))
    if len(kinds) > 1 and cluster.latency_device is None:
        say(f"warning: the workers' devices differ ({'; '.join(kinds)}), so latencies do not compare; set cluster.latency_device to one of them")
    for warning in warnings_of(config, pool):
        say(f"warning: {warning}")
    return pool


def warnings_of(config: Configured, pool: Any) -> list[str]:
    """What whoever reads the figures of these workers should know; their record keeps it."""
    keys = config.keys
    if isinstance(keys, SearchKeys) and keys.latency_from:
        return []
    workers = [(node, not is_processor(device)) for node, device in getattr(pool, "places", [])]
    said = shared_gpu_warning(keys.cluster.gpus, workers, keys.search.latency if isinstance(keys, SearchKeys) else None)
    return [said] if said else []


def worker_settings(cluster: ClusterSettings) -> dict[str, Any]:
    """What `RayPool` takes of the keys of `cluster`, however many workers there are."""
    return {key: getattr(cluster, key) for key in ("cpus", "gpus", "code", "max_attempts", "batch_timeout_s", "load_timeout_s")}
