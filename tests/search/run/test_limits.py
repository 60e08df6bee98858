from __future__ import annotations

from typing import Any

from dato.strategy import Strategy
from search.measurements import Measurement
from search.records import Candidate, SearchRecord
from search.run.limits import Limits, has_stalled
from search.run.settings import SearchPlan


def record(candidates: int, seconds: float = 1.0) -> SearchRecord:
    asked = {n: Candidate(number=n, generation=0, strategy=Strategy.full(2)) for n in range(candidates)}
    return SearchRecord(search_id="toy", config={}, candidates=asked, results={n: Measurement(images=4, seconds=seconds) for n in asked})


def limits(**plan: Any) -> Limits:
    return Limits(SearchPlan(**{"generations": 4, "population": 6, **plan}))


def test_candidates_are_counted() -> None:
    assert (limits().candidates, limits(max_candidates=10).candidates, limits(max_candidates=100).candidates) == (24, 10, 24)
    assert not limits().are_reached(record(23), 23)
    assert limits().are_reached(record(24), 24)
    assert limits(max_candidates=10).are_reached(record(10), 10)


def test_what_was_asked_for_before_is_asked_for_again() -> None:
    spent = limits(max_candidates=10, max_device_hours=1 / 3600)
    assert spent.are_reached(record(12), 12)
    assert not spent.are_reached(record(12), 11)


def test_time_of_devices_and_of_the_command() -> None:
    hour = limits(max_device_hours=1.0)
    assert not hour.are_reached(record(5, seconds=700.0), 5)
    assert hour.are_reached(record(5, seconds=720.0), 5)
    assert limits(max_minutes=1e-9).are_reached(record(5), 5)
    assert not limits(max_minutes=1e9).are_reached(record(5), 5)


def test_one_generation_without_growth_is_no_stall() -> None:
    assert not has_stalled([0.1, 0.2, 0.2, 0.3], 1) and has_stalled([0.1, 0.2, 0.2], 1)
    assert not has_stalled([0.1, 0.2, 0.2, 0.3], 2), "the means grew"
    assert has_stalled([0.2, 0.2, 0.2, 0.2], 2)
    assert not has_stalled([0.2, 0.2, 0.2], 2), "too few to tell"
    assert not has_stalled([0.2] * 50, None)
