"""Where jobs run: the interface, and this process as the smallest pool; `search.run.ray_pool` has the machines of a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from search.run import interrupt
from search.run.jobs import Job, Measure, Measured


class WorkerError(RuntimeError):
    """Workers cannot be started or are all gone: the message says why and what to do."""


def least_workers(workers: int | None, min_workers: int | None, *, bounded: bool, running: bool) -> int | None:
    """How many workers are to be loaded before work begins; None for all that there is room for.

    Args:
        workers: How many at most; None for as many as the cluster has room for.
        min_workers: As configured; None for all of them.
        bounded: Whether a worker reserves anything, so that machines have room for so many.
        running: Whether the cluster is there already.

    Raises:
        WorkerError: These cannot be.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise WorkerError(f"cluster.workers is {workers!r}; give at least 1, or null for as many as a running cluster has room for")
    if workers is None and not (bounded and running):
        raise WorkerError("cluster.workers is null, which needs a running cluster (cluster.address) and cluster.cpus or cluster.gpus above 0; give at least 1")
    least = workers if min_workers is None else min_workers
    if least is not None and (not isinstance(least, int) or not 1 <= least <= (workers or least)):
        raise WorkerError(f"cluster.min_workers is {min_workers!r}; give 1 to {workers} (cluster.workers), or null for all of them")
    return least


class Evaluator(Protocol):
    """What a worker holds: runs strategies on batches of image indices. May have a `device` in words."""

    def run(self, strategies: Sequence[Any], batches: Sequence[Sequence[int]]) -> Any:
        """The result of one job."""
        ...


class EvaluatorFactory(Protocol):
    """Picklable; builds an evaluator inside the worker."""

    def build(self) -> Evaluator:
        """Load everything once."""
        ...


class Pool(Protocol):
    """Runs jobs."""

    @property
    def size(self) -> int:
        """How many workers share the work, at least 1; may change where machines come and go."""
        ...

    def known_good(self, job: Job) -> None:
        """Say what worked before: a worker that nobody else can vouch for is checked with it."""
        ...

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result, or a `Measured` where it is to be measured, as it finishes; jobs are taken one at a time, when there is a worker for them."""
        ...

    def measure(self, measure: Measure, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What `measure` makes of each result, and what is beside it, in their order: away from the driver, as for a job's."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class InProcessPool:
    """Runs jobs one after the other in this process."""

    size = 1

    def __init__(self, factory: EvaluatorFactory) -> None:
        self.evaluator = factory.build()

    def known_good(self, job: Job) -> None:
        """There is one worker, and nobody to compare it with."""

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result, or with None and its errors. The next job is taken when the last one is handed back."""
        for job in jobs:
            interrupt.check()
            job.tries += 1
            began = time.monotonic()
            try:
                result = getattr(self.evaluator, job.task.value)(job.strategies, job.batches)
            except Exception as error:  # a failing candidate is data: its error is recorded by the caller
                job.errors.append(f"{type(error).__name__}: {error}")
                job.failed_s += time.monotonic() - began
                yield job, None
            else:
                yield job, Measured(job.measure(result, *job.beside), partial(_itself, result)) if job.measure else result

    def measure(self, measure: Measure, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Here: there is nowhere else."""
        return [measure(*one) for one in given]

    def close(self) -> None:
        """Nothing to stop."""


def _itself(result: Any) -> Any:
    return result
