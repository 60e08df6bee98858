"""What MLflow draws over generations: from records with promotions, in which only some candidates have been measured on more images."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dato.strategy import Strategy
from search.measurements import Measurement
from search.publish.curves import curves, final_metrics, fresh_figures
from search.publish.snapshot import as_of
from search.records import UNACCELERATED, Candidate, SearchRecord, Winner

PLAIN = {50: Measurement(fid=2.0, images=50, latency_ms=100.0), 100: Measurement(fid=1.0, images=100, latency_ms=100.0)}


def record(results: dict[int, tuple[float, float]], promotions: dict[int, tuple[float, float]]) -> SearchRecord:
    """Results on 50 images and promotions to 100, as FID and ms by candidate number; two candidates a generation."""
    made = SearchRecord(search_id="s", config={"search": {"winner_speedups": [2.0, 4.0]}, "cluster": {"gpus": 0.5}})
    made.baselines[UNACCELERATED] = (Candidate(number=-1, generation=-1, strategy=Strategy.full(4), origin=UNACCELERATED), PLAIN[100])
    made.baselines_at[UNACCELERATED] = dict(PLAIN)
    for number, (fid, ms) in results.items():
        made.candidates[number] = Candidate(number=number, generation=number // 2, strategy=Strategy.full(4 + number))
        made.results[number] = Measurement(fid=fid, images=50, latency_ms=ms, seconds=3600)
        made.events += [("ask", number), ("result", number)]
    made.promotions = {n: {100: Measurement(fid=fid, images=100, latency_ms=ms, seconds=5400)} for n, (fid, ms) in promotions.items()}
    made.hypervolumes = [0.1 * (g + 1) for g in range((max(results) // 2) + 1)]
    return made


def test_the_speedup_never_falls_back_to_one() -> None:
    # Of the candidates on 100 images none reaches the unaccelerated FID; number 0 does on 50, and is as fast as ever.
    with_promotions = record({0: (1.9, 25.0), 1: (3.0, 10.0), 2: (2.5, 20.0), 3: (4.0, 5.0)}, {1: (1.5, 10.0)})
    found = [curves(as_of(with_promotions, g))["speedup"] for g in (0, 1)]
    assert found == [4.0, 4.0]


def test_nothing_is_drawn_where_there_is_nothing() -> None:
    found = curves(record({0: (9.0, 60.0)}, {}))
    assert math.isnan(found["speedup"])
    assert math.isnan(found["best_fid_difference/at-2x"])


def test_each_candidate_counts_by_its_last_measurement() -> None:
    found = curves(record({0: (1.0, 40.0), 1: (2.5, 20.0)}, {0: (1.25, 40.0)}))
    assert found["best_fid_difference/at-2x"] == pytest.approx(0.25), "0.25 on 100 images, where it was better by 1 on 50"
    assert found["best_fid_difference/at-4x"] == pytest.approx(0.5)
    assert (found["progress/candidates"], found["progress/failures"], found["progress/front"]) == (2, 0, 1)
    assert found["progress/device_hours"] == pytest.approx(2.5)
    assert found["progress/gpu_hours"] == pytest.approx(1.25)


def test_failures_are_counted_and_no_points() -> None:
    failed = record({0: (1.0, 40.0), 1: (1.0, 10.0)}, {})
    failed.results[1] = Measurement(error="out of memory")
    found = curves(failed)
    assert (found["speedup"], found["progress/failures"]) == (2.5, 1)


def test_of_winners_two_figures_stand_with_the_search() -> None:
    made = record({0: (1.0, 40.0)}, {})
    fresh = replace(PLAIN[100], fid=0.5, latency_ms=20.0, difference_low=-0.9, difference_high=-0.1)
    assert final_metrics(made) == {}
    made.winners["fastest"] = Winner(alias="fastest", candidate=made.candidates[0], searched=made.results[0], fresh=fresh, fresh_baseline=PLAIN[100])
    assert final_metrics(made) == {"fastest/speedup": 5.0, "fastest/fid_difference": -0.5}
    assert fresh_figures(made.winners["fastest"])["fid_difference_high"] == -0.1
