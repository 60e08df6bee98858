"""What the driver's machine does while a search runs: processor, memory, disk, network and GPUs, as MLflow's page of system metrics shows it.

MLflow's own monitor writes from a thread of its own, asks the server after each sample and ends at its first failure. Here its
samplers are used alone: what they say waits in memory, and whoever writes takes it when the server answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

_log = logging.getLogger(__name__)
EVERY_S = 10.0
"""Seconds between two samples, where MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says nothing."""
_KEPT = 8640
"""Samples that wait for a server that is away, at most: a day's. The oldest go first."""


def wanted() -> bool:
    """Whether there are to be any: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns them off."""
    return not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.is_set() or bool(MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get())


class SystemMetrics:
    """Samples this machine in a thread of its own, from `start` to `stop`.

    Args:
        every_s: Seconds between two samples; None for MLflow's setting, or 10.
    """

    def __init__(self, every_s: float | None = None) -> None:
        self._every = every_s or MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or EVERY_S
        self._samples: deque[tuple[int, dict[str, float]]] = deque(maxlen=_KEPT)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; nothing where it has begun."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="dato system metrics", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End. Returns at once."""
        self._ended.set()
        self._thread = None

    def waiting(self, after: int) -> tuple[list[Metric], int]:
        """All samples that wait, with steps that count up from `after`; and how many samples these are, for `written`."""
        samples = list(self._samples)
        metrics = [Metric(f"system/{k}", v, at, after + i + 1) for i, (at, values) in enumerate(samples) for k, v in values.items()]
        return metrics, len(samples)

    def written(self, count: int) -> None:
        """The oldest `count` samples need to wait no longer."""
        for _ in range(min(count, len(self._samples))):
            self._samples.popleft()

    def _run(self) -> None:
        ended, monitors = self._ended, [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpus()]
        while not ended.wait(self._every):
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._samples.append((int(time.time() * 1000), values))


def _gpus() -> list[Any]:
    try:
        return [GPUMonitor()]
    except (ImportError, RuntimeError) as error:  # no driver of NVIDIA's, or no GPU
        _log.debug("no GPU is watched (%s)", error)
        return []
