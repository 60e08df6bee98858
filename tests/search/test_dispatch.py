"""Scheduling on values: no Ray, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from dato.strategy import Strategy
from search.dispatch import LOSSES, Dispatcher, Job, Piece

S = Strategy.full(2)


def jobs(count: int, batches: int = 4, method: str = "run") -> list[Job]:
    return [Job(i, [S], [[i, b] for b in range(batches)], method=method) for i in range(count)]


def join(parts: Sequence[Any]) -> list[Any]:
    return [x for part in parts for x in part]


def work(piece: Piece) -> list[Any]:
    return [piece.job.batches[i] for i in piece.batches]


def test_without_join_a_job_is_one_piece() -> None:
    dispatcher = Dispatcher(jobs(1))
    piece = dispatcher.assign("a")
    assert piece is not None
    assert list(piece.batches) == [0, 1, 2, 3]
    assert dispatcher.assign("b") is None
    assert not dispatcher.done
    assert dispatcher.succeed(piece, "whole") == (piece.job, "whole")
    assert dispatcher.done


def test_workers_start_jobs_of_their_own_first_and_then_help() -> None:
    dispatcher = Dispatcher(jobs(2), join=join)
    first = {w: dispatcher.assign(w) for w in "abcdef"}
    assert [(p.job.key, list(p.batches)) for p in first.values() if p] == [(0, [0]), (1, [0]), (0, [1]), (1, [1]), (0, [2]), (1, [2])]


def test_a_worker_stays_with_its_job() -> None:
    dispatcher = Dispatcher(jobs(2), join=join)
    a, b = dispatcher.assign("a"), dispatcher.assign("b")
    assert a and b
    dispatcher.succeed(b, work(b))
    again = dispatcher.assign("b")
    assert again is not None
    assert again.job.key == 1


def test_results_are_joined_in_the_order_of_the_batches_whatever_the_finish() -> None:
    dispatcher = Dispatcher(jobs(1), join=join)
    pieces = [p for p in (dispatcher.assign(w) for w in "abcd") if p]
    finished = [dispatcher.succeed(p, work(p)) for p in reversed(pieces)]
    assert finished[:3] == [None, None, None]
    assert finished[3] == (pieces[0].job, [[0, 0], [0, 1], [0, 2], [0, 3]])


def test_a_generator_decides_late() -> None:
    seen: list[int] = []

    def endless() -> Iterator[Job]:
        for i in range(3):
            seen.append(i)
            yield jobs(1, batches=1)[0]

    dispatcher = Dispatcher(endless(), join=join)
    piece = dispatcher.assign("a")
    assert seen == [0]
    assert piece is not None
    dispatcher.succeed(piece, [])
    assert seen == [0]
    dispatcher.assign("a")
    assert seen == [0, 1]


def test_a_failed_batch_alone_is_tried_again_then_the_job_is_handed_back() -> None:
    dispatcher = Dispatcher(jobs(1, batches=2), join=join, tries=2)
    good, bad = dispatcher.assign("a"), dispatcher.assign("b")
    assert good and bad
    assert dispatcher.succeed(good, work(good)) is None
    assert dispatcher.fail(bad, "unwell") is None
    assert dispatcher.assign("a") is bad
    assert dispatcher.fail(bad, "unwell again") == (bad.job, None)
    assert bad.job.errors == ["unwell", "unwell again"]
    assert bad.job.tries == 2
    assert dispatcher.assign("a") is None
    assert dispatcher.done


def test_a_job_that_fails_everywhere_is_started_no_more_often_than_its_tries() -> None:
    dispatcher = Dispatcher(jobs(1, batches=24), join=join, tries=3)
    began, handed_back = 0, None
    while handed_back is None:
        piece = dispatcher.assign("ab"[began % 2])
        assert piece is not None
        began += 1
        handed_back = dispatcher.fail(piece, "unwell", worker="ab"[(began - 1) % 2], seconds=2.0)
    assert began == 3
    assert handed_back[0].failed_s == 6.0
    assert dispatcher.done or dispatcher.assign("a") is None


def test_failures_of_different_batches_of_a_job_that_works_do_not_end_it() -> None:
    dispatcher = Dispatcher(jobs(1, batches=8), join=join, tries=3)
    first = dispatcher.assign("a")
    assert first is not None
    dispatcher.succeed(first, work(first))
    for _ in range(6):  # each batch fails once, on one worker, and succeeds on another
        piece = dispatcher.assign("a")
        assert piece is not None
        assert dispatcher.fail(piece, "unwell", worker="a") is None
        again = dispatcher.assign("b")
        assert again is piece
        assert dispatcher.succeed(again, work(again)) is None


def test_what_is_left_of_a_failed_job_is_dropped() -> None:
    dispatcher = Dispatcher(jobs(1, batches=3), join=join, tries=1)
    bad, running = dispatcher.assign("a"), dispatcher.assign("b")
    assert bad and running
    assert dispatcher.fail(bad, "unwell") == (bad.job, None)
    assert dispatcher.succeed(running, work(running)) is None
    assert dispatcher.fail(running, "late") is None
    assert dispatcher.assign("a") is None


def test_lost_machines_are_no_tries_but_not_for_ever() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), tries=2)
    handed_back = None
    for loss in range(LOSSES):
        piece = dispatcher.assign("a")
        assert piece is not None, loss
        handed_back = dispatcher.fail(piece, "gone", lost=True)
        assert (handed_back is None) == (loss < LOSSES - 1)
    assert handed_back is not None
    assert handed_back[0].tries == 1


def test_one_batch_is_kept_for_a_worker_whose_latency_counts() -> None:
    dispatcher = Dispatcher(jobs(1, batches=3), join=join, mixed=True)
    other = [dispatcher.assign("slow", timed=False), dispatcher.assign("slow", timed=False)]
    assert all(other)
    assert dispatcher.assign("slow", timed=False) is None
    kept = dispatcher.assign("h100", timed=True)
    assert kept is not None
    assert kept.timed
    assert dispatcher.fail(kept, "unwell") is None
    assert dispatcher.assign("slow", timed=False) is None, "the retry is kept for it too"
    assert dispatcher.assign("h100", timed=True) is kept


def test_others_do_not_run_ahead_of_the_workers_whose_latency_counts() -> None:
    dispatcher = Dispatcher(iter(jobs(100, batches=2)), join=join, mixed=True, ahead=4)
    taken = 0
    while dispatcher.assign("slow", timed=False):
        taken += 1
    assert taken == 4
    piece = dispatcher.assign("h100", timed=True)
    assert piece is not None
    assert piece.job.key == 0


@pytest.mark.parametrize("method", ["samples"])
def test_pictures_are_drawn_anywhere_and_never_cut(method: str) -> None:
    dispatcher = Dispatcher(jobs(1, method=method), join=join, mixed=True)
    piece = dispatcher.assign("slow", timed=False)
    assert piece is not None
    assert len(piece.batches) == 4


def test_a_piece_is_not_given_to_the_worker_it_failed_on_while_there_is_another() -> None:
    dispatcher = Dispatcher([Job("a", [], [[0]])], tries=3)
    piece = dispatcher.assign("one")
    assert piece is not None
    assert dispatcher.fail(piece, "no luck", worker="one") is None
    assert dispatcher.assign("one") is None
    assert dispatcher.assign("two") is piece
    assert dispatcher.fail(piece, "no luck", worker="two") is None
    assert dispatcher.assign("two", alone=True) is piece
    assert dispatcher.fail(piece, "no luck", worker="two") == (piece.job, None)
