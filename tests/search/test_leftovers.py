"""What a killed driver left is ended at the next start, and nothing else is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._common.utils import get_default_ray_temp_dir

from search.leftovers import end_left_behind, noted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    found = Path(get_default_ray_temp_dir())
    assert found.is_relative_to(tmp_path)
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """A process whose command line names a session."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "--session=/x/session_a/logs"])
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()


def write(folder: Path, record: object, name: str = "dato_driver_1_1.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(record))
    return path


def test_processes_of_a_dead_drivers_session_are_ended(folder: Path, bystander: psutil.Process) -> None:
    path = write(folder, {"pid": 999999, "started": 0.0, "session": "session_a"})
    assert end_left_behind() == [bystander.pid]
    assert not bystander.is_running() or bystander.status() == psutil.STATUS_ZOMBIE
    assert not path.exists()
    assert end_left_behind() == []


@pytest.mark.parametrize("record", [{"pid": 999999, "session": "session_b"}, {"pid": 999999, "session": "../session_a"}, {"pid": "x", "session": "session_a"}, [1], "no"])
def test_other_sessions_and_what_is_no_record_touch_nothing(folder: Path, bystander: psutil.Process, record: object) -> None:
    write(folder, record)
    assert end_left_behind() == []
    assert bystander.status() != psutil.STATUS_ZOMBIE


def test_a_living_drivers_session_is_left_alone(folder: Path, bystander: psutil.Process) -> None:
    with noted() as about:
        about.session = str(folder / "session_a")
    (record,) = folder.glob("dato_driver_*.json")
    assert json.loads(record.read_text())["session"] == "session_a"
    # In another process: a lock of one's own is no hindrance.
    code = "from search.leftovers import end_left_behind; print(end_left_behind())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert record.exists()
    assert bystander.status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_after_kill_9_the_next_start_ends_what_is_left(tmp_path: Path) -> None:
    code = "import time; from search.cluster import connect; connect(None); print('up', flush=True); time.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None and driver.stdout.readline().strip() == "up"
    (record,) = [p for p in Path(get_default_ray_temp_dir()).glob(f"dato_driver_{driver.pid}_*.json")]
    session = json.loads(record.read_text())["session"]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(0.2)  # raylet and GCS end with their driver
    end_left_behind()
    left = [p for p in psutil.process_iter(["cmdline"]) if any(session in word for word in p.info["cmdline"] or ()) and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert not record.exists()
