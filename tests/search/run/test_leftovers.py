"""What a killed driver leaves of Ray: real drivers and real Rays, ended and not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from search.run.leftovers import end_left_behind, noted

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's temporary folder, this test's own: the path of a socket in it must be short."""
    made = tempfile.mkdtemp(prefix="r", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", made)
    (Path(made) / "ray").mkdir()
    yield Path(made) / "ray"
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes that are ended with the test, with their families."""
    made: list[psutil.Process] = []
    yield made
    for process in made:
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=10)


def agent(started: list[psutil.Process], folder: Path, session: str, *command: str) -> psutil.Process:
    """A process that looks as one of Ray's own: a script in a folder `ray`, with the session's folder among its arguments."""
    script = folder.parent / "site-packages" / "ray" / "dashboard" / "agent.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import time; time.sleep(300)")
    process = psutil.Popen([*(command or (sys.executable, str(script))), f"--session-dir={folder / session}"])
    started.append(process)
    return process


def record(folder: Path, pid: int, session: str | None, noted_at: float | None = None) -> Path:
    """What a driver that is gone has left: as `noted` writes it, and no lock."""
    path = folder / f"dato_driver_{pid}_1.json"
    path.write_text(json.dumps({"pid": pid, "noted": time.time() if noted_at is None else noted_at, "session": session}))
    return path


def session_of(pid: int, at: float | None = None, folder: Path | None = None) -> str:
    """The name that Ray gives a session, and its folder where it is to be there."""
    name = f"session_{datetime.fromtimestamp(time.time() if at is None else at):%Y-%m-%d_%H-%M-%S_%f}_{pid}"
    if folder:
        (folder / name / "logs").mkdir(parents=True)
    return name


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_dead_driver_left_is_ended_and_forgotten(folder: Path, started: list[psutil.Process]) -> None:
    pid = gone()
    session, other = session_of(pid), session_of(pid + 1)
    left, foreign = agent(started, folder, session), agent(started, folder, other)
    path = record(folder, pid, session)
    assert end_left_behind() == [left.pid]
    assert not path.exists()
    assert not left.is_running()
    assert foreign.is_running()
    assert end_left_behind() == []


def test_who_reads_its_logs_is_left_alone(folder: Path, started: list[psutil.Process]) -> None:
    pid = gone()
    session = session_of(pid, folder=folder)
    log = folder / session / "logs" / "raylet.out"
    log.touch()
    reader = psutil.Popen(["tail", "-f", str(log)])
    started.append(reader)
    script = psutil.Popen([sys.executable, "-c", "import time; time.sleep(300)", str(log)])
    started.append(script)
    record(folder, pid, session)
    assert end_left_behind() == []
    assert reader.is_running()
    assert script.is_running()


def test_the_record_of_a_driver_that_lives_is_left_alone(folder: Path, started: list[psutil.Process]) -> None:
    session = session_of(os.getpid())
    with noted() as about:
        about.session = session
    (path,) = folder.glob("dato_driver_*.json")
    assert json.loads(path.read_text())["session"] == session
    own = agent(started, folder, session)
    before = path.read_bytes()
    code = "from search.run.leftovers import end_left_behind; print(end_left_behind())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert path.read_bytes() == before
    assert own.is_running()
    with noted():  # another Ray of this process: the first has been shut down
        pass
    (path,) = folder.glob("dato_driver_*.json")
    assert json.loads(path.read_text())["session"] is None


def test_a_process_that_has_the_number_of_a_dead_driver_is_left_alone(folder: Path, started: list[psutil.Process]) -> None:
    # The driver was killed before it knew its session; the number went to another process, which has a Ray of its own.
    another = psutil.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    started.append(another)
    now = time.time()
    theirs = session_of(another.pid, at=now, folder=folder)
    its_agent = agent(started, folder, theirs)
    path = record(folder, another.pid, None, noted_at=now - 3600)
    assert end_left_behind() == []
    assert not path.exists()
    assert another.is_running()
    assert its_agent.is_running()


def test_a_driver_that_was_killed_before_it_knew_its_session(folder: Path, started: list[psutil.Process]) -> None:
    pid, now = gone(), time.time()
    earlier, its, later = (session_of(pid, at=now + seconds, folder=folder) for seconds in (-7200, 1, 7200))
    left = agent(started, folder, its)
    others = [agent(started, folder, earlier), agent(started, folder, later)]
    record(folder, pid, None, noted_at=now)
    assert end_left_behind() == [left.pid]
    assert all(o.is_running() for o in others), "of processes that had the number before and after it"


@pytest.mark.parametrize("content", ["", "[]", '"text"', "{}", '{"pid": "1", "session": "session_x"}', "\0" * 10, "[" * 5000, '{"pid": 1, "noted": "x", "session": null}', '{"pid": 1, "noted": NaN, "session": 3}'])  # fmt: skip
def test_a_record_that_is_none_harms_nobody(folder: Path, started: list[psutil.Process], content: str) -> None:
    own = agent(started, folder, session_of(1, folder=folder))
    (folder / "dato_driver_1_1.json").write_text(content)
    assert end_left_behind() == []
    assert own.is_running()


@pytest.mark.parametrize("session", ["ray", "..", "session_x/../..", "logs", ""])
def test_a_record_that_names_no_session_ends_nothing(folder: Path, started: list[psutil.Process], session: str) -> None:
    own = agent(started, folder, session_of(1))
    record(folder, gone(), session)
    assert end_left_behind() == []
    assert own.is_running()


def test_a_link_is_no_record(folder: Path, started: list[psutil.Process]) -> None:
    session = session_of(1)
    own = agent(started, folder, session)
    path = record(folder, gone(), session)
    elsewhere = path.rename(folder / "elsewhere")
    path.symlink_to(elsewhere)
    assert end_left_behind() == []
    assert own.is_running()
    assert elsewhere.exists()


def test_a_record_that_another_start_is_reading_is_left_to_it(folder: Path, started: list[psutil.Process]) -> None:
    session = session_of(1)
    own = agent(started, folder, session)
    path = record(folder, gone(), session)
    with path.open("r+b") as reading:
        fcntl.flock(reading, fcntl.LOCK_EX)
        assert end_left_behind() == []
        assert own.is_running()
        assert path.exists()


DRIVER = """
import sys
import ray
from search.run.ray_cluster import connect

if sys.argv[1] == "ours":
    connect(None)
else:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 * 2**20)

