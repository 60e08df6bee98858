"""Asking and telling until a limit is reached: by generations, or each candidate by itself; `search.run.tune_loop` is one more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from dato.strategy import FULL, Strategy
from search.measurements import Measurement
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.winners import SearchFailed
from search.records import Candidate, SearchRecord
from search.run.limits import Limits
from search.run.recorder import Recorder

Evaluate = Callable[[Iterable[Candidate]], Iterator[Candidate]]
"""Measures candidates on a pool, taking the next when a worker is free; each is handed back, as they finish, once its result is recorded."""


class Loop(Protocol):
    """Brings a fresh algorithm to where the ledger stands, and then goes on."""

    def run(self, recorder: Recorder, limits: Limits, evaluate: Evaluate) -> None:
        """Ask, measure and tell. Raises `SearchFailed` when all of the first candidates fail."""
        ...

    def has_told(self, record: SearchRecord, candidate: Candidate) -> bool:
        """Whether the algorithm was told of a candidate's result, so that others may follow from it."""
        ...


class GenerationalLoop:
    """The next generation is asked for when the last one is measured."""

    def __init__(self, algorithm: Nsga2) -> None:
        self._algorithm = algorithm

    def has_told(self, record: SearchRecord, candidate: Candidate) -> bool:
        """At a generation's end."""
        return candidate.generation < len(record.hypervolumes)

    def run(self, recorder: Recorder, limits: Limits, evaluate: Evaluate) -> None:
        """As for `Loop`."""
        self._algorithm.bounds = recorder.bounds()
        for generation in range(recorder.plan.generations):
            if limits.are_reached(recorder.record, generation * recorder.plan.population) or not self._run_generation(generation, recorder, evaluate):
                break

    def _run_generation(self, generation: int, recorder: Recorder, evaluate: Evaluate) -> bool:
        """Whether there was anything to ask for."""
        algorithm, first = self._algorithm, generation * recorder.plan.population
        asked = list(enumerate(algorithm.ask(), first))
        with recorder.ledger.together():
            candidates = [recorder.ask(number, s, algorithm.parents(s)) for number, s in asked]
        if not candidates:
            return False
        # The longest first, so that little is left to wait for at a generation's end.
        deepest = max(s.cache_depth for c in candidates for s in c.strategy)

        def work(strategy: Strategy) -> float:
            return sum((deepest if s.cache_depth == FULL else s.cache_depth) * (1 if s.guidance == "both" else 0.5) for s in strategy)

        due = sorted((c for c in candidates if recorder.is_due(c.number)), key=lambda c: -work(c.strategy))
        for _ in evaluate(due):
            pass
        results = [recorder.record.results[c.number] for c in candidates]
        if generation == 0 and not any(m.ok for m in results):
            raise _hopeless(results)
        told = [recorder.told(c.number) for c in candidates]
        algorithm.tell([objectives for objectives, _ in told], [violation for _, violation in told])
        recorder.close_generation(generation)
        return True


class AsynchronousLoop:
    """A candidate is asked for whenever a worker is free, and told of when it is measured."""

    def __init__(self, algorithm: AsynchronousNsga2) -> None:
        self._algorithm = algorithm

    def has_told(self, record: SearchRecord, candidate: Candidate) -> bool:
        """At once."""
        return True

    def run(self, recorder: Recorder, limits: Limits, evaluate: Evaluate) -> None:
        """As for `Loop`; asks and results that the ledger holds are gone through in the order in which they were written."""
        algorithm, record = self._algorithm, recorder.record
        algorithm.bounds = recorder.bounds()
        waiting: dict[int, Candidate] = {}
        for event, number in list(record.events):
            if event == "ask":
                waiting[number] = recorder.ask(number, algorithm.ask_one())
            else:
                self._tell(recorder, waiting.pop(number))

        def candidates() -> Iterator[Candidate]:
            yield from list(waiting.values())
            while not limits.are_reached(record, len(record.candidates)):
                strategy = algorithm.ask_one()
                if strategy is None:
                    return
                yield recorder.ask(len(record.candidates), strategy, algorithm.parents(strategy))

        close_if_full(recorder)  # A driver killed right after the last result of a generation has not done so.
        for candidate in evaluate(candidates()):
            self._tell(recorder, candidate)
            close_if_full(recorder)

    def _tell(self, recorder: Recorder, candidate: Candidate) -> None:
        self._algorithm.tell_one(candidate.strategy, *recorder.told(candidate.number))


def make_loop(algorithm: Nsga2 | AsynchronousNsga2) -> Loop:
    """The loop that goes with an algorithm."""
    return AsynchronousLoop(algorithm) if isinstance(algorithm, AsynchronousNsga2) else GenerationalLoop(algorithm)


def close_if_full(recorder: Recorder) -> None:
    """Without generations, one is counted for every `population` results. Raises `SearchFailed` where all of the first one failed."""
    done, population = len(recorder.record.results), recorder.plan.population
    if all_failed(recorder):
        raise _hopeless(list(recorder.record.results.values())[:population])
    if done and done % population == 0:
        recorder.close_generation(done // population - 1)


def all_failed(recorder: Recorder) -> bool:
    """Whether the first `population` results are there, and all of them failures."""
    results, population = recorder.record.results, recorder.plan.population
    return len(results) >= population and not any(m.ok for m in itertools.islice(results.values(), population))


def _hopeless(results: Sequence[Measurement]) -> SearchFailed:
    return SearchFailed(f"all of the first {len(results)} candidates failed; the first error: {results[0].error}. Mend it, then run the same command with search.retry_failed=true to try them again, or with fresh_start=true to begin anew")
