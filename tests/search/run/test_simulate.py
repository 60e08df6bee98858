"""The simulated clock against what can be counted by hand, and against the real driver's promises."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dato.strategy import FULL, Step, Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.ledger import Ledger
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.records import UNACCELERATED, SearchRecord
from search.run.driver import Driver
from search.run.jobs import Job
from search.run.loops import GenerationalLoop
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import duration, toy_measurement
from search.run.simulated_pool import SimulatedPool
from search.run.weather import Weather


def jobs(count: int, batches: int = 1) -> list[Job]:
    return [Job(i, [Strategy.full(2)], [[b] for b in range(batches)]) for i in range(count)]


def first(parts: Sequence[Any]) -> Any:
    return parts[0]


def test_equal_jobs_take_rounds() -> None:
    pool = SimulatedPool(4, lambda s: 10.0, lambda s: "done")
    results = list(pool.map(jobs(8)))
    assert [r for _, r in results] == [["done"]] * 8
    tally = pool.settle()
    assert (tally.clock_s, tally.busy_s, tally.utilisation) == (20.0, 80.0, 1.0)


def test_idle_workers_help_only_where_batches_can_be_joined() -> None:
    whole = SimulatedPool(4, lambda s: 10.0, lambda s: "done")
    list(whole.map(jobs(1, batches=4)))
    shared = SimulatedPool(4, lambda s: 10.0, lambda s: "done", join=first)
    list(shared.map(jobs(1, batches=4)))
    assert (whole.tally.clock_s, shared.tally.clock_s) == (10.0, 2.5)


def test_failures_cost_what_they_cut_off_and_lose_nothing() -> None:
    pool = SimulatedPool(10, lambda s: 50.0, lambda s: "done", weather=Weather(fail_s=300.0, reload_s=5.0), seed=1)
    finished = [job.key for job, result in pool.map(jobs(400)) if result]
    assert sorted(finished) == list(range(400))
    tally = pool.settle()
    assert tally.losses > 20
    assert tally.busy_s == pytest.approx(400 * 50.0)
    assert tally.busy_s + tally.wasted_s <= tally.offered_s


def test_workers_that_join_late_take_part() -> None:
    early = SimulatedPool(10, lambda s: 10.0, lambda s: "done")
    list(early.map(jobs(200)))
    late = SimulatedPool(10, lambda s: 10.0, lambda s: "done", weather=Weather(late=0.5, away_s=50.0, reload_s=0.0))
    list(late.map(jobs(200)))
    alone = SimulatedPool(5, lambda s: 10.0, lambda s: "done")
    list(alone.map(jobs(200)))
    assert early.tally.clock_s < late.tally.clock_s < alone.tally.clock_s


def test_a_pool_grows_and_shrinks() -> None:
    growing = SimulatedPool(4, lambda s: 10.0, lambda s: "done", weather=Weather(sizes=((0.0, 1), (100.0, 4)), reload_s=20.0))
    assert len(list(growing.map(jobs(20)))) == 20
    # Ten jobs by one worker until 100 s, two more while the others load, and the last eight by four.
    assert growing.tally.clock_s == 140.0
    assert growing.tally.losses == 0
    shrinking = SimulatedPool(4, lambda s: 10.0, lambda s: "done", weather=Weather(sizes=((0.0, 4), (15.0, 1))))
    results = list(shrinking.map(jobs(12)))
    assert sorted(job.key for job, result in results if result) == list(range(12)), "what the machines took along is done again"
    assert (shrinking.tally.losses, shrinking.tally.wasted_s) == (3, 15.0)
    assert shrinking.tally.clock_s == 90.0
    away = SimulatedPool(2, lambda s: 10.0, lambda s: "done", weather=Weather(sizes=((0.0, 2), (5.0, 0), (300.0, 1)), reload_s=60.0))
    assert len(list(away.map(jobs(3)))) == 3
    assert away.tally.clock_s == 390.0, "all are gone for a while, and one comes back"


def test_a_machine_is_preempted_with_all_its_workers() -> None:
    pool = SimulatedPool(8, lambda s: 10.0, lambda s: "done", weather=Weather(preempt_s=150.0, away_s=50.0, reload_s=10.0, per_machine=4), seed=2)
    assert len([1 for _, result in pool.map(jobs(600)) if result]) == 600
    assert pool.tally.losses > 4
    assert pool.tally.losses % 4 == 0, "every worker was busy"


def test_a_job_of_some_of_the_batches_takes_its_share_of_an_evaluation() -> None:
    for batches, seconds in ((None, 10.0), (4, 5.0)):
        pool = SimulatedPool(1, lambda s: 10.0, lambda s: "done", batches=batches)
        list(pool.map(jobs(1, batches=2)))
        assert pool.tally.clock_s == seconds


def test_the_callers_time_passes_on_the_simulated_clock_where_asked_for() -> None:
    def slowly() -> Iterator[Job]:
        for job in jobs(10):
            time.sleep(0.02)
            yield job

    free = SimulatedPool(10, lambda s: 0.01, lambda s: "done")
    list(free.map(slowly()))
    assert free.tally.clock_s == pytest.approx(0.01)
    bound = SimulatedPool(10, lambda s: 0.01, lambda s: "done", caller_takes_time=True)
    for _ in bound.map(slowly()):
        time.sleep(0.01)
    # Ten jobs that are made one after the other, and ten results that are taken in one after the other.
    assert 10 * (0.02 + 0.01) <= bound.tally.clock_s < 1.0
    tally = bound.settle()
    assert tally.busy_s == pytest.approx(0.1)
    assert tally.utilisation < 0.1


def test_a_generator_sees_every_result_before_it_decides() -> None:
    pool = SimulatedPool(3, lambda s: 1.0, lambda s: "done")
    seen: list[int] = []

    def decide() -> Iterator[Job]:
        for i in range(9):
            assert len(seen) >= i - 2, "more jobs were taken than workers were free"
            yield jobs(1)[0]

    for job, _ in pool.map(decide()):
        seen.append(job.key)
    assert len(seen) == 9


def test_durations_are_a_strategys_own_and_have_the_mean_asked_for() -> None:
    strategies = [Strategy((Step(FULL, i / 1000), Step(1, j / 1000))) for i in range(30) for j in range(30)]
    times = [duration(s, 2.0) for s in strategies]
    assert times[0] == duration(strategies[0], 2.0)
    assert sum(times) / len(times) == pytest.approx(2.0, rel=0.05)
    assert max(times) / min(times) > 5


def run(folder: Path, pool: SimulatedPool) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "simulated", {}, {})
    recorder = Recorder(ledger, SearchPlan(generations=5, population=10), lambda shards: shards[0])  # type: ignore[arg-type,return-value]
    loop = GenerationalLoop(Nsga2(space=SearchSpace(steps=8), population=10, seed=0))
    record = Driver(recorder, EvaluationProtocol(images=8, batch=2), loop, {UNACCELERATED: Strategy.full(8)}).run(pool)
    ledger.close()
    return record


def test_the_real_driver_finds_the_same_front_in_any_weather(tmp_path: Path) -> None:
    def pool(weather: Weather) -> SimulatedPool:
        return SimulatedPool(7, lambda s: duration(s, 30.0), toy_measurement, weather=weather, join=first, seed=3)

    calm = run(tmp_path / "calm", pool(Weather()))
    stormy_pool = pool(Weather(fail_s=200.0, preempt_s=400.0, away_s=60.0, reload_s=10.0, late=0.5))
    stormy = run(tmp_path / "stormy", stormy_pool)
    assert stormy_pool.tally.losses > 0
    assert [(c.strategy.digest, m.fid) for c, m in stormy.front()] == [(c.strategy.digest, m.fid) for c, m in calm.front()]
    assert len(stormy.results) == 50


def test_broken_workers_cost_no_candidate(tmp_path: Path) -> None:
    def pool(weather: Weather) -> SimulatedPool:
        return SimulatedPool(8, lambda s: duration(s, 20.0), lambda s: toy_measurement(s), weather=weather, seed=5)

    calm = run(tmp_path / "calm", pool(Weather()))
    sick_pool = pool(Weather(broken=3 / 8, poison_s=200.0, reload_s=10.0, fail_s=500.0))
    sick = run(tmp_path / "sick", sick_pool)
    tally = sick_pool.tally
    assert tally.left_out == 3
    assert tally.exchanged > 3 * 2, "those that were poisoned later came back"
    assert tally.failures < 150, "a broken worker is not given one candidate after the other"
    assert all(m.ok for m in sick.results.values())
    assert [(c.strategy.digest, m.fid) for c, m in sick.front()] == [(c.strategy.digest, m.fid) for c, m in calm.front()]


def test_three_broken_workers_of_eight_take_no_candidate_along_while_the_others_are_slow() -> None:
    pool = SimulatedPool(8, lambda s: 50.0, lambda s: "done", weather=Weather(broken=3 / 8, reload_s=5.0))
    results = list(pool.map(jobs(40)))
    assert [r for _, r in results] == [["done"]] * 40
    assert not any(job.blamed for job, _ in results)
    # Two candidates for each life of a broken worker, and one more where nobody had succeeded yet.
    assert pool.tally.failures <= 3 * 3 * 2
    assert pool.tally.clock_s == pytest.approx(8 * 50.0, rel=0.1)


def test_when_every_worker_is_broken_no_candidate_is_blamed() -> None:
    pool = SimulatedPool(4, lambda s: 50.0, lambda s: "done", weather=Weather(broken=1.0))
    pool.known_good(Job("good", [Strategy.full(2)], [[0]]))
    blamed = jobs(20)
    with pytest.raises(RuntimeError, match="every simulated worker is left out"):
        list(pool.map(blamed))
    assert not any(job.blamed for job in blamed)
    assert pool.tally.failures <= 4 * 3 * 3
