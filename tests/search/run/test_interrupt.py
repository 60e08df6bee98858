"""Ctrl-C, SIGTERM and the loss of the terminal: real signals, and real processes that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from search.ledger import read_ledger
from search.run import interrupt
from search.run.jobs import Job
from search.run.pools import InProcessPool

ROOT = Path(__file__).parents[3]
NAMES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
"""Exit codes that a shell expects."""


@pytest.fixture(autouse=True)
def default_handlers() -> Any:
    """What this process was told to ignore (a shell's background jobs ignore SIGINT) is heard within these tests."""
    before = {s: signal.signal(s, signal.SIG_DFL) for s in interrupt.SIGNALS}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


class _Swallows:
    """What Python does with an exception in a destructor: it prints it and goes on."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_a_keyboard_interrupt_with_its_exit_code(name: str) -> None:
    with interrupt.heard():
        interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.Signals[name])
        assert interrupt.exit_code() == NAMES[name]
    assert {signal.getsignal(s) for s in interrupt.SIGNALS} == {signal.SIG_DFL}
    interrupt.check()  # it is over with the command that it was for


@pytest.mark.parametrize("name", NAMES)
def test_one_that_is_swallowed_is_seen_by_check(name: str) -> None:
    with interrupt.heard():
        swallows = _Swallows(signal.Signals[name])
        del swallows
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupt.check()
        assert interrupt.exit_code() == NAMES[name]


def test_a_pool_takes_no_further_job_after_one_that_was_swallowed() -> None:
    done = []

    class Factory:
        def build(self) -> Factory:
            return self

        def run(self, strategies: Sequence[Any], batches: Sequence[Sequence[int]]) -> int:
            if len(done) == 2:
                swallows = _Swallows(signal.SIGTERM)
                del swallows
            done.append(batches)
            return len(batches)

    with interrupt.heard(), pytest.raises(KeyboardInterrupt):
        list(InProcessPool(Factory()).map(Job(str(i), [], [[i]]) for i in range(100)))
    assert len(done) == 3


def test_the_same_wish_is_heard_once_and_a_later_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupt.heard():
        monkeypatch.setattr(interrupt, "AGAIN_S", 1e6)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # `timeout` signals the process and then its whole group: the clean stop goes on
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(interrupt, "AGAIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.exit_code() == 143, "of the first"


def test_what_was_to_be_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with interrupt.heard():
        signal.raise_signal(signal.SIGHUP)
        interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_a_library_sets_is_put_back() -> None:
    with interrupt.heard():
        with interrupt.kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_another_thread_leaves_the_handlers_alone() -> None:
    seen = []

    def within() -> None:
        with interrupt.heard(), interrupt.kept():
            seen.append({signal.getsignal(s) for s in interrupt.SIGNALS})
        interrupt.let_die()

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [{signal.SIG_DFL}]


IMPORTING = """
import os, signal, sys

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.Signals[number])

_, number, module = sys.argv
sys.meta_path.insert(0, Presses())
from launch.__main__ import main
sys.argv = ["dato", "search"]
sys.exit(main())
"""


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@pytest.mark.parametrize(("name", "module"), [("SIGINT", "ray"), ("SIGHUP", "numpy"), ("SIGINT", "torch"), ("SIGTERM", "hydra")])
def test_a_signal_during_the_imports_ends_the_command_quietly(name: str, module: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING, name, module], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == NAMES[name], done.stderr
    assert done.stderr.splitlines() == ["stopped; the same command continues"]
    assert not done.stdout
    assert not list(tmp_path.iterdir()), "the search had not begun"


SEARCH = ["search", "protocol.images=4", "protocol.batch=2", "protocol.interval_groups=2", "model.steps=4", "search.population=4", "search.generations=1", "search.min_speedup=null", "search.latency=measured", "search.tolerance=1000", "search.winner_speedups=[]", "cluster.workers=1", "mlflow.enabled=false"]  # fmt: skip


@pytest.mark.slow
def test_sigterm_ends_a_search_cleanly_and_the_same_command_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", *SEARCH]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 200
    while not results(tmp_path) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    assert "The same command continues" in out
    assert not err, "neither Python's traceback nor Ray's dump of the C++ stack"
    (path,) = tmp_path.glob("outputs/*/ledger.jsonl")
    stopped = read_ledger(path)
    assert not stopped.finished
    assert stopped.results
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing:" in done.stdout
    record = read_ledger(path)
    assert record.finished
    assert len(record.results) == 4
    assert {n: record.results[n].to_dict() for n in stopped.results} == {n: m.to_dict() for n, m in stopped.results.items()}


def results(folder: Path) -> list[str]:
    return [line for path in folder.glob("outputs/*/ledger.jsonl") for line in path.read_text().splitlines() if '"event":"result"' in line]
