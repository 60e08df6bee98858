"""Ray actors that hold a loaded evaluator each.

A job that fails is tried on another worker, then handed back with its error; a worker that dies, passes its deadline or fails
with what others succeed with is replaced, as soon as a machine has room for it. Results come back as they finish.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray

from search.run import interrupt
from search.run.health import Health
from search.run.jobs import WORKER_DIED, Job, Measure, Piece
from search.run.pools import EvaluatorFactory
from search.run.ray_cluster import ClusterError, connect, in_one_line, node_is_gone, own_packages, worker_class
from search.run.ray_measuring import Measuring
from search.run.scheduler import Dispatcher
from search.run.slot import Slot

_log = logging.getLogger(__name__)


WORKERS_A_MEASURER = 8
"""A result of 500 images with 2,048 features is measured in half a second, and takes a worker minutes."""


class WorkerError(RuntimeError):
    """Workers cannot be started or are all gone: the message says why and what to do."""


class RayPool:
    """Long-lived Ray actors, one evaluator each, on a local or a running cluster.

    Args:
        factory: Builds the evaluator in each actor.
        workers: How many actors.
        min_workers: So many must be loaded before work begins; the others join as machines have room. None for all.
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

    Raises:
        WorkerError: Fewer than one worker, or Ray or the actors do not start.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        *,
        workers: int,
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
    ) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise WorkerError(f"cluster.workers is {workers!r}; give at least 1")
        self._least = workers if min_workers is None else min_workers
        if not isinstance(self._least, int) or not 1 <= self._least <= workers:
            raise WorkerError(f"cluster.min_workers is {min_workers!r}; give 1 to {workers} (cluster.workers), or null for all of them")
        self.size, self._tries, self._deadline, self._start = workers, max_attempts, batch_timeout_s, load_timeout_s
        self._join, self._latency_device = join, latency_device
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            try:
                connect(address, cpus=workers * cpus, code=code)
            except ClusterError as error:
                raise WorkerError(str(error)) from None
        arrange = own_packages(code)
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        self._remote = ray.remote(worker_class()).options(**options)
        self._arguments = (arrange, ray.put(ray.cloudpickle.dumps(factory)))
        self._need = f"{cpus:g} CPUs, {gpus:g} GPUs"
        self._health = Health()
        self._measuring = Measuring(arrange, join, actors=math.ceil(workers / WORKERS_A_MEASURER))
        self._slots = [Slot(i) for i in range(workers)]
        self._idle: deque[Slot] = deque()
        self._starting: dict[Any, Slot] = {}
        self._running: dict[Any, tuple[Dispatcher, Piece, Slot, float]] = {}
        """With when each began."""
        for slot in self._slots:
            self._launch(slot)
        try:
            self._await_workers()
        except BaseException:
            self.close()
            raise

    @property
    def devices(self) -> list[str]:
        """The loaded workers' devices, one for each worker."""
        return [slot.device for slot in self._slots if slot.device]

    @property
    def places(self) -> list[tuple[str, str]]:
        """The loaded workers' nodes and devices, one pair for each worker."""
        return [(slot.node, slot.device) for slot in self._slots if slot.device]

    def _launch(self, slot: Slot) -> None:
        slot.actor, slot.device = self._remote.remote(*self._arguments), ""
        slot.starts += 1
        self._starting[slot.actor.ready.remote()] = slot

    def _await_workers(self) -> None:
        end = time.monotonic() + self._start
        while len(self._idle) < self._least:
            if time.monotonic() > end:
                raise WorkerError(
                    f"{len(self._idle)} of {self._least} workers loaded within {self._start:.0f} s; is there room for {self.size} x ({self._need})? "
                    "Lower cluster.workers or raise cluster.load_timeout_s"
                )
            interrupt.check()
            done, _ = ray.wait(list(self._starting), num_returns=1, timeout=1.0)
            for ref in done:
                slot = self._starting[ref]
                error = self._started(ref)
                if error and not slot.died:
                    raise WorkerError(f"a worker cannot load its model: {error}")
                if error and slot.starts == self._tries:
                    fix = "; was the cluster started without tokens? Then set RAY_AUTH_MODE=disabled" if "cancelled before it started" in error else ""
                    raise WorkerError(f"a worker died {slot.starts} times while it was loading its model: {error}{fix}")
                if error:
                    self._launch(slot)
        self._check_devices()

    def _check_devices(self) -> None:
        if self._latency_device and not any(s.timed for s in self._slots if s.device):
            there = ", ".join(sorted(set(self.devices)))
            raise WorkerError(f"cluster.latency_device is {self._latency_device!r}, and no worker has such a device; there are: {there}")

    def _started(self, ref: Any) -> str | None:
        """Take in a worker that loaded, or what kept it from loading."""
        slot = self._starting.pop(ref)
        error = slot.load(ref)
        if error is None:
            slot.timed = self._latency_device is None or self._latency_device.lower() in slot.device.lower()
            self._idle.append(slot)
        return error

    def known_good(self, job: Job) -> None:
        """As for `search.run.pools.Pool`; what has succeeded here since stands in for it."""
        self._health.good = self._health.good or job

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result as it finishes, or with None and its errors.

        Jobs are taken one at a time, when a worker is free: a generator may decide what comes next from the results so far.
        """
        mixed = self._latency_device is not None
        ahead = 2 * self.size if mixed else 1_000_000
        dispatcher = Dispatcher(jobs, join=self._join, tries=self._tries, mixed=mixed, ahead=ahead, health=self._health)
        alone_since = time.monotonic()
        finished: list[tuple[Job, Any]] = []
        while True:
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
            elif not self._starting or time.monotonic() - alone_since > self._start:
                raise WorkerError(self._all_gone())
            for ref, late in self._wait():
                if ref in self._starting:
                    self._restarted(ref)
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
        watched = [*self._running, *self._starting, *self._measuring.running]
        ray.wait(watched, num_returns=1, timeout=1.0)
        done = set(ray.wait(watched, num_returns=len(watched), timeout=0)[0])
        now = time.monotonic()
        late = [ref for ref, (_, _, _, began) in self._running.items() if ref not in done and now > began + self._deadline]
        return [*((ref, False) for ref in watched if ref in done), *((ref, True) for ref in late)]

    def _begin(self, dispatcher: Dispatcher, piece: Piece, slot: Slot) -> None:
        job = piece.job
        given = (job.task.value, list(job.strategies), [job.batches[i] for i in piece.batches])
        if job.measure:
            ref, piece.result = slot.actor.do_and_keep.options(num_returns=2).remote(*given)
        else:
            ref = slot.actor.do.remote(*given)
        self._running[ref] = (dispatcher, piece, slot, time.monotonic())

    def _finish(self, ref: Any, late: bool) -> tuple[Job, Any] | None:
        dispatcher, piece, slot, began = self._running.pop(ref)
        seconds = time.monotonic() - began
        if late:
            slot.errors.append(f"no result within {self._deadline:.0f} s")
            failed = dispatcher.fail(piece, slot.errors[-1], seconds=seconds)
            self._replace(slot)
            return failed
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._idle.append(slot)  # at the end: a retry goes to another worker where there is one
            slot.errors.append(in_one_line(error.cause))
            return dispatcher.fail(piece, slot.errors[-1], worker=slot.number, seconds=seconds)
        except ray.exceptions.RayError as error:
            lost = node_is_gone(slot.node, error)
            what = f"node {slot.host} was lost" if lost else f"{WORKER_DIED}: {in_one_line(error)}"
            slot.errors.append(what)
            failed = dispatcher.fail(piece, what, lost=lost, seconds=seconds)
            self._replace(slot)
            return failed
        self._idle.append(slot)
        return dispatcher.succeed(piece, piece.result if piece.job.measure else result)

    def measure(self, measure: Measure, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As for `search.run.pools.Pool`, by processes of the cluster."""
        return self._measuring.all(measure, given)

    def _restarted(self, ref: Any) -> None:
        slot = self._starting[ref]
        error = self._started(ref)
        if error is None:
            return
        if slot.starts < self._tries:
            self._launch(slot)
        else:
            _log.warning("worker %d does not load any more and is left out: %s", slot.number, error)

    def _replace(self, slot: Slot) -> None:
        ray.kill(slot.actor)
        slot.device = ""
        if self._health.lives_broken(slot.number) < self._tries:
            self._launch(slot)
            return
        slot.unfit = True
        _log.warning("worker %d (node %s) fails with everything, also after %d starts, and is left out: %s", slot.number, slot.host, self._tries, slot.errors[-1])

    def _exchange(self) -> None:
        """Start the workers anew that were found broken: what they failed with is tried elsewhere."""
        for number in self._health.take_broken():
            slot = self._slots[number]
            self._idle.remove(slot)
            _log.warning("worker %d (node %s) fails with what others succeed with, and is started anew: %s", number, slot.host, slot.errors[-1])
            self._replace(slot)

    def _all_gone(self) -> str:
        if all(s.unfit for s in self._slots):
            return (
                f"every worker fails with everything, also with what worked before and after {self._tries} starts ({self._slots[0].errors[-1]}); no candidate "
                "was recorded as failed for that. Mend it, then run the same command again: the ledger holds every result"
            )
        last = next((s.errors[-1] for s in self._slots if s.errors), "their machines left the cluster")
        return (
            f"no worker is left and none came back within {self._start:.0f} s ({last}); "
            "bring machines back, then run the same command again: the ledger holds every result"
        )

    def close(self) -> None:
        """Stop the actors, and leave or stop Ray where this pool joined or started it."""
        if ray.is_initialized():
            self._measuring.close()
            for slot in self._slots:
                ray.kill(slot.actor)
        self._idle.clear()
        if self._connected_here:
            ray.shutdown()
