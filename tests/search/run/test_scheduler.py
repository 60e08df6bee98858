"""Scheduling on values: no Ray, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from dato.strategy import Strategy
from search.run.health import OUT_OF_MEMORY_IN_A_ROW, Health
from search.run.jobs import Job, Piece, Task
from search.run.scheduler import LOSSES, Dispatcher

S = Strategy.full(2)


def jobs(count: int, batches: int = 4, task: Task = Task.EVALUATE) -> list[Job]:
    return [Job(i, [S], [[i, b] for b in range(batches)], task=task) for i in range(count)]


def join(parts: Sequence[Any]) -> list[Any]:
    return [x for part in parts for x in part]


def work(piece: Piece) -> list[Any]:
    return [piece.job.batches[i] for i in piece.batches]


def sound(*workers: str) -> Health:
    """Workers that have succeeded with something."""
    health = Health()
    for worker in workers:
        health.succeeded(worker)
    health.good = Job("good", [S], [["good"]])
    return health


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


def test_what_a_worker_that_leaves_had_to_do_is_done_by_others() -> None:
    dispatcher = Dispatcher(jobs(2, batches=2), join=join)
    a, b = dispatcher.assign("a"), dispatcher.assign("b")
    assert a and b
    assert dispatcher.fail(a, "gone", lost=True) is None
    dispatcher.leaves("a")
    finished = [dispatcher.succeed(b, work(b))]
    while piece := dispatcher.assign("b"):
        finished.append(dispatcher.succeed(piece, work(piece)))
    assert sorted(job.key for job, result in filter(None, finished) if result) == [0, 1]
    assert dispatcher.done


def test_workers_that_have_left_are_nobody_to_wait_for() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), join=join, health=sound("a", "b"))
    first = dispatcher.assign("a")
    assert first and dispatcher.assign("b") is None
    dispatcher.fail(first, "unwell", worker="a")
    dispatcher.leaves("b")
    second = dispatcher.assign("a", alone=True)
    assert second is not None, "b, on which it could be tried, has left"


def test_a_job_says_where_it_failed_last() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), tries=2, health=sound("a", "b"))
    for worker in "ab":
        piece = dispatcher.assign(worker)
        assert piece
        ended = dispatcher.fail(piece, "unwell", worker=worker, where=f"node {worker}, log /logs/{worker}.err")
    assert ended and ended[0].reason == "unwell (node b, log /logs/b.err)"


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
    dispatcher = Dispatcher(jobs(1, batches=2), join=join, tries=2, health=sound("a", "b"))
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
    dispatcher = Dispatcher(jobs(1, batches=24), join=join, tries=3, health=sound("a", "b", "c"))
    began, handed_back = 0, None
    while handed_back is None:
        piece = dispatcher.assign("abc"[began])
        assert piece is not None
        handed_back = dispatcher.fail(piece, "unwell", worker="abc"[began], seconds=2.0)
        began += 1
    assert began == 3
    assert handed_back[0].failed_s == 6.0
    assert dispatcher.done or dispatcher.assign("a") is None


def test_failures_of_different_batches_of_a_job_that_works_do_not_end_it() -> None:
    dispatcher = Dispatcher(jobs(1, batches=8), join=join, tries=3, health=sound(*"abcdefgh"))
    first = dispatcher.assign("a")
    assert first is not None
    dispatcher.succeed(first, work(first))
    for worker in "bcdefg":  # each batch fails once, on one worker, and succeeds on another
        piece = dispatcher.assign(worker)
        assert piece is not None
        assert dispatcher.fail(piece, "unwell", worker=worker) is None
        again = dispatcher.assign("h")
        assert again is piece
        assert dispatcher.succeed(again, work(again)) is None


def test_what_is_left_of_a_failed_job_is_dropped() -> None:
    dispatcher = Dispatcher(jobs(1, batches=3), join=join, tries=1, health=sound("a"))
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
    assert dispatcher.assign("h100", timed=True, alone=True) is kept


def test_others_do_not_run_ahead_of_the_workers_whose_latency_counts() -> None:
    dispatcher = Dispatcher(iter(jobs(100, batches=2)), join=join, mixed=True, ahead=4)
    taken = 0
    while dispatcher.assign("slow", timed=False):
        taken += 1
    assert taken == 4
    piece = dispatcher.assign("h100", timed=True)
    assert piece is not None
    assert piece.job.key == 0


@pytest.mark.parametrize("task", [Task.SAMPLES, Task.REFERENCE, Task.MODEL_INFO])
def test_what_is_not_timed_runs_anywhere_and_is_never_cut(task: Task) -> None:
    dispatcher = Dispatcher(jobs(1, task=task), join=join, mixed=True)
    piece = dispatcher.assign("slow", timed=False)
    assert piece is not None
    assert len(piece.batches) == 4


def test_a_piece_is_not_given_to_the_worker_it_failed_on_while_there_is_another() -> None:
    dispatcher = Dispatcher([Job("a", [], [[0]])], tries=2, health=sound("one", "two"))
    piece = dispatcher.assign("one")
    assert piece is not None
    assert dispatcher.fail(piece, "no luck", worker="one") is None
    assert dispatcher.assign("one") is None
    assert dispatcher.assign("two") is piece
    assert dispatcher.fail(piece, "no luck", worker="two") == (piece.job, None)


def test_what_fails_on_a_worker_that_has_not_succeeded_counts_against_nothing() -> None:
    dispatcher = Dispatcher(jobs(3, batches=1), tries=1)
    on_new, on_proven = dispatcher.assign("new"), dispatcher.assign("other")
    assert on_new and on_proven
    assert dispatcher.fail(on_new, "unwell", worker="new", seconds=5.0) is None
    assert (on_new.job.blamed, on_new.job.failed_s) == ([], 0.0)
    assert dispatcher.assign("third") is not on_new, "nothing is known of that one either"
    assert dispatcher.succeed(on_proven, work(on_proven))
    assert dispatcher.assign("other") is on_new
    assert dispatcher.fail(on_new, "unwell here too", worker="other", seconds=1.0) == (on_new.job, None)
    assert on_new.job.reason == "unwell here too"
    assert on_new.job.failed_s == 1.0


def test_a_worker_that_fails_twice_gets_nothing_and_is_broken_when_another_succeeds() -> None:
    dispatcher = Dispatcher(jobs(40, batches=1), tries=3)
    well = dispatcher.assign("well")
    for _ in range(2):
        piece = dispatcher.assign("bad")
        assert piece is not None
        assert dispatcher.fail(piece, "unwell", worker="bad") is None
    assert dispatcher.assign("bad") is None, "it would take all the candidates there are"
    assert dispatcher.health.take_broken() == []
    assert well is not None
    dispatcher.succeed(well, work(well))
    assert dispatcher.assign("bad") is None
    assert dispatcher.health.take_broken() == ["bad"]
    assert dispatcher.assign("bad") is not None, "another process has taken its place"
    assert dispatcher.health.take_broken() == []


def test_when_nobody_else_can_tell_a_worker_is_checked_with_what_is_known_to_work() -> None:
    dispatcher = Dispatcher(jobs(2, batches=1), tries=2, health=sound("a"))
    failed = [dispatcher.assign("a"), None]
    assert failed[0]
    dispatcher.fail(failed[0], "bad candidate", worker="a")
    failed[1] = dispatcher.assign("a")
    assert failed[1]
    dispatcher.fail(failed[1], "bad candidate", worker="a")
    assert dispatcher.assign("a") is None
    ended: list[Any] = []
    for _ in range(20):
        if dispatcher.done:
            break
        piece = dispatcher.assign("a") or dispatcher.assign("a", alone=True)
        if piece is None:
            continue
        if piece.check:
            assert piece.job.batches == [["good"]]
            assert dispatcher.succeed(piece, "fine") is None
        elif over := dispatcher.fail(piece, "bad candidate", worker="a"):
            ended.append(over[0].key)
    assert sorted(ended) == [0, 1]
    assert dispatcher.health.take_broken() == []


def test_a_worker_that_fails_what_is_known_to_work_is_broken_and_no_candidate_is_blamed() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), tries=1, health=sound())
    piece = dispatcher.assign("a")
    assert piece
    assert dispatcher.fail(piece, "unwell", worker="a") is None
    assert dispatcher.assign("a") is None
    for life in range(1, 4):
        check = dispatcher.assign("a", alone=True)
        assert check
        assert check.check
        assert dispatcher.fail(check, "unwell", worker="a") is None
        assert dispatcher.health.take_broken() == ["a"]
        assert dispatcher.health.lives_broken("a") == life
    assert not dispatcher.done


def test_where_nothing_ever_succeeded_the_job_is_handed_back_after_its_tries() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), tries=3)
    handed_back = None
    for worker in "aba":
        assert handed_back is None
        piece = dispatcher.assign(worker) or dispatcher.assign(worker, alone=True)
        assert piece
        handed_back = dispatcher.fail(piece, "no model here", worker=worker)
    assert handed_back is not None
    assert handed_back[0].reason == "no model here"


def test_a_process_that_dies_again_and_again_at_once_is_no_proof_against_candidates() -> None:
    dispatcher = Dispatcher(jobs(20, batches=1), tries=3)
    for death in range(1, 4):
        piece = dispatcher.assign("bad")
        assert piece
        assert dispatcher.fail(piece, "the worker died") is None
        assert dispatcher.health.lives_broken("bad") == death
        assert piece.job.blamed == []


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: CUDA error: device-side assert triggered",
        "AcceleratorError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "RuntimeError: CUDA driver error: unknown error",
        "RuntimeError: HIP error: unspecified launch failure",
    ],
)
@pytest.mark.parametrize("task", [Task.EVALUATE, Task.REFERENCE, Task.SAMPLES])
def test_an_error_that_poisons_the_device_breaks_the_worker_at_once(error: str, task: Task) -> None:
    dispatcher = Dispatcher(jobs(2, batches=1, task=task), tries=3, health=sound("a", "b"))
    piece = dispatcher.assign("a")
    assert piece
    assert dispatcher.fail(piece, error, worker="a") is None
    assert dispatcher.health.take_broken() == ["a"]
    assert dispatcher.assign("b") is piece


@pytest.mark.parametrize(
    "error",
    [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "ValueError: prune_ratio is 0.8",
        "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    ],
)
def test_an_error_that_passes_does_not(error: str) -> None:
    dispatcher = Dispatcher(jobs(2, batches=1), tries=3, health=sound("a", "b"))
    piece = dispatcher.assign("a")
    assert piece
    dispatcher.fail(piece, error, worker="a")
    assert dispatcher.health.take_broken() == []
    assert piece.job.blamed == [error]


FULL = "OutOfMemoryError: out of memory on NVIDIA H200 (cuda:0), twice, the second time with everything else freed"


def test_what_does_not_fit_into_a_proven_workers_memory_is_given_up_at_once_and_the_worker_goes_on() -> None:
    dispatcher = Dispatcher(jobs(8, batches=1), tries=3, health=sound("a", "b"))
    for number in range(4):
        piece, beside = dispatcher.assign("a"), dispatcher.assign("b")
        assert piece
        assert beside
        if number == 0:  # proven: judged at once
            assert dispatcher.fail(piece, FULL, worker="a") == (piece.job, None)
            assert piece.job.reason == FULL
            assert piece.job.tries == 1
        else:  # since then nobody knows whether it is the worker's memory: it is tried where others succeed
            assert dispatcher.fail(piece, FULL, worker="a") is None
            assert piece.job.blamed == []
        dispatcher.succeed(beside, "fine")
        assert dispatcher.health.take_broken() == []
        assert not dispatcher.health.suspect("a")
        if number:
            again = dispatcher.assign("b")
            assert again is piece
            dispatcher.succeed(again, "fine")


def test_a_worker_whose_memory_leaks_is_exchanged_after_all() -> None:
    dispatcher = Dispatcher(jobs(40, batches=1), tries=3, health=sound("a", "b"))
    failures = 0
    while not dispatcher.health.take_broken() and failures < 30:
        piece = dispatcher.assign("a")
        assert piece
        dispatcher.fail(piece, FULL, worker="a")
        failures += 1
        if (other := dispatcher.assign("b")) is not None:
            dispatcher.succeed(other, "fine")
    assert failures == OUT_OF_MEMORY_IN_A_ROW


def test_a_process_that_was_killed_for_memory_is_no_verdict_of_a_worker() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), tries=3, health=sound("a", "b"))
    piece = dispatcher.assign("a")
    assert piece
    assert dispatcher.fail(piece, "the worker died: OutOfMemoryError: the node was running low on memory") is None


def test_a_candidate_that_poisons_one_worker_after_the_other_is_given_up() -> None:
    dispatcher = Dispatcher(jobs(1, batches=1), tries=3, health=sound(*"abc"))
    handed_back = None
    for worker in "abc":
        piece = dispatcher.assign(worker)
        assert piece
        handed_back = dispatcher.fail(piece, "RuntimeError: CUDA error: device-side assert triggered", worker=worker)
        assert dispatcher.health.take_broken() == [worker]
    assert handed_back == (piece.job, None)


def test_two_candidates_that_fail_everywhere_do_not_break_the_workers_that_show_it() -> None:
    health = sound(*"abcd")
    dispatcher = Dispatcher(jobs(30, batches=1), tries=2, health=health)
    bad, broken, ended = {0, 1}, list[Any](), list[Any]()
    while not dispatcher.done:
        ran = [(w, p) for w in "abcd" if (p := dispatcher.assign(w))]
        ran = ran or [(w, p) for w in "abcd" if (p := dispatcher.assign(w, alone=True))]
        for worker, piece in ran:
            over = dispatcher.fail(piece, "bad", worker=worker) if piece.job.key in bad else dispatcher.succeed(piece, work(piece))
            ended += [over] if over else []
        broken += health.take_broken()
    assert {job.key for job, result in ended if result is None} == bad
    assert len(ended) == 30
    assert broken == []


@pytest.mark.parametrize("task", [Task.EVALUATE, Task.REFERENCE])
def test_broken_workers_fail_no_images_of_the_reference_either(task: Task) -> None:
    dispatcher, failed, done = Dispatcher(jobs(40, batches=1, task=task), tries=3), [], 0
    broken = {0, 1, 2}
    for turn in range(400):
        worker = turn % 8
        piece = dispatcher.assign(worker)
        if piece is None:
            continue
        if worker in broken:
            handed_back = dispatcher.fail(piece, "RuntimeError: CUDA error: device-side assert triggered", worker=worker)
            if handed_back:
                failed.append(handed_back[0])
        else:
            done += dispatcher.succeed(piece, work(piece)) is not None
        broken -= set(dispatcher.health.take_broken())
    assert (done, failed) == (40, [])
