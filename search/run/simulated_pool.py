"""Simulated machines: what a search costs on a cluster that is not here.

A pool on a clock of its own, under the same `Dispatcher`: a thousand workers that fail, join and are taken away, and the search's
real driver.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dato.strategy import Strategy
from search.run.health import Health
from search.run.jobs import Job, Measure, Measured, Piece, put_together
from search.run.scheduler import Dispatcher
from search.run.weather import Weather

POISONED_S = 0.03
"""Seconds that a call takes that fails because its worker is broken: less than any that works."""


@dataclass
class Tally:
    """What simulated machines did.

    Attributes:
        clock_s: Simulated seconds.
        busy_s: Worker-seconds spent on results that were used.
        wasted_s: Worker-seconds spent on what a failure or preemption cut off, all of it repeated.
        offered_s: Worker-seconds during which a worker was there and loaded.
        pool_s: Real seconds that simulating took; the rest of a run's time is the driver's.
        losses: Pieces that were cut off.
        pieces: Pieces that finished.
        failures: Pieces that failed on a broken worker.
        exchanged: Workers that were started anew for that.
        left_out: Workers that were given up.
    """

    clock_s: float = 0.0
    busy_s: float = 0.0
    wasted_s: float = 0.0
    offered_s: float = 0.0
    pool_s: float = 0.0
    losses: int = 0
    pieces: int = 0
    failures: int = 0
    exchanged: int = 0
    left_out: int = 0

    @property
    def utilisation(self) -> float:
        """Share of the workers' time that went into results."""
        return self.busy_s / self.offered_s if self.offered_s else 0.0


@dataclass(eq=False)
class _Machine:
    number: int
    piece: Piece | None = None
    since: float = 0.0
    """When it became free or began its piece."""
    loaded: float = math.inf
    """When it was last ready: infinite while it is away."""
    epoch: int = 0
    """Events of earlier epochs are of a life that ended."""
    poisoned: bool = False
    for_good: bool = False
    """Whether its later processes are poisoned too."""
    there: bool = True
    """Whether the pool's size has room for it."""


