"""What ends a command from outside: Ctrl-C, SIGTERM and the loss of the terminal are one thing, and none of them is lost.

A signal raises `KeyboardInterrupt` in the main thread, as Ctrl-C always did. Libraries swallow such an exception now and then (in
callbacks, destructors and the middle of an import), so what waits for long asks `check` as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 1.0
"""Seconds in which the same wish is not heard twice: `timeout` and batch systems signal a process and then its whole group."""


@dataclass
class _State:
    number: int = 0
    """The signal that came; 0 for none."""
    at: float = 0.0
    message: str | None = None
    """While nothing is held that must be put away, what to say before the process ends on the spot."""


_state = _State()


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.message is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"{_state.message}\n".encode())
        os._exit(128 + number)
    now = time.monotonic()
    if _state.number and now < _state.at + AGAIN_S:
        return
    _state.number, _state.at = _state.number or number, now
    raise KeyboardInterrupt


def _usable() -> bool:
    return threading.current_thread() is threading.main_thread()  # no other may set handlers


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Hear the signals within; what the process was told to ignore (nohup, a shell's background job) stays ignored."""
    if not _usable():
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    _state.number, _state.message = 0, None
    for s, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(s, _handle)
    try:
        yield
    finally:
        _state.number, _state.message = 0, None
        for s, handler in before.items():
            if handler is not None:  # None: set from C, and not ours to know
                signal.signal(s, handler)


@contextlib.contextmanager
def at_once(message: str) -> Iterator[None]:
    """Within, a signal ends the process on the spot with a message: nothing is open yet, and an import would lose an exception."""
    _state.message = message
    try:
        yield
    finally:
        _state.message = None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put back the handlers that a library within exchanges: Ray's own dump the C++ stack on SIGTERM."""
    if not _usable():
        yield
        return
    before: dict[signal.Signals, Any] = {s: signal.getsignal(s) for s in SIGNALS}
    try:
        yield
    finally:
        for s, handler in before.items():
            if handler is not None:
                signal.signal(s, handler)


def check() -> None:
    """Raise `KeyboardInterrupt` where a signal came whose exception was swallowed."""
    if _state.number:
        raise KeyboardInterrupt


def exit_code() -> int:
    """What a shell expects of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_state.number or signal.SIGINT)


def let_die() -> None:
    """The command is over: a signal in the interpreter's last moments ends it without showing its insides."""
    for s in SIGNALS if _usable() else ():
        if signal.getsignal(s) is not signal.SIG_IGN:
            signal.signal(s, signal.SIG_DFL)
