"""What a pool does, as Ray's own metrics, for those who have Prometheus; nothing where Ray's metrics agent does not run.

The agent comes with `ray[default]` and runs on every node of a cluster that `ray start` started. Names and how to scrape them are in
launch/cluster/README.md. A metric that cannot be recorded ends all of them, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from search.run.jobs import Job, Piece, Task

_log = logging.getLogger(__name__)
_SECONDS = [0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0]


def agent_runs() -> bool:
    """Whether this process's node has a metrics agent; Ray says -1 where it has not."""
    mine = ray.get_runtime_context().get_node_id()
    return any(n["NodeID"] == mine and n.get("MetricsExportPort", -1) > 0 for n in ray.nodes())


class PoolMetrics:
    """Records; made once Ray is joined."""

    def __init__(self) -> None:
        self._on = agent_runs()
        if self._on:
            self._try(self._make)

    def _make(self) -> None:
        self._candidates = Counter("dato_candidates", "Candidates whose evaluation ended, by outcome: done or failed", ("outcome",))
        self._failures = Counter("dato_failures", "Pieces of work that ended without a result, by cause: error, or node for a lost machine; most are tried again", ("cause",))
        self._waits = Histogram("dato_worker_wait_seconds", "Seconds that a loaded worker waited for its next piece of work", _SECONDS)
        self._pieces = Histogram("dato_piece_seconds", "Seconds that a worker took for a piece of work, by task", _SECONDS, ("task",))
        self._workers = Gauge("dato_workers", "Workers, by state: loaded or starting", ("state",))

    def _try(self, record: Callable[[], Any]) -> None:
        try:
            record()
        except Exception as error:
            self._on = False
            _log.warning("Ray records no metrics of this search any more: %s", error)

    def job(self, ended: tuple[Job, Any] | None) -> tuple[Job, Any] | None:
        """A job that ended, if one did; handed through."""
        if self._on and ended and ended[0].task is Task.EVALUATE:
            outcome = "failed" if ended[1] is None else "done"
            self._try(lambda: self._candidates.inc(1, {"outcome": outcome}))
        return ended

    def failed(self, *, lost: bool) -> None:
        """A piece ended without a result."""
        if self._on:
            self._try(lambda: self._failures.inc(1, {"cause": "node" if lost else "error"}))

    def piece(self, piece: Piece, seconds: float) -> None:
        """A piece has its result."""
        if self._on:
            self._try(lambda: self._pieces.observe(seconds, {"task": piece.job.task.name.lower()}))

    def waited(self, seconds: float) -> None:
        """A worker has its next piece."""
        if self._on:
            self._try(lambda: self._waits.observe(seconds))

    def workers(self, loaded: int, starting: int) -> None:
        """How many workers there are."""
        if self._on:
            self._try(lambda: (self._workers.set(loaded, {"state": "loaded"}), self._workers.set(starting, {"state": "starting"})))