class SimulatedPool:
    """A pool on a simulated clock: workers take `cost` seconds for a batch, and weather happens to them.

    Args:
        workers: How many.
        cost: Simulated seconds of a strategy's whole evaluation.
        evaluate: A strategy's result.
        weather: Failures, preemptions, joins.
        batches: Of images in a whole evaluation; None for as many as each job has.
        join: As for `RayPool`: batches of one job on several workers.
        tries: As for `RayPool`.
        seed: Of the weather.
        overhead_s: Simulated seconds between a result and the worker's next piece: dispatch and transport.
        caller_takes_time: The time that the caller really takes for a result, and to make a job, passes on this clock too: nobody is
            given anything meanwhile. A run is then no longer the same each time.
    """

    def __init__(
        self,
        workers: int,
        cost: Callable[[Strategy], float],
        evaluate: Callable[[Strategy], Any],
        *,
        weather: Weather | None = None,
        batches: int | None = None,
        join: Callable[[Sequence[Any]], Any] | None = None,
        tries: int = 3,
        seed: int = 0,
        overhead_s: float = 0.0,
        caller_takes_time: bool = False,
    ) -> None:
        self.size, self._cost, self._evaluate, self._join = workers, cost, evaluate, join
        self.weather, self._overhead, self._chance = weather or Weather(), overhead_s, random.Random(seed)
        self._batches, self._caller_takes_time = batches, caller_takes_time
        self.tally, self._tries, self._health = Tally(), tries, Health()
        self._events: list[tuple[float, int, str, _Machine, int]] = []
        self._count = itertools.count()
        self._machines = [_Machine(i, there=not self.weather.sizes) for i in range(workers)]
        self._idle: deque[_Machine] = deque()
        self._busy = 0
        self._sizes, self._ended = deque(sorted(self.weather.sizes)), deque[tuple[Job, Any]]()
        late, broken = round(self.weather.late * workers), round(self.weather.broken * workers)
        for machine in self._machines[len(self._machines) - broken :]:
            machine.poisoned = machine.for_good = True
        for machine in self._machines if not self._sizes else ():
            joins = self._chance.uniform(0, self.weather.away_s) + self.weather.reload_s if machine.number < late else 0.0
            self._schedule(joins, "ready", machine)

    def _schedule(self, after: float, what: str, machine: _Machine) -> None:
        heapq.heappush(self._events, (self.tally.clock_s + after, next(self._count), what, machine, machine.epoch))

    def known_good(self, job: Job) -> None:
        """As for `RayPool`."""
        self._health.good = self._health.good or job

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """As `RayPool.map`, on the simulated clock."""
        dispatcher = Dispatcher(self._taken(jobs), join=self._join, tries=self._tries, health=self._health)
        real = time.perf_counter()
        while True:
            self._hand_out(dispatcher, alone=False)
            if not self._busy:
                self._hand_out(dispatcher, alone=True)
            over = dispatcher.done
            finished = None if over else self._next(dispatcher)
            self._exchange()
            if over or finished:
                handed_back = self._measured(*finished) if finished else None  # on machines that are not here either
                self.tally.pool_s += time.perf_counter() - real
                if handed_back is None:
                    return
                before = time.perf_counter()
                yield handed_back
                real = time.perf_counter()
                self._passed(real - before)

    def _measured(self, job: Job, result: Any) -> tuple[Job, Any]:
        if job.measure is None or result is None:
            return job, result
        whole = put_together(result, self._join)
        return job, Measured(job.measure(whole, *job.beside), lambda: whole)

    def measure(self, measure: Measure, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As for `RayPool`, in no simulated time."""
        began = time.perf_counter()
        found = [measure(*one) for one in given]
        self.tally.pool_s += time.perf_counter() - began
        return found

    def _hand_out(self, dispatcher: Dispatcher, *, alone: bool) -> None:
        for _ in range(len(self._idle)):
            machine = self._idle.popleft()
            piece = dispatcher.assign(machine.number, alone=alone)
            if piece is None:
                self._idle.append(machine)
                continue
            machine.piece, machine.since = piece, self.tally.clock_s
            self._busy += 1
            if machine.poisoned:
                self._schedule(POISONED_S, "spoil", machine)
            else:
                share = len(piece.batches) / (self._batches or max(len(piece.job.batches), 1))
                self._schedule(share * sum(map(self._cost, piece.job.strategies)) + self._overhead, "done", machine)

    def _exchange(self) -> None:
        for number in self._health.take_broken():
            machine = self._machines[number]
            self._idle.remove(machine)
            self._end(machine)
            if self._health.lives_broken(number) < self._tries:
                self.tally.exchanged += 1
                self._schedule(self.weather.reload_s, "ready", machine)
            else:
                self.tally.left_out += 1

    def _end(self, machine: _Machine) -> None:
        """Its process is gone, and its events are void."""
        self.tally.offered_s += self.tally.clock_s - machine.loaded
        machine.epoch, machine.loaded, machine.poisoned = machine.epoch + 1, math.inf, machine.for_good

    def _taken(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs; the time that the caller needs to make one is not the pool's."""
        jobs = iter(jobs)
        while True:
            before = time.perf_counter()
            job = next(jobs, None)
            seconds = time.perf_counter() - before
            self.tally.pool_s -= seconds
            self._passed(seconds)
            if job is None:
                return
            yield job

    def _passed(self, seconds: float) -> None:
        if self._caller_takes_time:
            self.tally.clock_s += seconds

    def _resize(self, dispatcher: Dispatcher) -> None:
        """The pool's size changes now: machines join, or go with what they were doing, the last that came first."""
        at, size = self._sizes.popleft()
        self.tally.clock_s = max(self.tally.clock_s, at)
        for machine in self._machines[:size]:
            if not machine.there:
                machine.there = True
                self._schedule(self.weather.reload_s if at else 0.0, "ready", machine)
        for machine in self._machines[size:]:
            if machine.there:
                machine.there = False
                self._cut(dispatcher, machine)
                dispatcher.leaves(machine.number)

    def _cut(self, dispatcher: Dispatcher, machine: _Machine) -> None:
        """A machine is gone, and what it was doing with it."""
        piece, machine.piece = machine.piece, None
        loaded = math.isfinite(machine.loaded)
        if loaded:
            self._end(machine)
        else:
            machine.epoch += 1
        if piece is None:
            if loaded and machine in self._idle:
                self._idle.remove(machine)
            self._health.renewed(machine.number)
            return
        self._busy -= 1
        self.tally.wasted_s += self.tally.clock_s - machine.since
        self.tally.losses += 1
        if failed := dispatcher.fail(piece, f"worker {machine.number} was lost", lost=True):
            self._ended.append(failed)

    def _next(self, dispatcher: Dispatcher) -> tuple[Job, Any] | None:
        if self._ended:
            return self._ended.popleft()
        if self._sizes and (not self._events or self._sizes[0][0] <= self._events[0][0]):
            self._resize(dispatcher)
            return None
        if not self._events:
            raise RuntimeError("every simulated worker is left out, or gone for good")
        at, _, what, machine, epoch = heapq.heappop(self._events)
        if epoch != machine.epoch:
            return None
        self.tally.clock_s = max(self.tally.clock_s, at)
        if what == "ready":
            machine.loaded = at
            self._idle.append(machine)
            for kind, mean in (("fail", self.weather.fail_s), ("preempt", self.weather.preempt_s), ("poison", self.weather.poison_s)):
                if math.isfinite(mean) and (kind != "preempt" or machine.number % self.weather.per_machine == 0):
                    self._schedule(self._chance.expovariate(1 / mean), kind, machine)
            return None
        if what == "poison":  # noticed with what it is given next
            machine.poisoned = True
            return None
        if what in ("done", "spoil"):
            piece, machine.piece = machine.piece, None
            assert piece is not None
            self._busy -= 1
            self._idle.append(machine)
            if what == "spoil":
                self.tally.failures += 1
                self.tally.wasted_s += at - machine.since
                return dispatcher.fail(piece, "a broken worker", worker=machine.number, seconds=at - machine.since)
            self.tally.busy_s += 0.0 if piece.check else at - machine.since - self._overhead
            self.tally.wasted_s += at - machine.since if piece.check else 0.0
            self.tally.pieces += not piece.check
            return dispatcher.succeed(piece, [self._evaluate(s) for s in piece.job.strategies])
        # It failed or was preempted, and is back after a while.
        first, away = machine.number, self.weather.away_s if what == "preempt" else 0.0
        for gone in self._machines[first : first + (self.weather.per_machine if what == "preempt" else 1)]:
            if gone is machine or math.isfinite(gone.loaded):
                self._cut(dispatcher, gone)
                self._schedule(self.weather.reload_s + away, "ready", gone)
        return None

    def close(self) -> None:
        """Nothing to stop."""

    def settle(self) -> Tally:
        """The tally so far, with the workers that are there now."""
        now = self.tally
        there = sum(now.clock_s - m.loaded for m in self._machines if math.isfinite(m.loaded))
        return Tally(**{**vars(now), "offered_s": now.offered_s + there})