@ray.remote(num_cpus=0)
def answer():
    return "answers"

ray.get(answer.remote())
print(ray._private.worker.global_worker.node.get_session_dir_path(), flush=True)
for line in sys.stdin:
    print(ray.get(answer.remote()), flush=True)
"""


def start(who: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, who], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def answers(process: subprocess.Popen[str]) -> bool:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process) == "answers"


def of_session(session: str) -> set[int]:
    """The processes that have a file open in a session's folder, or name it."""
    found = set()
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *(f.path for f in process.open_files())]
        except psutil.Error:
            continue
        if any(session in word for word in words):
            found.add(process.pid)
    return found


@pytest.mark.slow
def test_the_next_start_ends_what_a_killed_driver_left_and_nothing_else(folder: Path, started: list[psutil.Process]) -> None:
    killed, living, foreign = drivers = [start(who) for who in ("ours", "ours", "foreign")]
    started += [psutil.Process(d.pid) for d in drivers]
    session, *others = (Path(said(d)).name for d in drivers)
    started += psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    assert of_session(session), "Ray ends these by itself now: search.leftovers may be dropped"
    before = [of_session(other) for other in others]
    following = start("ours")
    started.append(psutil.Process(following.pid))
    said(following)
    assert not of_session(session)
    assert [of_session(other) for other in others] == before
    assert all(answers(d) for d in (living, foreign, following))
    for driver in (living, foreign, following):
        assert driver.stdin
        driver.stdin.close()
    assert [driver.wait(60) for driver in (living, foreign, following)] == [0, 0, 0]
    assert end_left_behind() == [], "who ends in good order leaves nothing"
