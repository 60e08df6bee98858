"""Where jobs run: the interface, and this process as the smallest pool; `search.run.ray_pool` has the machines of a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from search.run import interrupt
from search.run.jobs import Job


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
        """Each job with its result as it finishes; jobs are taken one at a time, when there is a worker for them."""
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
                yield job, result

    def close(self) -> None:
        """Nothing to stop."""
