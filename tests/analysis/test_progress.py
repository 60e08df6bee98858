from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.progress import best_speedup, duration, in_use, progress, read_clock
from dato.strategy import Strategy
from search.ledger import read_ledger
from search.measurements import Measurement
from search.records import Candidate, SearchRecord


@pytest.fixture
def record() -> SearchRecord:
    found = SearchRecord(search_id="s", config={"search": {"population": 4, "generations": 5}, "cluster": {"workers": 2}}, hypervolumes=[0.25])
    found.baselines["unaccelerated"] = (Candidate(number=-1, generation=-1, strategy=Strategy.full(2)), Measurement(fid=50, latency_ms=400, seconds=10))
    for i, (fid, ms) in enumerate([(51, 100), (50, 200), (40, 300)]):
        found.candidates[i] = Candidate(number=i, generation=0, strategy=Strategy.full(2))
        found.results[i] = Measurement(fid=fid, latency_ms=ms, seconds=10)
    found.candidates[3] = Candidate(number=3, generation=0, strategy=Strategy.full(2))
    found.results[3] = Measurement(error="no memory")
    return found


def test_counts_and_the_best_speedup_at_equal_fid(record: SearchRecord) -> None:
    now = progress(record)
    assert (now.done, now.total, now.generation, now.generations, now.front, now.failures) == (4, 20, 1, 5, 3, 1)
    assert now.speedup == best_speedup(record) == 2.0
    assert now.device_hours == pytest.approx(40 / 3600)
    assert (now.utilisation, now.left_s) == (None, None)


def test_utilisation_and_time_left_come_from_the_clock(record: SearchRecord) -> None:
    now = progress(record, [1000, 1010, 1020, 1040], now=1050)
    assert now.utilisation == pytest.approx(40 / (2 * 50))
    assert now.left_s == pytest.approx(16 * 50 / 4)
    paused = progress(record, [1000, 1010, 1020, 99_000, 99_020], now=99_030)
    assert paused.left_s == pytest.approx(16 * 50 / 4)


def test_results_of_before_the_clock_do_not_count_for_the_pace(record: SearchRecord) -> None:
    now = progress(record, [1000, 1020], older=2)
    assert now.left_s == pytest.approx(16 * 20 / 2)
    assert now.utilisation == pytest.approx(10 / 40)


def test_an_empty_search_has_a_state() -> None:
    now = progress(SearchRecord(search_id="s", config={}))
    assert now.lines()[0].startswith("candidates 0/0")
    assert "no candidate measured yet" in now.lines()[1]


def test_what_is_over_is_told_in_the_past(record: SearchRecord) -> None:
    clock = [1000.0, 1010.0, 1020.0, 1040.0]
    for m in record.results.values():
        object.__setattr__(m, "fid", 60.0)

    def said(**how: Any) -> str:
        return " / ".join(progress(record, clock, **how).lines())

    for running, words in {True: ("no candidate at the unaccelerated FID yet", "min left", "workers 50% busy"), False: ("FID yet", "of work left", "workers were 50% busy")}.items():
        assert all(w in said(running=running) for w in words), said(running=running)
    record.config["search"]["generations"] = 1
    for running, left in {True: "validating the winners", None: "validating the winners", False: "stopped before the winners were validated"}.items():
        assert left in said(running=running)
        assert "no candidate reached the unaccelerated FID" in said(running=running)
    record.finished = True
    assert "finished" in said(running=False) and "yet" not in said(running=False)
    record.results = {n: Measurement(error="no memory") for n in record.candidates}
    assert "no candidate could be measured" in said(running=False)


@pytest.mark.parametrize(("seconds", "text"), [(None, "unknown time"), (40, "40 s"), (150, "2 min"), (7500, "2 h 05 min")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_ledgers_with_and_without_times(make_search: Callable[..., Path], tmp_path: Path) -> None:
    path = make_search(tmp_path / "toy") / "ledger.jsonl"
    assert len(read_clock(path)) == len(path.read_text().splitlines())
    before = read_ledger(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "at"}) + "\n" for row in rows))
    assert read_clock(path) == []
    after = read_ledger(path)
    assert {n: m.to_dict() for n, m in after.results.items()} == {n: m.to_dict() for n, m in before.results.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")
def test_whether_a_search_runs_is_seen_from_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.touch()
    assert in_use(path) is False
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert in_use(path) is True
    assert in_use(path) is False
