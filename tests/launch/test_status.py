"""``dato status`` beside a search that runs in another process."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("stop", "state"), [("empty", "not running on this machine"), ("running", "not running on this machine"), ("finished", "finished")])
def test_every_state_of_a_search(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: str, state: str) -> None:
    folder = make_search(tmp_path / "toy", stop)
    before = (folder / "ledger.jsonl").read_bytes()
    assert main(["status", f"folder={folder}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"search embedded-digits-0000000000: {state}")
    assert {"empty": "candidates 0/24", "running": "candidates 16/24, generation 2/3, failures 1", "finished": "candidates 24/24, generation 3/3"}[stop] in out
    assert (folder / "ledger.jsonl").read_bytes() == before


def test_a_running_search_is_seen_from_another_shell_and_not_disturbed(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy", "running")
    with (folder / "ledger.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write('{"event":"result","num')  # a line that the driver has not finished writing
        held.flush()
        done = subprocess.run([sys.executable, "-m", "launch", "status", f"folder={folder}"], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert ": running\n" in done.stdout
    assert " left\n" in done.stdout
    assert "workers" in done.stdout and "busy" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [([], "needs folder=..."), (["folder=/nowhere"], "holds no ledger.jsonl"), (["folder={toy}", "every=often"], "every is 'often'")])
def test_bad_input(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    toy = make_search(tmp_path / "toy", "empty")
    assert main(["status", *(a.format(toy=toy) for a in arguments)]) == 2
    assert message in capsys.readouterr().err
