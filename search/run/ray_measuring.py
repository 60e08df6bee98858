"""What results are worth, computed by processes of the cluster: the driver has references to results, and gets values.

These are actors that ask for no CPU, since the workers may hold all there are: Ray puts such ones on any node. Tasks would do but for their
processes, which Ray ends after a second where workers hold all CPUs; the next would spend seconds on loading what measuring needs.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray

from search.run import interrupt
from search.run.jobs import Job, Measure, Measured, put_together
from search.run.measuring_process import SHARED
from search.run.scheduler import Dispatcher

WORKERS_A_MEASURER = 8
"""A result of 500 images with 2,048 features is measured in half a second, and takes a worker minutes."""


class MeasuringError(RuntimeError):
    """Results cannot be measured, and it is not known to be their fault."""


class Measuring:
    """Hands results to actors, which are started when there is something to measure, and anew where one dies.

    Args:
        arrange: What a process calls before it imports anything of ours.
        join: Puts the results of a job's pieces together.
        workers: How many workers there are now, of which some share an actor: results that are measured at a time, while others wait.
    """

    def __init__(self, arrange: Callable[[], None], join: Callable[[Sequence[Any]], Any] | None, workers: Callable[[], int]) -> None:
        self._arrange, self._join, self._workers = arrange, join, workers
        self._remote = ray.remote(_actor_class()).options(num_cpus=0, max_restarts=-1, max_task_retries=3)
        self._actors: list[Any] = []
        self._idle: deque[Any] = deque()
        self._shared: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        """What was sent, with its reference, by identity."""
        self._waiting: deque[tuple[Any, bytes, list[Any], list[Any]]] = deque()
        self._running: dict[Any, tuple[Any, Any]] = {}
        """Tags and actors."""

    @property
    def running(self) -> list[Any]:
        """References to wait for; each is to be handed to `finish`."""
        return list(self._running)

    def begin(self, tag: Any, measure: Measure, parts: Sequence[Any], beside: Sequence[Any]) -> None:
        """Measure a result, now or when there is an actor for it.

        Args:
            tag: The caller's name for it.
            measure: What is wanted.
            parts: Its pieces, as references to objects of Ray.
            beside: What `measure` is given beside it.
        """
        shared = [self._send(thing) for thing in (self._join, *measure.shared)]
        self._waiting.append((tag, ray.cloudpickle.dumps((measure.function, tuple(beside))), shared, list(parts)))
        self._go_on()

    def taken(self, job: Job, result: Any, dispatcher: Dispatcher) -> list[tuple[Job, Any]]:
        """A dispatcher's job that is done; none yet where its result, references to its parts then, is to be measured first."""
        if job.measure is None or result is None:
            return [(job, result)]
        self.begin((dispatcher, job, result), job.measure, result, job.beside)
        return []

    def handed_back(self, ref: Any, dispatcher: Dispatcher) -> list[tuple[Job, Any]]:
        """A job whose result is measured; none where it is of an abandoned map, or is run again as its result was lost."""
        (whose, job, parts), value, lost = self.finish(ref)
        if whose is not dispatcher:
            return []
        if lost:
            given_up = dispatcher.begin_again(job)
            return [given_up] if given_up else []
        return [(job, Measured(value, partial(self._fetched, parts)))]

    def has_any_of(self, dispatcher: Dispatcher) -> bool:
        """Whether a result of its jobs is not measured yet."""
        return any(tag[0] is dispatcher for tag in (*(tag for tag, _ in self._running.values()), *(tag for tag, *_ in self._waiting)))

    def _fetched(self, parts: list[Any]) -> Any:
        try:
            return put_together(ray.get(parts), self._join)
        except ray.exceptions.ObjectLostError:
            return None

    def finish(self, ref: Any) -> tuple[Any, Any, bool]:
        """The tag and the value of what ended; the last says whether the result itself was lost, with the machine that had it.

        Raises:
            MeasuringError: It failed otherwise.
        """
        tag, actor = self._running.pop(ref)
        self._idle.append(actor)
        self._go_on()
        try:
            return tag, ray.get(ref), False
        except ray.exceptions.ObjectLostError:
            return tag, None, True
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ray.exceptions.ObjectLostError):
                return tag, None, True
            raise MeasuringError(f"what was computed cannot be measured: {type(error.cause).__name__}: {error.cause}; run the same command again: the ledger holds every result") from error.cause
        except ray.exceptions.RayError as error:
            raise MeasuringError(f"the process that measures results died, also when it was started again ({error}); free some memory on the nodes, then run the same command again: the ledger holds every result") from error

    def all(self, measure: Measure, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The values of results that are here, each with what is beside it, in their order. Raises `MeasuringError`; RuntimeError while others are measured."""
        if self._running or self._waiting:
            raise RuntimeError("results of a map that has not ended are being measured; take them all first")
        for number, (result, *beside) in enumerate(given):
            self.begin(number, measure, [ray.put(result)], beside)
        found: dict[int, Any] = {}
        while self._running:
            interrupt.check()
            for ref in ray.wait(self.running, num_returns=1, timeout=1.0)[0]:
                number, value, lost = self.finish(ref)
                found[number] = value
                if lost:
                    raise MeasuringError("this machine's part of the cluster's memory was lost; run the same command again: the ledger holds every result")
        return [found[number] for number in range(len(given))]

    def _send(self, thing: Any) -> Any:
        if id(thing) not in self._shared:
            self._shared[id(thing)] = (thing, ray.put(thing))
        self._shared.move_to_end(id(thing))
        found = self._shared[id(thing)][1]
        while len(self._shared) > SHARED:
            self._shared.popitem(last=False)
        return found

    def _go_on(self) -> None:
        while self._waiting and (self._idle or len(self._actors) < math.ceil(self._workers() / WORKERS_A_MEASURER)):
            if not self._idle:
                self._actors.append(self._remote.remote(self._arrange))
                self._idle.append(self._actors[-1])
            actor, (tag, function, shared, parts) = self._idle.popleft(), self._waiting.popleft()
            # Inside a list, references are read by the actor itself: only after `arrange` can it import what they are.
            self._running[actor.measure.remote(function, shared, parts)] = tag, actor

    def close(self) -> None:
        """Stop the actors."""
        for actor in self._actors:
            ray.kill(actor)
        for known in (self._actors, self._idle, self._waiting, self._running, self._shared):
            known.clear()


def _actor_class() -> type:
    """The actor, which Ray sends by value: it must work before any of our packages is imported."""

    class Measurer:
        def __init__(self, arrange: Any) -> None:
            arrange()

        def measure(self, function: bytes, shared: list[Any], parts: list[Any]) -> Any:
            from search.run.measuring_process import measure_here

            return measure_here(function, shared, parts)

    return Measurer
