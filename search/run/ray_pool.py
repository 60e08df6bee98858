"""Ray actors that hold a loaded evaluator each.

A job that fails is tried on another worker, then handed back with its error; a worker that dies, passes its deadline or fails
with what others succeed with is replaced. Workers come and go with their machines. Results come back as they finish.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray

from search.run import interrupt
from search.run.autoscaler import Demand
from search.run.crew import Crew, Gate
from search.run.health import Health
from search.run.jobs import WORKER_DIED, Job, Measure, Piece
from search.run.pools import EvaluatorFactory, WorkerError, least_workers
from search.run.ray_cluster import ClusterError, connect, in_one_line, node_is_gone, own_packages, worker_class
from search.run.ray_measuring import Measuring
from search.run.ray_metrics import PoolMetrics
from search.run.scheduler import Dispatcher
from search.run.slot import Slot

_log = logging.getLogger(__name__)


class RayPool:
    """Long-lived Ray actors, one evaluator each, on a local or a running cluster.

    Args:
        factory: Builds the evaluator in each actor.
        workers: How many actors at most; None for as many as the cluster has room for at any time.
        min_workers: So many must be loaded before work begins; the others join as machines have room. None for all, or where `workers` is
            None for all that there is room for at the start.
        cpus: CPUs reserved for each.
        gpus: GPUs reserved for each, may be a fraction.
        address: Of a running cluster; None starts Ray on this machine, reachable from it alone. Unused where this process
            is connected already.
        code: "installed": workers import what is installed on their machine; "upload": they are sent this process's packages.
        join: Puts the results of a job's batches together, so that idle workers help with others' jobs; None for whole jobs.
        latency_device: Part of the names of the devices whose latency counts; None for all.
        max_attempts: How often a job's batch is started at most.
        batch_timeout_s: Seconds after which a batch's worker is replaced and the batch tried again.
        load_timeout_s: Seconds that the actors may take to load, and that a search waits for a worker when all are gone.
        gate: Looks at machines that join, before they have workers; None for no look.
        demand: What the cluster's autoscaler is asked for until the pool closes; None for nothing.
        say: Told in a line who joins and leaves.

    Raises:
        WorkerError: Fewer than one worker, or Ray or the actors do not start.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        *,
        workers: int | None,
        min_workers: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        address: str | None = None,
        code: str = "installed",
        join: Callable[[Sequence[Any]], Any] | None = None,
        latency_device: str | None = None,
        max_attempts: int = 3,
        batch_timeout_s: float = 3600,
        load_timeout_s: float = 600,
        gate: Gate | None = None,
        demand: Demand | None = None,
        say: Callable[[str], None] = _log.info,
    ) -> None:
        self._least = least_workers(workers, min_workers, bounded=bool(cpus or gpus), running=address is not None or ray.is_initialized())
        self._most, self._tries, self._deadline, self._start = workers, max_attempts, batch_timeout_s, load_timeout_s
        self._join, self._latency_device = join, latency_device
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            try:
                connect(address, cpus=(workers or 1) * cpus, code=code)
            except ClusterError as error:
                raise WorkerError(str(error)) from None
        arrange = own_packages(code)
        arguments = (arrange, ray.put(ray.cloudpickle.dumps(factory)))
        self._need, self._health, self._metrics = f"{cpus:g} CPUs, {gpus:g} GPUs", Health(), PoolMetrics()
        self._measuring = Measuring(arrange, join, workers=lambda: self.size)
        self._idle: deque[Slot] = deque()
        self._running: dict[Any, tuple[Dispatcher, Piece, Slot, float]] = {}
        """With when each began."""
        self._crew = Crew(
            (ray.remote(worker_class()), arguments), most=workers, cpus=cpus, gpus=gpus, gate=gate, demand=demand, say=say,
            tries=max_attempts, health=self._health, latency_device=latency_device,
        )  # fmt: skip
        try:
            self._await_workers()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many workers there are to be, or where that is left to the cluster, how many there are now."""
        return self._most if self._least == self._most and self._most else max(1, self._crew.working)

    @property
    def devices(self) -> list[str]:
        """The loaded workers' devices, one for each worker."""
        return [slot.device for slot in self._crew.slots.values() if slot.device]

    @property
    def places(self) -> list[tuple[str, str]]:
        """The loaded workers' nodes and devices, one pair for each worker."""
        return [(slot.node, slot.device) for slot in self._crew.slots.values() if slot.device]

    def _await_workers(self) -> None:
        began = time.monotonic()
        while not self._enough():
            self._follow(None)
            if time.monotonic() > max(began, 0.0 if self._least else self._crew.launched_at) + self._start:
                room = f"is there room for {self._most or self._least or 1} x ({self._need})? Lower cluster.workers or raise cluster.load_timeout_s"
                raise WorkerError(f"{len(self._idle)} of {self._least or 1} workers loaded within {self._start:.0f} s; {room}")
            interrupt.check()
            if not self._crew.starting:
                time.sleep(0.2)
                continue
            for ref in ray.wait(list(self._crew.starting), num_returns=1, timeout=1.0)[0]:
                slot = self._crew.starting[ref]
                error = self._started(ref)
                if error and not slot.died:
                    raise WorkerError(f"a worker cannot load its model: {error}")
                if error and self._crew.is_gone(slot):
                    self._crew.drop(slot, "is gone")
                    continue
                if error and slot.starts == self._tries:
                    fix = "; was the cluster started without tokens? Then set RAY_AUTH_MODE=disabled" if "cancelled before it started" in error else ""
                    raise WorkerError(f"a worker died {slot.starts} times while it was loading its model: {error}{fix}")
                if error:
                    self._crew.launch(slot)
        self._crew.begun = True
        self._crew.require_timed()

    def _enough(self) -> bool:
        return len(self._idle) >= self._least if self._least else bool(self._idle) and not self._crew.starting

    def _started(self, ref: Any) -> str | None:
        """Take in a worker that loaded, or what kept it from loading."""
        slot, error = self._crew.started(ref)
        if error is None:
            slot.idle_since = time.monotonic()
            self._idle.append(slot)
        return error

    def _follow(self, dispatcher: Dispatcher | None) -> None:
        """Let workers come and go with their machines."""
        for slot in self._crew.look():
            self._left(slot, dispatcher)
        self._metrics.workers(len(self._idle) + len(self._running), len(self._crew.starting))

    def _left(self, slot: Slot, dispatcher: Dispatcher | None) -> None:
        if slot in self._idle:
            self._idle.remove(slot)
        self._health.forget(slot.number)
        if dispatcher:
            dispatcher.leaves(slot.number)

    def known_good(self, job: Job) -> None:
        """As for `search.run.pools.Pool`; what has succeeded here since stands in for it."""
        self._health.good = self._health.good or job

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result as it finishes, or with None and its errors.

        Jobs are taken one at a time, when a worker is free: a generator may decide what comes next from the results so far.
        """
        mixed = self._latency_device is not None
        dispatcher = Dispatcher(jobs, join=self._join, tries=self._tries, mixed=mixed, health=self._health)
        alone_since = time.monotonic()
        finished: list[tuple[Job, Any]] = []
        while True:
            self._follow(dispatcher)
            if mixed:
                dispatcher.ahead = 2 * self.size
            self._hand_out(dispatcher, alone=False)
            if not self._running:  # nobody else may take what is left: it is tried again where it failed
                self._hand_out(dispatcher, alone=True)
            # Handed on after the next pieces have begun: the caller takes its time, and no worker waits for it.
            yield from finished
            finished = []
            unmeasured = self._measuring.has_any_of(dispatcher)
            if dispatcher.done and not unmeasured:
                return
            if self._running or unmeasured:
                alone_since = time.monotonic()
            elif self._crew.is_hopeless(alone_since, self._start, idle=bool(self._idle)):
                raise WorkerError(self._crew.why_gone(self._start))
            for ref, late in self._wait():
                if ref in self._crew.starting:
                    slot = self._crew.starting[ref]
                    if self._started(ref) is not None and not self._crew.try_again(slot):
                        self._left(slot, dispatcher)
                    continue
                if ref not in self._running:
                    finished += self._measuring.handed_back(ref, dispatcher)
                    continue
                mine = self._running[ref][0] is dispatcher
                result = self._finish(ref, late)
                if result and mine:  # else a batch of a job that has failed already, or of an abandoned map
                    finished += self._measuring.taken(*result, dispatcher)
            self._exchange()

    def _hand_out(self, dispatcher: Dispatcher, *, alone: bool) -> None:
        """Give every idle worker its next piece, if there is one for it."""
        for _ in range(len(self._idle)):
            slot = self._idle.popleft()
            piece = dispatcher.assign(slot.number, slot.timed, alone)
            if piece is None:
                self._idle.append(slot)
            else:
                self._begin(dispatcher, piece, slot)

    def _wait(self) -> list[tuple[Any, bool]]:
        """What finished, or is too late (True)."""
        interrupt.check()
        watched = [*self._running, *self._crew.starting, *self._measuring.running]
        if not watched:
            time.sleep(0.5)
            return []
        ray.wait(watched, num_returns=1, timeout=1.0)
        done = set(ray.wait(watched, num_returns=len(watched), timeout=0)[0])
        now = time.monotonic()
        late = [ref for ref, (_, _, _, began) in self._running.items() if ref not in done and now > began + self._deadline]
        return [*((ref, False) for ref in watched if ref in done), *((ref, True) for ref in late)]

    def _begin(self, dispatcher: Dispatcher, piece: Piece, slot: Slot) -> None:
        job = piece.job
        given = (job.task.value, list(job.strategies), [job.batches[i] for i in piece.batches])
        ref, piece.result = slot.actor.do_and_keep.options(num_returns=2).remote(*given) if job.measure else (slot.actor.do.remote(*given), None)
        now = time.monotonic()
        self._metrics.waited(now - slot.idle_since)
        self._running[ref] = (dispatcher, piece, slot, now)

    def _finish(self, ref: Any, late: bool) -> tuple[Job, Any] | None:
        """Take in how a piece ended; its job where that is done."""
        dispatcher, piece, slot, began = self._running.pop(ref)
        slot.idle_since = time.monotonic()
        seconds = slot.idle_since - began
        try:
            result = None if late else ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            what, lost, there = in_one_line(error.cause), False, True
        except ray.exceptions.RayError as error:
            lost, there = node_is_gone(slot.node, error), False
            what = f"node {slot.host} was lost" if lost else f"{WORKER_DIED}: {in_one_line(error)}"
        else:
            if not late:
                if slot.number in self._crew.slots:
                    self._idle.append(slot)
                self._metrics.piece(piece, seconds)
                return self._metrics.job(dispatcher.succeed(piece, piece.result if piece.job.measure else result))
            what, lost, there = f"no result within {self._deadline:.0f} s", False, False
        slot.errors.append(what)
        self._metrics.failed(lost=lost)
        failed = dispatcher.fail(piece, what, lost=lost, worker=slot.number if there else None, seconds=seconds, where="" if lost else slot.where)
        if lost:
            self._crew.drop(slot, "is gone")
            self._left(slot, dispatcher)
        elif slot.number in self._crew.slots and there:
            self._idle.append(slot)  # at the end: a retry goes to another worker where there is one
        elif slot.number in self._crew.slots:
            self._crew.replace(slot)
        return self._metrics.job(failed)

    def measure(self, measure: Measure, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As for `search.run.pools.Pool`, by processes of the cluster."""
        return self._measuring.all(measure, given)

    def _exchange(self) -> None:
        """Start the workers anew that were found broken: what they failed with is tried elsewhere."""
        for number in self._health.take_broken():
            slot = self._crew.slots.get(number)
            if slot is None:
                continue
            self._idle.remove(slot)
            _log.warning("worker %d fails with what others succeed with, and is started anew: %s (%s)", number, slot.errors[-1], slot.where)
            self._crew.replace(slot)

    def close(self) -> None:
        """Stop the actors, take back what the autoscaler was asked for, and leave or stop Ray where this pool joined or started it."""
        self._crew.close()
        self._metrics.workers(0, 0)
        if ray.is_initialized():
            self._measuring.close()
        self._idle.clear()
        if self._connected_here:
            ray.shutdown()
