"""Ray processes that a killed driver of ours left behind: found by a record of its session, and ended at the next start.

`kill -9` takes the driver, its raylet and its GCS at once. Ray's agents and workers notice only when they next ask for their
raylet, up to a minute later, and hold ports and GPU memory until then. A record is a file in Ray's temporary folder that its
driver holds locked for as long as it lives, so that no recycled process number can be mistaken for it; nothing but processes of
this user and of the very session that a dead driver's record names is touched, never another's Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from ray._common.utils import get_default_ray_temp_dir

_log = logging.getLogger(__name__)
_RECORDS = "dato_driver_*.json"
GRACE_S = 3.0
"""Seconds that what was left may take to end by itself."""
_NAMED_S = 60.0
"""Seconds after its record within which a driver's Ray has named its session."""


@dataclass(kw_only=True)
class Noted:
    """The session that a driver starts."""

    session: str | None = None
    """Its folder, once there is one."""


_held: dict[str, int] = {}
"""File descriptors of this process's record, locked until it ends."""


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """Record that this process is about to start a Ray of its own; the block sets its session. A folder that takes no record is no hindrance."""
    path = Path(get_default_ray_temp_dir()) / _RECORDS.replace("*", f"{os.getpid()}_{time.time_ns()}")
    made = _write(path)
    about = Noted()
    try:
        yield about
    finally:
        if made and about.session:
            with contextlib.suppress(OSError):
                os.pwrite(_held[str(path)], _content(about.session), 0)


def _content(session: str | None) -> bytes:
    found = {"pid": os.getpid(), "noted": time.time(), "session": Path(session).name if session else None}
    return json.dumps(found).encode().ljust(200) + b"\n"


def _write(path: Path) -> bool:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, _content(None))
        part.rename(path)  # only now: a record without its lock would look like a dead driver's
    except OSError:
        os.close(fd)
        part.unlink(missing_ok=True)
        return False
    for earlier in list(_held):  # of a Ray that this process has shut down since
        os.close(_held.pop(earlier))
        Path(earlier).unlink(missing_ok=True)
    _held[str(path)] = fd
    return True


def end_left_behind() -> list[int]:
    """End what dead drivers left, and forget their records; the process numbers of what was ended."""
    ended: list[int] = []
    for path in sorted(Path(get_default_ray_temp_dir()).glob(_RECORDS)):
        with _of_dead(path) as record:
            if record is not None:
                for session in _sessions(path.parent, record):
                    ended += _end(session)
                path.unlink(missing_ok=True)
    return ended


@contextlib.contextmanager
def _of_dead(path: Path) -> Iterator[dict[str, Any] | None]:
    """A record whose driver has ended, locked; None where it lives, or the file is not one of this user's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        about = os.fstat(fd)
        if about.st_uid != os.getuid() or not stat.S_ISREG(about.st_mode):
            yield None
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = json.loads(os.pread(fd, 4096, 0))
        except (OSError, ValueError, RecursionError):
            record = None
        yield record if isinstance(record, dict) and isinstance(record.get("pid"), int) else None
    finally:
        os.close(fd)


def _sessions(folder: Path, record: dict[str, Any]) -> list[str]:
    """Names of the sessions that a driver started: the recorded one, or, where it was killed before it knew, those of that time that bear its number."""
    session = record.get("session")
    if isinstance(session, str) and session.startswith("session_") and "/" not in session:
        return [session]
    noted_at = record.get("noted")
    if not isinstance(noted_at, float):
        return []
    found = [p for p in folder.glob(f"session_*_{record['pid']}") if p.is_dir() and not p.is_symlink() and p.stat().st_uid == os.getuid()]
    # The number may have been another's before, and be another's by now.
    return [p.name for p in found if (named := _named_at(p.name)) is not None and noted_at <= named <= noted_at + _NAMED_S]


def _named_at(session: str) -> float | None:
    """When a session got its name, in seconds; Ray writes the local time (ray/_private/node.py)."""
    try:
        return datetime.strptime(session.removeprefix("session_").rpartition("_")[0], "%Y-%m-%d_%H-%M-%S_%f").timestamp()
    except ValueError:
        return None


def _end(session: str) -> list[int]:
    left = [p for p in psutil.process_iter() if p.pid != os.getpid() and _belongs(p, session)]
    said = [f"{p.pid} {name}" for p in left if (name := _name(p))]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, still = psutil.wait_procs(left, timeout=GRACE_S)
    for process in still:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(still, timeout=GRACE_S)
    if left:
        _log.warning("ended %d Ray processes that a killed search had left behind: %s", len(left), ", ".join(said))
    return [p.pid for p in left]


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return "gone"


def _belongs(process: psutil.Process, session: str) -> bool:
    """Whether a process is this user's, Ray's own and of a session: its command line names the session's folder, or its log is open there."""
    try:
        if process.uids().real != os.getuid():
            return False
        command = process.cmdline()
        # Workers and agents exchange their command line for a title; their output goes into the session's folder all the same.
        if command and command[0].startswith("ray::"):
            return any(session in Path(f.path).parts for f in process.open_files())
        named = any(session in _parts(word) for word in command)
        return named and any("ray" in _parts(word) and session not in _parts(word) for word in command[:3])  # not who reads its logs
    except (psutil.Error, OSError):
        return False


def _parts(word: str) -> list[str]:
    return word.replace("=", "/").split("/")
