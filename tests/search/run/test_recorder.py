"""What is written down, on values: a ledger and shards, without a pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dato.strategy import Strategy
from search.evaluate.shards import Shard
from search.ledger import Ledger, LedgerError, read_ledger
from search.measurements import Measurement
from search.optimize.objectives import Objectives
from search.records import UNACCELERATED, Candidate, SearchRecord
from search.run.jobs import Job
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from tests.search.run.searches import of_shards

PLAIN, FAST, OTHER = Strategy.full(8), Strategy.uniform(8, 2), Strategy.uniform(8, 3)
SHARD = Shard(torch.full((4, 1), 12.0), batch_ms=[5.0], seconds=2.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.jsonl", "toy", {}, {})
    opened.baseline(Candidate(number=-1, generation=-1, strategy=PLAIN, origin=UNACCELERATED), Measurement(fid=10.0, images=4, latency_ms=10.0))
    yield opened
    opened.close()


def recorder(ledger: Ledger, measure: Any = of_shards, limits: dict[str, float] | None = None, **settings: Any) -> Recorder:
    return Recorder(ledger, SearchPlan(generations=2, population=4, objectives=Objectives(**(limits or {}))), measure, **settings)


class Reader:
    """A watcher that reads the ledger's file whenever it is told something."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, list[tuple[str, int]]()

    def started(self, record: SearchRecord) -> None:
        self.seen.append(("started", len(read_ledger(self.path).candidates)))

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        self.seen.append(("measured", len(read_ledger(self.path).results)))

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        self.seen.append(("generation", len(read_ledger(self.path).hypervolumes)))


def test_candidates_are_numbered_and_know_their_parents(ledger: Ledger) -> None:
    mine = recorder(ledger)
    assert mine.number(FAST) == 0
    first = mine.ask(0, FAST)
    assert (first.origin, first.generation, mine.number(FAST), mine.number(OTHER)) == ("initial", 0, 0, 1)
    child = mine.ask(4, OTHER, [FAST.digest])
    assert (child.origin, child.generation, child.parents) == ("offspring", 1, (0,))
    again = recorder(ledger)
    assert again.ask(4, OTHER) == child, "asked for before"
    assert again.number(OTHER) == 4
    for other in (FAST, None):
        with pytest.raises(LedgerError, match=r"candidate 4 was .* and is now"):
            again.ask(4, other)


def test_whoever_watches_is_told_what_is_on_the_disk_already(ledger: Ledger) -> None:
    reader = Reader(ledger.path)
    mine = recorder(ledger, watchers=[reader])
    mine.start()
    mine.result(mine.ask(0, FAST), of_shards([SHARD]))
    mine.close_generation(0)
    mine.close_generation(0)
    assert reader.seen == [("started", 0), ("measured", 1), ("generation", 1)]
    # The share of the box up to (20, 10) that (14.5, 5) dominates.
    assert ledger.record.hypervolumes == [pytest.approx((1 - 14.5 / 20) * (1 - 5 / 10))]


def test_a_job_that_failed_and_images_that_are_no_good_are_measurements_with_an_error(ledger: Ledger) -> None:
    def spoilt(shards: Sequence[Shard]) -> Measurement:
        raise ValueError("features are not finite")

    job = Job(0, [FAST], [[0]], errors=["out of memory"], failed_s=3.0)
    mine = recorder(ledger, spoilt)
    failed, bad = mine.measurement(FAST, job, None), mine.measurement(FAST, job, mine.measuring([SHARD], [SHARD]))
    assert (failed.error, failed.seconds, bad.error, bad.seconds) == ("out of memory", 3.0, "features are not finite", 4.0)
    assert recorder(ledger).values(failed) == (None, 0.0)


def test_latencies_are_measured_recorded_or_predicted(ledger: Ledger) -> None:
    job = Job(0, [FAST], [[0]])
    measured = recorder(ledger).measuring([SHARD])
    assert recorder(ledger).measurement(FAST, job, measured).latency_ms == 5.0
    recorded = recorder(ledger, latencies={(FAST.digest, 4): 7.0})
    assert recorded.measurement(FAST, job, measured).latency_ms == 7.0
    with pytest.raises(LedgerError, match=f"no latency is recorded for strategy {OTHER.digest} on 4 images"):
        recorded.measurement(OTHER, job, measured)


def test_intervals_are_of_the_difference_to_the_unaccelerated_pipeline(ledger: Ledger) -> None:
    plain = Measurement(fid=10.0, images=8, latency_ms=10.0, fid_left_out=(9.0, 10.0, 11.0))
    ledger.baseline(Candidate(number=-1, generation=-1, strategy=PLAIN, origin=UNACCELERATED), plain)
    fast = Measurement(fid=11.0, images=8, latency_ms=5.0, fid_left_out=(10.0, 11.0, 12.0))
    compared = recorder(ledger).complete(FAST, fast)
    assert compared.difference_low == compared.difference_high == pytest.approx(1.0), "they differ by the same in every group"
    assert recorder(ledger).complete(FAST, Measurement(error="unwell")).error == "unwell"


def test_limits_and_bounds_are_of_the_unaccelerated_pipeline_on_the_least_images(ledger: Ledger) -> None:
    mine = recorder(ledger, limits={"min_speedup": 2.0})
    assert mine.bounds() == (20.0, 5.0)
    slow = Measurement(fid=10.0, images=4, latency_ms=7.5)
    assert mine.values(slow) == ((10.0, 7.5), pytest.approx(0.5))
    assert mine.violation(replace(slow, latency_ms=5.0)) == 0.0
    assert recorder(ledger, limits={"latency_weight": 1.0}).bounds() is None


def test_what_failed_is_due_again_once_and_only_where_it_is_asked_for(ledger: Ledger) -> None:
    first = recorder(ledger)
    for number, (strategy, m) in enumerate([(FAST, Measurement(error="unwell")), (OTHER, of_shards([SHARD]))]):
        first.result(first.ask(number, strategy), m)
    first.promotion(ledger.record.candidates[1], 8, Measurement(error="unwell", images=8))
    assert [first.is_due(n) for n in range(3)] == [False, False, True]
    assert not first.is_due(1, 8)
    again = recorder(ledger, retry_failed=True)
    assert [again.is_due(n) for n in range(3)] == [True, False, True]
    assert again.is_due(1, 8)
    again.retried(ledger.record.candidates[0], of_shards([SHARD]))
    again.promotion(ledger.record.candidates[1], 8, Measurement(error="unwell again", images=8))
    assert not again.is_due(0)
    assert not again.is_due(1, 8)
    assert again.told(0) == (None, 0.0), "what followed from the failure still does"
    assert ledger.record.results[0].ok
