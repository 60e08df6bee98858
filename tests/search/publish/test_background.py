"""Work beside the search: a real thread, and its circuit breaker on values."""

from __future__ import annotations

import threading
import time

from search.publish.background import Background, Breaker

NEVER_S = 1e6
"""A pause that no test outlives: what is tried within it is tried because somebody waits."""


def raises(_: Exception) -> None:
    """What is told of errors, and does nothing with them."""


def test_the_breaker_pauses_longer_each_time_up_to_a_limit_and_closes_again() -> None:
    breaker = Breaker(first_s=5, longest_s=30)
    assert not breaker.open
    due = []
    for now in (100.0, 200.0, 300.0, 400.0, 500.0):
        breaker.failed(now)
        due.append(breaker.until - now)
    assert due == [5, 10, 20, 30, 30]
    assert breaker.open
    breaker.succeeded()
    assert (breaker.open, breaker.until) == (False, 0)
    breaker.failed(600.0)
    assert breaker.until == 605, "after a success it begins with the short pause"


def test_everything_is_done_once_and_in_order_though_every_other_try_fails_half_way() -> None:
    source: list[int] = []
    done: list[int] = []
    errors: list[Exception] = []
    tries = 0

    def work() -> None:
        nonlocal tries
        tries += 1
        for value in source[len(done) :]:
            if tries % 2 and value % 10 == 5:
                raise ConnectionError(f"lost at {value}")
            done.append(value)

    background = Background(work, errors.append, every_s=0, breaker=Breaker(first_s=0.001, longest_s=0.001))
    for value in range(200):
        source.append(value)
        background.wake()
    while not background.wait(60):
        assert len(errors) < 400
    assert done == list(range(200))
    assert errors
    assert all(isinstance(e, ConnectionError) for e in errors)
    background.close()


def test_what_comes_while_nothing_gets_done_is_done_in_one_go() -> None:
    entered, go_on = threading.Event(), threading.Event()
    calls = []

    def work() -> None:
        calls.append(threading.current_thread())
        entered.set()
        assert go_on.wait(60)

    background = Background(work, raises)
    background.wake()
    assert entered.wait(60)
    for _ in range(10_000):
        background.wake()  # would never return if it waited for the work
    assert len(calls) == 1
    assert not background.wait(0.05), "the limit ends the wait, whatever the work does"
    go_on.set()
    assert background.wait(60)
    assert len(calls) == 2
    assert calls[0] is calls[1] is not threading.current_thread()
    background.close()


def test_after_a_failure_nothing_is_tried_until_somebody_waits() -> None:
    failed = threading.Event()
    away = True
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        if away:
            raise ConnectionError("away")

    breaker = Breaker(first_s=NEVER_S, longest_s=NEVER_S)
    background = Background(work, lambda error: failed.set(), every_s=0, breaker=breaker)
    background.wake()
    assert failed.wait(60)
    for _ in range(100):
        background.wake()
        time.sleep(0.001)
    assert calls == 1
    assert breaker.open
    assert not background.wait(NEVER_S), "a try that fails ends the wait long before its limit"
    assert calls == 2
    away = False
    assert background.wait(NEVER_S)
    assert (calls, breaker.open) == (3, False)
    background.close()


def test_the_failure_of_a_try_that_began_earlier_does_not_end_the_wait() -> None:
    entered, go_on = threading.Event(), threading.Event()
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            entered.set()
            assert go_on.wait(60)
            raise ConnectionError("away, then")

    background = Background(work, raises, breaker=Breaker(first_s=NEVER_S, longest_s=NEVER_S))
    background.wake()
    assert entered.wait(60)
    threading.Timer(0.2, go_on.set).start()
    assert background.wait(60)
    assert calls == 2
    background.close()


def test_closing_ends_the_thread_and_what_is_left_can_be_tried_again() -> None:
    away = True
    done = []

    def work() -> None:
        if away:
            raise ConnectionError("away")
        done.append(True)

    background = Background(work, raises, breaker=Breaker(first_s=NEVER_S, longest_s=NEVER_S))
    before = set(threading.enumerate())
    background.wake()
    assert not background.wait(60)
    (thread,) = set(threading.enumerate()) - before
    background.close()
    ended(thread)
    assert not done
    away = False
    assert background.wait(60), "what is left is tried again, by a new thread"
    assert done == [True]
    (thread,) = set(threading.enumerate()) - before
    background.close()
    ended(thread)


def ended(thread: threading.Thread) -> None:
    thread.join(60)
    assert not thread.is_alive()


def test_a_search_that_ends_without_a_word_to_it_is_not_held_up() -> None:
    background = Background(lambda: None, raises)
    assert background.wait(60), "nothing to do is done"
    background.close()
    background.wake()
    assert background.wait(60)
    background.close()
