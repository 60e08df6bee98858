"""Who wins, by the numbers of a made-up search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dato.strategy import Step, Strategy
from search.measurements import Measurement
from search.optimize.objectives import Objectives
from search.optimize.winners import (
    SearchFailed,
    choose_winners,
    closest,
    compare_to_tolerance,
    in_order_of_speed,
    in_words,
    passed,
    tolerance_of,
)
from search.records import UNACCELERATED, Candidate, SearchRecord, Winner

PLAIN = Measurement(fid=10.0, fid_low=9.0, fid_high=11.0, images=100, latency_ms=100.0)


def point(fid: float, ms: float, half: float = 0.05, images: int = 100) -> Measurement:
    return Measurement(fid=fid, images=images, latency_ms=ms, difference_low=fid - 10 - half, difference_high=fid - 10 + half)


def record_of(*points: Measurement) -> SearchRecord:
    record = SearchRecord(search_id="toy", config={})
    plain = Candidate(number=-1, generation=-1, strategy=Strategy.full(8), origin=UNACCELERATED)
    record.baselines[UNACCELERATED], record.baselines_at[UNACCELERATED] = (plain, PLAIN), {100: PLAIN}
    for number, m in enumerate(points):
        entries = [Step(1, 0.1 * (number % 8))] * 8
        record.candidates[number] = Candidate(number=number, generation=0, strategy=Strategy((Step(12), *entries[1:])))
        record.results[number] = m
    return record


@pytest.mark.parametrize(
    ("fid", "half", "found"), [(10.0, 0.1, "passes"), (10.1, 0.1, "undecided"), (10.0, 0.11, "undecided"), (10.3, 0.1, "fails"), (9.0, 5.0, "undecided"), (10, float("nan"), "undecided")]
)
def test_the_upper_end_of_the_paired_interval_decides(fid: float, half: float, found: str) -> None:
    assert compare_to_tolerance(point(fid, 10, half), Measurement(fid=10.0), 0.1) == found


def test_fewer_images_make_no_strategy_pass() -> None:
    """A wide interval of the unaccelerated FID is no excuse."""
    assert in_order_of_speed(record_of(point(10.9, 10.0)), 0.1) == []


def test_in_order_of_speed() -> None:
    record = record_of(point(10.5, 5), point(10.0, 30), point(10.02, 20), point(10.04, 25), point(10.0, 10, half=0.3))
    assert [c.number for c in in_order_of_speed(record, 0.1)] == [2, 3, 1], "also those off the front, and none whose interval is too wide"
    assert [c.number for c in in_order_of_speed(record, 1.0)] == [0, 4, 2, 3, 1]
    assert [c.number for c in in_order_of_speed(record, 0.1, Objectives(max_latency_ms=22))] == [2]


def test_winners_by_speedup() -> None:
    record = record_of(point(9.8, 60), point(10.0, 30), point(10.2, 24), point(11.0, 12), point(20.0, 5))
    chosen = choose_winners(record, 3.0, speedups=(2, 4, 8, 50), tolerance=0.1)
    assert {alias: c.number for alias, c in chosen.items()} == {"quality": 1, "balanced": 1, "at-2x": 1, "at-4x": 2, "at-8x": 3}
    assert choose_winners(record, 3.0, speedups=(2.5,), tolerance=0.1)["at-2-5x"].number == 1


def test_what_exceeds_a_limit_hides_nothing_that_keeps_it() -> None:
    far, near, slow = (replace(p, feature_distance=d) for p, d in ((point(9.0, 5), 0.3), (point(9.5, 10), 0.05), (point(9.4, 60), 0.05)))
    found = choose_winners(record_of(far, near, slow), 1.5, Objectives(max_distance=0.1), speedups=(2,))
    assert {alias: c.number for alias, c in found.items()} == {"quality": 2, "balanced": 1, "at-2x": 1}
    assert choose_winners(record_of(far, near, slow), 1.5)["quality"].number == 0


def test_without_a_winner_it_is_said_why() -> None:
    with pytest.raises(SearchFailed, match="no candidate could be measured"):
        choose_winners(record_of(Measurement(error="unwell")), 3.0)
    with pytest.raises(SearchFailed, match="min_speedup"):
        choose_winners(record_of(point(10, 90)), 3.0, Objectives(min_speedup=2.0))


def test_the_closest_of_those_checked_on_fresh_images_else_of_the_search() -> None:
    record = record_of(point(10.5, 5), point(10.2, 30))
    found = closest(record)
    assert found and found[0].number == 1
    record.fresh = {-1: {100: PLAIN, 200: PLAIN}, 0: {100: point(10.1, 5), 200: point(10.4, 5, images=200)}}
    found = closest(record)
    assert found and (found[0].number, found[1].images) == (0, 200), "by its largest number of fresh images"


@pytest.mark.parametrize(
    ("fid", "words", "ok"),
    [(10.5, "measurably worse", False), (10.07, "measurably worse than the unaccelerated pipeline, within the tolerance", False), (9.5, "measurably better", True), (10.0, "no worse within the tolerance", True)],
)
def test_in_words(fid: float, words: str, ok: bool) -> None:
    record = record_of(point(fid, 10))
    winner = Winner(alias="quality", candidate=record.candidates[0], searched=record.results[0], fresh=point(fid, 10), fresh_baseline=PLAIN)
    tolerance = 0.15 if fid == 10.07 else 0.1
    assert in_words(winner, tolerance).startswith(words)
    assert passed(winner, tolerance) is (ok or fid == 10.07)


def test_the_tolerance_follows_the_features_where_none_is_given() -> None:
    assert tolerance_of({}) == tolerance_of({"protocol": {"features": "embedded"}}) == 0.1
    assert tolerance_of({"protocol": {"features": "inception:/weights.pth"}, "search": {"tolerance": None}}) == 0.5
    assert tolerance_of({"protocol": {"features": "inception"}, "search": {"tolerance": 0.02}}) == 0.02
