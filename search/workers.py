"""Where jobs run: Ray actors that hold a loaded evaluator each, or this process.

A job that fails is tried on another worker, then handed back with its error; a worker that dies or passes its deadline is
replaced. Results come back as they finish.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray


class Evaluator(Protocol):
    """What a worker holds: runs strategies on batches of image indices."""

    def run(self, strategies: Sequence[Any], batches: Sequence[Sequence[int]]) -> Any:
        """The result of one job."""
        ...


class EvaluatorFactory(Protocol):
    """Picklable; builds an evaluator inside the worker."""

    def build(self) -> Evaluator:
        """Load everything once."""
        ...


@dataclass
class Job:
    """Strategies to run on batches of images.

    Attributes:
        key: The caller's name for it.
        strategies: What to run, as the evaluator takes it: strategies, or the entries of a comparison.
        batches: Image indices by batch.
        method: The evaluator's method: "run", or "samples" for pictures.
        tries: How often it was started.
        errors: What each failed try said.
    """

    key: Any
    strategies: Sequence[Any]
    batches: Sequence[Any]
    method: str = "run"
    tries: int = 0
    errors: list[str] = field(default_factory=list)


class WorkerError(RuntimeError):
    """Workers cannot be started: the message says why and what to do."""


class InProcessPool:
    """Runs jobs one after the other in this process."""

    size = 1

    def __init__(self, factory: EvaluatorFactory) -> None:
        self._evaluator = factory.build()

    def map(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result, or with None and its errors."""
        for job in jobs:
            try:
                yield job, getattr(self._evaluator, job.method)(job.strategies, job.batches)
            except Exception as error:  # a failing candidate is data: its error is recorded by the caller
                job.errors.append(f"{type(error).__name__}: {error}")
                yield job, None

    def close(self) -> None:
        """Nothing to stop."""


class _Worker:
    """A Ray actor around an evaluator."""

    def __init__(self, factory: EvaluatorFactory) -> None:
        self._evaluator = factory.build()

    def ready(self) -> bool:
        return True

    def do(self, method: str, strategies: Sequence[Any], batches: Sequence[Any]) -> Any:
        return getattr(self._evaluator, method)(strategies, batches)


class RayPool:
    """Long-lived Ray actors, one evaluator each, on a local or a running cluster.

    Args:
        factory: Builds the evaluator in each actor.
        workers: How many actors.
        cpus: CPUs reserved for each.
        gpus: GPUs reserved for each, may be a fraction.
        address: Of a running cluster; None starts Ray on this machine, reachable from it alone.
        tries: How often a job is started at most.
        deadline_s: Seconds after which a job's worker is replaced and the job tried again.
        start_s: Seconds that the actors may take to load.

    Raises:
        WorkerError: Fewer than one worker, or Ray or the actors do not start.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        *,
        workers: int,
        cpus: float = 1,
        gpus: float = 0,
        address: str | None = None,
        tries: int = 3,
        deadline_s: float = 3600,
        start_s: float = 600,
    ) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise WorkerError(f"cluster.workers is {workers!r}; give at least 1")
        self.size, self._tries, self._deadline = workers, tries, deadline_s
        try:
            if address is None:
                # Loopback only: nothing outside this machine can reach the head.
                ray.init(
                    num_cpus=max(1, round(workers * cpus)),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=200 * 2**20,
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WorkerError(f"Ray does not start at {address or 'this machine'}: {error}; check cluster.address and that no other Ray is in the way") from None
        self._remote = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._factory = ray.put(factory)
        self._actors = [self._remote.remote(self._factory) for _ in range(workers)]
        try:
            ray.get([actor.ready.remote() for actor in self._actors], timeout=start_s)
        except ray.exceptions.GetTimeoutError:
            self.close()
            raise WorkerError(f"the {workers} workers did not load within {start_s:.0f} s; are {workers} x ({cpus} CPUs, {gpus} GPUs) there?") from None
        except ray.exceptions.RayError as error:
            self.close()
            cause = getattr(error, "cause", None) or error
            raise WorkerError(f"a worker cannot load its model: {_first_line(cause)}") from None

    def map(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result as it finishes, or with None and its errors."""
        waiting = deque(jobs)
        idle = deque(self._actors)
        running: dict[Any, tuple[Job, Any, float]] = {}
        while waiting or running:
            while waiting and idle:
                job, actor = waiting.popleft(), idle.popleft()
                job.tries += 1
                ref = actor.do.remote(job.method, list(job.strategies), list(job.batches))
                running[ref] = (job, actor, time.monotonic() + self._deadline)
            done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            late = [ref for ref, (_, _, end) in running.items() if ref not in done and time.monotonic() > end]
            for ref in [*done, *late]:
                job, actor, _ = running.pop(ref)
                result = None
                if ref in late:
                    job.errors.append(f"no result within {self._deadline:.0f} s")
                    actor = self._replace(actor)
                else:
                    try:
                        result = ray.get(ref)
                    except ray.exceptions.RayTaskError as error:
                        job.errors.append(_first_line(error.cause))
                    except ray.exceptions.RayError as error:
                        job.errors.append(f"the worker died: {_first_line(error)}")
                        actor = self._replace(actor)
                idle.append(actor)  # at the end: a retry goes to another worker where there is one
                if result is None and job.tries < self._tries:
                    waiting.append(job)
                else:
                    yield job, result

    def _replace(self, actor: Any) -> Any:
        ray.kill(actor)
        fresh = self._remote.remote(self._factory)
        self._actors[self._actors.index(actor)] = fresh
        return fresh

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        ray.shutdown()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
