"""Work that nobody waits for: pauses after failures, and nothing is lost or left undone."""

from __future__ import annotations

import threading

import pytest

from search.background import Background, Breaker


def test_pauses_double_up_to_the_longest_and_end_with_a_success() -> None:
    breaker, now, pauses = Breaker(first_s=5, longest_s=30), 100.0, []
    for _ in range(5):
        breaker.failed(now)
        pauses.append(breaker.until - now)
    assert pauses == [5, 10, 20, 30, 30]
    assert breaker.open
    breaker.succeeded()
    assert not breaker.open and breaker.until == 0
    breaker.failed(now)
    assert breaker.until == now + 5


def test_all_that_was_woken_for_is_done_in_order() -> None:
    todo: list[int] = []
    done: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        with lock:
            done.extend(todo)
            todo.clear()

    background = Background(work, pytest.fail, every_s=0.0)
    for i in range(200):
        with lock:
            todo.append(i)
        background.wake()
    assert background.wait(30)
    background.close()
    assert done == list(range(200))


def test_waking_returns_while_work_hangs_and_waiting_has_a_limit() -> None:
    release = threading.Event()
    background = Background(lambda: (release.wait(60), None)[1], pytest.fail, every_s=0.0)
    background.wake()
    background.wake()
    assert not background.wait(0.05), "the work hangs, and nobody is held up by it"
    release.set()
    assert background.wait(30)
    background.close()


def test_what_failed_is_done_once_it_can_be() -> None:
    broken, said, done = threading.Event(), list[str](), threading.Event()
    broken.set()

    def work() -> None:
        if broken.is_set():
            raise RuntimeError("database is locked")
        done.set()

    background = Background(work, lambda error: said.append(str(error)), every_s=0.0, breaker=Breaker(first_s=3600))
    background.wake()
    assert not background.wait(30), "a failed try ends the waiting"
    assert said[0] == "database is locked"
    broken.clear()
    assert background.wait(30), "who waits does not wait for the pause of an hour"
    assert done.is_set()
    background.close()
