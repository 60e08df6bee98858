"""The whole search on a toy evaluator: no pipeline, no Ray, no MLflow."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from dato.strategy import Strategy
from search.ledger import LedgerError, read_ledger
from search.optimize.objectives import Objectives
from search.optimize.winners import SearchFailed
from search.records import Measurement
from search.run.limits import has_stalled
from tests.search.run.searches import MODES, Stops, Toy, outcome, search


def test_a_search_ends_with_winners_from_its_front(tmp_path: Path) -> None:
    record = search(tmp_path, Toy())
    assert record.finished
    assert len(record.results) == 24
    assert set(record.winners) == {"quality", "balanced", "fastest"}
    on_front = {c.strategy.digest for c, _ in record.front()}
    assert {w.candidate.strategy.digest for w in record.winners.values()} <= on_front
    assert record.hypervolumes == sorted(record.hypervolumes)
    assert outcome(read_ledger(tmp_path / "ledger.jsonl")) == outcome(record)


def test_a_finished_search_is_not_paid_for_again(tmp_path: Path) -> None:
    first = search(tmp_path, Toy())
    idle = Toy()
    assert outcome(search(tmp_path, idle)) == outcome(first)
    assert idle.evaluated == []


def test_recorded_latencies_repeat_a_search(tmp_path: Path) -> None:
    first = search(tmp_path / "a", Toy())
    recorded = first.latencies
    assert outcome(search(tmp_path / "b", Toy(), latencies=recorded)) == outcome(first)
    with pytest.raises(LedgerError, match="no latency is recorded"):
        search(tmp_path / "c", Toy(), seed=1, latencies=recorded)


def test_failures_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    record = search(tmp_path, Toy(fails="01234"))
    failed = [m for m in record.results.values() if not m.ok]
    assert failed
    assert all("no luck" in (m.error or "") for m in failed)
    assert record.finished


def test_when_everything_fails_the_first_error_is_shown(tmp_path: Path) -> None:
    class Broken(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if len(strategies) == 1:
                time.sleep(0.02)
                raise RuntimeError("the device is gone")
            return super().run(strategies, batches)

    with pytest.raises(SearchFailed, match=r"first 6 candidates failed; .*: the device is gone.*search.retry_failed=true.*fresh_start=true"):
        search(tmp_path, Broken())
    failed = read_ledger(tmp_path / "ledger.jsonl").results.values()
    assert all(m.seconds >= 0.02 for m in failed), "the time that failures took is counted"
    with pytest.raises(SearchFailed, match="all of the first 6 candidates failed"):
        search(tmp_path / "asynchronous", Broken(), mode="asynchronous")


def test_limits_end_a_search(tmp_path: Path) -> None:
    assert len(search(tmp_path / "a", Toy(), max_candidates=10).results) == 12, "no generation begins after 10 candidates"
    assert len(search(tmp_path / "b", Toy(), max_candidates=10, mode="asynchronous").results) == 10
    assert len(search(tmp_path / "c", Toy(pause=0.05), generations=500, max_minutes=0.01).results) < 60
    stalled = search(tmp_path / "d", Toy(), generations=500, patience=3)
    assert has_stalled(stalled.hypervolumes, 3)
    assert not has_stalled(stalled.hypervolumes[:-1], 3)
    assert stalled.finished


def test_candidates_beyond_a_limit_never_win(tmp_path: Path) -> None:
    record = search(tmp_path, Toy(), objectives=Objectives(max_latency_ms=4.0))
    assert all(w.searched.latency_ms <= 4.0 for w in record.winners.values())
    with pytest.raises(SearchFailed, match="no candidate keeps the limits"):
        search(tmp_path / "b", Toy(), objectives=Objectives(max_fid=1.0))


def test_a_single_score_picks_its_best(tmp_path: Path) -> None:
    scored = Objectives(latency_weight=3.0)
    record = search(tmp_path, Toy(), generations=8, objectives=scored)
    best = min(scored.values(m) for _, m in record.evaluated())
    assert scored.values(record.winners["balanced"].searched) == best


def test_an_asynchronous_search_continues_in_the_order_of_its_ledger(tmp_path: Path) -> None:
    whole = outcome(search(tmp_path / "a", Toy(), mode="asynchronous"))

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", Stops(12), mode="asynchronous")
    assert outcome(search(tmp_path / "b", Toy(), mode="asynchronous")) == whole


def test_children_know_their_parents(tmp_path: Path) -> None:
    for mode in MODES:
        record = search(tmp_path / mode, Toy(), mode=mode, generations=6)
        for number, candidate in record.candidates.items():
            assert candidate.origin == ("offspring" if candidate.parents else "initial")
            assert all(0 <= parent < number for parent in candidate.parents)
            assert len(candidate.parents) <= 2
            if number < 6:
                assert candidate.origin == "initial"
        assert sum(len(c.parents) == 2 for c in record.candidates.values()) > 10
        # Most of a child's steps are one of its parents'.
        for c in record.candidates.values():
            if c.parents:
                genes = [{record.candidates[p].strategy[i] for p in c.parents} for i in range(8)]
                assert sum(c.strategy[i] in genes[i] or c.strategy[i].cache_depth == 0 for i in range(8)) >= 4


@pytest.mark.parametrize("mode", MODES)
def test_cut_after_any_line_it_ends_with_the_same_front(tmp_path: Path, mode: str) -> None:
    undisturbed = outcome(search(tmp_path / "calm", Toy(), generations=3, mode=mode))
    lines = (tmp_path / "calm" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:count]) + lines[count][:9])
        assert outcome(search(folder, Toy(), generations=3, mode=mode)) == undisturbed, f"cut after line {count}: {lines[count - 1]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_killed_at_random_points_it_ends_with_the_same_front(tmp_path: Path, mode: str) -> None:
    """20 kills in all, over both modes, of a copy of this process: starting Python anew would take longer than the search."""
    undisturbed = outcome(search(tmp_path / "calm", Toy(), generations=8, mode=mode))
    folder, chance = tmp_path / "killed", random.Random(0)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                search(folder, Toy(pause=0.02), generations=8, mode=mode)
            finally:
                os._exit(0)
        before = _size(folder)
        deadline = time.monotonic() + 60
        while _size(folder) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not read_ledger(folder / "ledger.jsonl").finished, "the kills came too late to show anything"
    record = search(folder, Toy(), generations=8, mode=mode)
    assert outcome(record) == undisturbed
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    results = [row["number"] for row in rows if row["event"] == "result"]
    assert sorted(results) == list(range(48)), "no evaluation is recorded twice"


def _size(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("mode", MODES)
def test_failed_candidates_are_tried_again_and_a_replay_stays_exact(tmp_path: Path, mode: Literal["generational", "asynchronous"]) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stops(18, fails="0123456"), mode=mode)
    before = read_ledger(tmp_path / "ledger.jsonl")
    failed = {n for n, m in before.results.items() if not m.ok}
    assert len(failed) >= 3
    # Without being asked to, it goes on as it was; another interruption changes nothing.
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stops(2), mode=mode)
    assert {n for n, m in read_ledger(tmp_path / "ledger.jsonl").results.items() if not m.ok} == failed
    with pytest.raises(KeyboardInterrupt):  # those that the algorithm knows as failed come first, and some of them are done
        search(tmp_path, Stops(2), mode=mode, retry_failed=True)
    record = search(tmp_path, Toy(), mode=mode, retry_failed=True)
    assert record.finished
    assert all(m.ok for m in record.results.values())
    assert set(record.told) <= failed
    assert record.told
    assert all(not record.as_told(n).ok for n in record.told)
    asked = [c.strategy.digest for c in before.candidates.values()]
    assert [record.candidates[n].strategy.digest for n in before.candidates] == asked
    again = read_ledger(tmp_path / "ledger.jsonl")
    assert (again.told.keys(), outcome(again)) == (record.told.keys(), outcome(record))
    idle = Toy()  # a replay of the whole, which asks for the same candidates or is refused
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_text("".join(x for x in lines if '"event":"finished"' not in x))
    search(tmp_path, idle, mode=mode)
    assert not set(asked) & set(idle.evaluated)


def test_a_failure_in_a_generation_that_still_runs_is_replaced_for_the_algorithm_too(tmp_path: Path) -> None:
    whole = outcome(search(tmp_path / "a", Toy()))

    first = read_ledger(tmp_path / "a" / "ledger.jsonl").candidates[0].strategy.digest
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", Stops(6, fails=first[0]))
    assert not all(m.ok for m in read_ledger(tmp_path / "b" / "ledger.jsonl").results.values())
    record = search(tmp_path / "b", Toy(), retry_failed=True)
    assert outcome(record) == whole
    assert not record.told
