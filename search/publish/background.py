"""Work beside the search that it never waits for: one thread, and a circuit breaker for when that work fails.

What is to be done is not queued but found anew each time, by comparing what is there with what should be: memory stays bounded
however long nothing gets done, the order is kept, and what came meanwhile is done in one go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 120.0
EVERY_S = 1.0
"""Seconds between two passes: what comes meanwhile is done together."""


class Breaker:
    """Keeps from trying again at once what has just failed. Pure: it is told the time, in seconds."""

    def __init__(self, first_s: float = FIRST_PAUSE_S, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._first, self._longest = first_s, longest_s
        self._pause = 0.0
        self.until = 0.0
        """When the next try is due."""

    @property
    def open(self) -> bool:
        """Whether the last try failed."""
        return self._pause > 0

    def failed(self, now: float) -> None:
        """A try failed: the next is due after a pause twice as long as the last."""
        self._pause = min(2 * self._pause, self._longest) or self._first
        self.until = now + self._pause

    def succeeded(self) -> None:
        """A try succeeded."""
        self._pause = self.until = 0.0


class Background:
    """Calls `work` in a thread of its own after each `wake`; where it raises, again after a pause.

    Args:
        work: Does all there is to do.
        failed: Told what it raised.
        every_s: Least seconds between two calls, except when somebody waits.
    """

    def __init__(self, work: Callable[[], None], failed: Callable[[Exception], None], *, every_s: float = EVERY_S, breaker: Breaker | None = None) -> None:
        self._work, self._failed, self._every, self._breaker = work, failed, every_s, breaker or Breaker()
        self._changed = threading.Condition()
        self._due = self._busy = self._closing = False
        self._failures = 0
        self._waiters: list[int] = []
        """Of each that waits, the failures after which it does so no longer, even before it wakes up."""
        self._last = -float("inf")
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something to do. Returns at once."""
        with self._changed:
            self._due = True
            self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._closing = False
            self._thread = threading.Thread(target=self._run, name="dato background", daemon=True)
            self._thread.start()

    def wait(self, limit_s: float) -> bool:
        """Try now, and wait until all is done, a try has failed, or so many seconds are over; whether all is done."""
        end = time.monotonic() + limit_s
        with self._changed:
            failures = self._failures + self._busy  # a try that began before does not count
            self._waiters.append(failures)
            if self._due:
                self._start()
            self._changed.notify_all()
            try:
                while (self._due or self._busy) and self._failures <= failures and (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
                return not self._due and not self._busy
            finally:
                self._waiters.remove(failures)

    def close(self) -> None:
        """End the thread when it has nothing to do, or fails again. Returns at once."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _pause(self) -> float:
        """Seconds until the next call is due: none where somebody waits."""
        if self._closing or any(self._failures <= last for last in self._waiters):
            return 0.0
        now = time.monotonic()
        return max(0.0, self._breaker.until - now, self._last + self._every - now)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or (seconds := self._pause()) > 0:
                    if self._closing and not self._due:
                        self._thread = None
                        return
                    self._changed.wait(seconds if self._due else None)
                self._due, self._busy, self._last = False, True, time.monotonic()
            error: Exception | None = None
            try:
                self._work()
            except Exception as raised:  # whatever it is, the search goes on
                error = raised
            if error is None:
                self._breaker.succeeded()
            else:
                self._breaker.failed(time.monotonic())
                self._failed(error)
            with self._changed:
                self._busy = False
                if error is not None:
                    self._due = True
                    self._failures += 1
                self._changed.notify_all()
                if error is not None and self._closing:
                    self._thread = None
                    return
