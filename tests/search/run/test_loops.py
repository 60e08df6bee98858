"""Loops on values: a ledger, and results from a table in place of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from dato.strategy import Strategy
from search.ledger import Ledger
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate, Measurement
from search.run.limits import Limits
from search.run.loops import AsynchronousLoop, Evaluate, GenerationalLoop, Loop, all_failed, close_if_full, make_loop
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import toy_measurement

SPACE = SearchSpace(steps=6)
PLAN = SearchPlan(generations=3, population=4)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    ledger = Ledger(tmp_path / "ledger.jsonl", "toy", {}, {})
    plain = Strategy.full(6)
    ledger.baseline(Candidate(number=-1, generation=-1, strategy=plain, origin=UNACCELERATED), toy_measurement(plain))
    yield Recorder(ledger, PLAN, lambda shards: shards[0])  # type: ignore[arg-type,return-value]
    ledger.close()


def by_table(recorder: Recorder, measure: Callable[[Strategy], Measurement] = toy_measurement, ahead: int = 1) -> Evaluate:
    """Evaluates as `ahead` workers would of which the last to begin is always the first to finish."""

    def evaluate(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        rest, running = iter(candidates), list[Candidate]()
        while True:
            while len(running) < ahead and (new := next(rest, None)):
                running.append(new)
            if not running:
                return
            done = running.pop()
            recorder.result(done, measure(done.strategy))
            yield done

    return evaluate


class Script:
    """An algorithm that asks for given generations, and notes what it is told."""

    bounds: tuple[float, float] | None = None

    def __init__(self, *generations: list[Strategy]) -> None:
        self.generations, self.told = list(generations), list[Sequence[tuple[float, ...] | None]]()

    def ask(self) -> list[Strategy]:
        return self.generations[len(self.told)] if len(self.told) < len(self.generations) else []

    def tell(self, objectives: Sequence[tuple[float, ...] | None], violations: Sequence[float] | None = None) -> None:
        self.told.append(objectives)

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        return ()


GIVEN = [Strategy.uniform(6, n, prune_ratio=r) for r in (0.3, 0.5) for n in (2, 3)]


def test_a_generation_is_told_in_the_order_of_asking_and_measured_the_longest_first(recorder: Recorder) -> None:
    algorithm, order = Script(GIVEN, GIVEN[:0]), list[Strategy]()

    def measure(strategy: Strategy) -> Measurement:
        order.append(strategy)
        return Measurement(error="unwell") if strategy == GIVEN[1] else toy_measurement(strategy)

    GenerationalLoop(algorithm).run(recorder, Limits(PLAN), by_table(recorder, measure))
    measured = [toy_measurement(s) for s in GIVEN]
    assert algorithm.told == [[None if i == 1 else (m.fid, m.latency_ms) for i, m in enumerate(measured)]]
    assert algorithm.bounds == recorder.bounds()
    assert order == [GIVEN[0], GIVEN[2], GIVEN[1], GIVEN[3]], "every second call is a full one, then every third"
    assert len(recorder.record.hypervolumes) == 1, "an empty generation is the end"


def test_a_failure_is_told_at_the_end_of_its_generation(recorder: Recorder) -> None:
    loop = GenerationalLoop(Script(GIVEN))
    candidates = [recorder.ask(i, s) for i, s in enumerate(GIVEN)]
    assert not loop.has_told(recorder.record, candidates[0])
    loop.run(recorder, Limits(PLAN), by_table(recorder))
    assert loop.has_told(recorder.record, candidates[0])
    assert AsynchronousLoop(AsynchronousNsga2(space=SPACE, population=4, seed=0)).has_told(recorder.record, recorder.ask(4, Strategy.uniform(6, 4)))


@pytest.mark.parametrize("kind", [Nsga2, AsynchronousNsga2])
@pytest.mark.parametrize("ahead", [1, 3])
def test_a_loop_goes_on_where_the_ledger_stands(recorder: Recorder, kind: type[Nsga2] | type[AsynchronousNsga2], ahead: int) -> None:
    def loop() -> Loop:
        return make_loop(kind(space=SPACE, population=4, seed=1))

    def stops(strategy: Strategy) -> Measurement:
        if len(recorder.record.results) == 7:
            raise KeyboardInterrupt
        return toy_measurement(strategy)

    with pytest.raises(KeyboardInterrupt):
        loop().run(recorder, Limits(PLAN), by_table(recorder, stops, ahead))
    before = dict(recorder.record.results)
    assert len(before) == 7
    measured = list[str]()

    def again(strategy: Strategy) -> Measurement:
        measured.append(strategy.digest)
        return toy_measurement(strategy)

    loop().run(recorder, Limits(PLAN), by_table(recorder, again, ahead))
    assert len(measured) == 5
    record = recorder.record
    assert {n: record.results[n] for n in before} == before
    assert sorted(record.results) == list(range(12))
    assert len({c.strategy.digest for c in record.candidates.values()}) == 12
    assert len(record.hypervolumes) == 3


@pytest.mark.parametrize("kind", [Nsga2, AsynchronousNsga2])
def test_it_ends_when_the_first_candidates_all_fail(recorder: Recorder, kind: type[Nsga2] | type[AsynchronousNsga2]) -> None:
    with pytest.raises(SearchFailed, match=r"first 4 candidates failed; the first error: out of memory.*search.retry_failed=true.*fresh_start=true"):
        make_loop(kind(space=SPACE, population=4, seed=0)).run(recorder, Limits(PLAN), by_table(recorder, lambda s: Measurement(error="out of memory")))
    assert len(recorder.record.results) == 4
    assert all_failed(recorder)


def test_without_generations_one_is_counted_for_every_population_of_results(recorder: Recorder) -> None:
    for number, strategy in enumerate(GIVEN):
        assert recorder.record.hypervolumes == []
        recorder.result(recorder.ask(number, strategy), toy_measurement(strategy))
        close_if_full(recorder)
    close_if_full(recorder)
    assert len(recorder.record.hypervolumes) == 1
