"""SIGTERM is Ctrl-C, at any moment of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search import interrupt
from search.ledger import read_ledger

ROOT = Path(__file__).parents[2]
SHORT = ["protocol.images=6", "protocol.batch=3", "model.steps=5", "search.population=4", "search.generations=50", "search.min_speedup=null", "mlflow.enabled=false"]
NOISE = ("*** SIG", "stack trace", "Stack trace", "Traceback")


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    def hears_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is told to ignore it

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_remembered_though_its_exception_is_swallowed(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with interrupt.heard():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
            pytest.fail("the signal was not heard")
        except KeyboardInterrupt:
            pass
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        assert interrupt.exit_code() == code
    interrupt.check()  # the next command begins without it
    assert signal.getsignal(number) is before


def test_handlers_that_a_library_exchanges_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("after_s", [0.6, 1.5])
def test_while_modules_are_imported(tmp_path: Path, number: signal.Signals, code: int, after_s: float) -> None:
    process = begin(tmp_path, "search", *SHORT)
    time.sleep(after_s)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    # Before Python itself has set up a handler, the system's own ending is all there is.
    assert process.returncode in (code, -number), said
    assert not any(word in said for word in NOISE), said


@pytest.mark.slow
def test_sigterm_ends_a_search_cleanly_and_the_same_command_continues(tmp_path: Path) -> None:
    process = begin(tmp_path, "search", *SHORT, "search.max_candidates=8")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("candidate 2/"):
            break
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 143, out + said
    assert "The same command continues" in out
    assert not any(word in said + out for word in NOISE), said
    (ledger,) = tmp_path.glob("outputs/*/ledger.jsonl")
    before = {n: m.to_dict() for n, m in read_ledger(ledger).results.items()}
    assert before
    again = begin(tmp_path, "search", *SHORT, "search.max_candidates=8")
    out, said = again.communicate(timeout=400)
    assert again.returncode == 0, out + said
    record = read_ledger(ledger)
    assert record.finished
    assert {n: record.results[n].to_dict() for n in before} == before
