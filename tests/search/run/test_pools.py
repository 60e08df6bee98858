"""Real Ray actors that fail, hang and die."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dato.strategy import Strategy
from search.run.jobs import Job
from search.run.pools import InProcessPool
from search.run.ray_pool import RayPool, WorkerError


class Moody:
    """What a job does is in its first batch: return, raise, hang or die; "once" only in the first try."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def build(self) -> Moody:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> int:
        mood, name = batches[0]
        marker = self.folder / name
        first = not marker.exists()
        with marker.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if mood == "raise" or (mood == "raise once" and first):
            raise ValueError(f"{name} is unwell")
        if mood == "hang once" and first:
            time.sleep(600)
        if mood == "die" or (mood == "die once" and first):
            os._exit(1)
        return len(strategies)


class Uneven:
    """One worker's device is fast, the others' are slow; the first run on the fast one fails."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def build(self) -> Uneven:
        try:
            (self.folder / "built").touch(exist_ok=False)
            self.device = "fast"
        except FileExistsError:
            self.device = "slow"
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> str:
        if self.device == "fast" and not (self.folder / "failed").exists():
            (self.folder / "failed").touch()
            raise ValueError("a bad day")
        return self.device


class Unbuildable:
    def build(self) -> Moody:
        raise OSError("no such model here")


class DiesLoading:
    """Its process dies while it loads, the first `times` times."""

    def __init__(self, folder: str, times: int) -> None:
        self.folder, self.times = Path(folder), times

    def build(self) -> DiesLoading:
        (self.folder / str(os.getpid())).touch()
        if len(list(self.folder.iterdir())) <= self.times:
            os._exit(1)
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> str:
        return "well"


class Sick:
    """The first `poisoned` processes fail every call with one error, at once; those that come later are well and take their time."""

    def __init__(self, folder: str, poisoned: int, error: str, pause: float = 0.2) -> None:
        self.folder, self.poisoned, self.error, self.pause = Path(folder), poisoned, error, pause

    def build(self) -> Sick:
        for place in range(100):
            try:
                (self.folder / f"process-{place}").touch(exist_ok=False)
            except FileExistsError:
                continue
            self.ill = place < self.poisoned
            return self
        raise RuntimeError("too many processes")

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> int:
        with (self.folder / "calls").open("a") as file:
            file.write(f"{os.getpid()} {'ill' if self.ill else 'well'}\n")
        if self.ill:
            raise RuntimeError(self.error)
        time.sleep(self.pause)
        if batches[0][0] == "raise":
            raise ValueError(f"{batches[0][1]} is unwell")
        return len(strategies)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayPool, Path]]:
    folder = tmp_path_factory.mktemp("moods")
    pool = RayPool(Moody(str(folder)), workers=2, max_attempts=3, batch_timeout_s=8, load_timeout_s=120)
    yield pool, folder
    pool.close()


def job(mood: str, name: str) -> Job:
    return Job(name, [Strategy.full(2)], [(mood, name)])


def test_every_job_comes_back_once(shared: tuple[RayPool, Path]) -> None:
    pool, _ = shared
    done = dict((j.key, result) for j, result in pool.map([job("well", f"w{i}") for i in range(7)]))
    assert done == {f"w{i}": 1 for i in range(7)}


@pytest.mark.parametrize("mood", ["raise once", "die once", "hang once"])
def test_a_failed_try_is_repeated_elsewhere(shared: tuple[RayPool, Path], mood: str) -> None:
    pool, folder = shared
    name = mood.replace(" ", "-")
    results = {j.key: (j, r) for j, r in pool.map([job(mood, name), job("well", name + "-neighbour")])}
    failed, result = results[name]
    assert result == 1
    assert failed.tries == 2
    assert len(failed.errors) == 1
    assert len(set((folder / name).read_text().split())) == 2
    assert results[name + "-neighbour"][1] == 1


@pytest.mark.parametrize(("mood", "message"), [("raise", "ValueError: hopeless-raise is unwell"), ("die", "the worker died")])
def test_a_hopeless_job_is_handed_back_with_its_errors(shared: tuple[RayPool, Path], mood: str, message: str) -> None:
    pool, _ = shared
    results = {j.key: (j, r) for j, r in pool.map([job(mood, f"hopeless-{mood}"), job("well", f"beside-{mood}")])}
    hopeless, result = results[f"hopeless-{mood}"]
    assert result is None
    assert hopeless.tries == 3
    assert message in hopeless.errors[0]
    assert hopeless.reason.startswith("quarantined, it killed 3 workers: the worker died" if mood == "die" else message)
    assert results[f"beside-{mood}"][1] == 1


@pytest.mark.slow
def test_what_failed_on_the_only_device_that_counts_is_tried_there_again(tmp_path: Path) -> None:
    pool = RayPool(Uneven(str(tmp_path)), workers=2, cpus=0, latency_device="fast", load_timeout_s=120)
    try:
        ((done, result),) = pool.map([job("well", "timed")])
    finally:
        pool.close()
    assert result == "fast"
    assert done.errors == ["ValueError: a bad day"]


@pytest.mark.slow
def test_a_worker_that_dies_while_loading_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    pool = RayPool(DiesLoading(str(tmp_path / "twice"), 2), workers=1, cpus=0, load_timeout_s=120)
    try:
        assert [result for _, result in pool.map([job("well", "a")])] == ["well"]
    finally:
        pool.close()
    (tmp_path / "always").mkdir()
    with pytest.raises(WorkerError, match=r"a worker died 3 times while it was loading its model: .*Died"):
        RayPool(DiesLoading(str(tmp_path / "always"), 99), workers=1, cpus=0, load_timeout_s=120)


def test_no_workers_are_refused() -> None:
    with pytest.raises(WorkerError, match=r"cluster.workers is 0; give at least 1"):
        RayPool(Moody("."), workers=0)


def test_in_process_errors_are_handed_back(tmp_path: Path) -> None:
    pool = InProcessPool(Moody(str(tmp_path)))
    (failed, nothing), (_, one) = pool.map([job("raise", "a"), job("well", "b")])
    assert nothing is None
    assert failed.errors == ["ValueError: a is unwell"]
    assert one == 1


@pytest.mark.slow
@pytest.mark.parametrize("error", ["CUDA error: device-side assert triggered", "a cable is loose"])
def test_broken_workers_are_exchanged_and_take_no_candidate_along(tmp_path: Path, error: str) -> None:
    pool = RayPool(Sick(str(tmp_path), 2, error), workers=4, cpus=0, load_timeout_s=120)
    bad = job("raise", "bad")

    def calls() -> list[list[str]]:
        path = tmp_path / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def jobs() -> Iterator[Job]:
        yield from [job("well", f"w{i}") for i in range(12)]
        yield bad
        more, until = itertools.count(), time.monotonic() + 100
        while len({pid for pid, state in calls() if state == "well"}) < 3 and time.monotonic() < until:  # those that replace the ill have work too
            yield job("well", f"x{next(more)}")

    try:
        results = {j.key: (j, r) for j, r in pool.map(jobs())}
    finally:
        pool.close()
    assert {key for key, (_, r) in results.items() if r is None} == {"bad"}
    assert bad.reason == f"ValueError: bad is unwell ({bad.where})"
    node, log = bad.where.split(", log ")
    assert node.startswith("node ") and node.endswith(" at 127.0.0.1")
    assert 'raise ValueError(f"{batches[0][1]} is unwell")' in Path(log).read_text(), "the log that the message names has the traceback"
    assert len(bad.blamed) == 3
    ill = [pid for pid, state in calls() if state == "ill"]
    assert len(set(ill)) == 2
    assert all(ill.count(pid) <= (1 if "CUDA" in error else 2) for pid in ill), "its candidates go elsewhere"
    assert len({pid for pid, state in calls() if state == "well"}) >= 3


@pytest.mark.slow
def test_when_every_worker_fails_everything_it_is_said_and_no_candidate_is_blamed(tmp_path: Path) -> None:
    pool = RayPool(Sick(str(tmp_path), 99, "the disk is gone"), workers=2, cpus=0, load_timeout_s=120, max_attempts=2)
    pool.known_good(job("well", "plain"))
    blamed = [job("well", f"w{i}") for i in range(6)]
    try:
        with pytest.raises(WorkerError, match=r"every worker fails with everything, also with what worked before .*the disk is gone.* the ledger holds every result"):
            list(pool.map(blamed))
    finally:
        pool.close()
    assert not any(j.blamed for j in blamed)
