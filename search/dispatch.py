"""Which worker does what next: jobs cut into batches, affinity, work stealing, retries. Pure: no Ray, no clock.

A job stays with its worker while others have jobs of their own; a worker that would idle takes a batch of the job with the
most left. So 64 workers are busy with 20 candidates, and the end of a generation waits for one batch, not for a candidate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dato.strategy import Strategy

LOSSES = 20
"""How often a job may lose a worker to a vanished machine before it is given up: such losses are not its fault."""


@dataclass
class Job:
    """Strategies to run on batches of images.

    Attributes:
        key: The caller's name for it.
        strategies: What to run.
        batches: Image indices by batch.
        method: The evaluator's method: "run", or "samples" for pictures.
        tries: How often its unluckiest batch was started, machines that vanished not counted.
        errors: What each failed try said.
    """

    key: Any
    strategies: Sequence[Strategy]
    batches: Sequence[Any]
    method: str = "run"
    tries: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Piece:
    """Some batches of one job, for one worker.

    Attributes:
        job: Whose.
        batches: Positions in the job's batches.
        timed: Whether it must run where latency counts.
    """

    job: Job
    batches: Sequence[int]
    timed: bool = False
    failures: int = 0
    losses: int = 0


@dataclass(eq=False)
class _Open:
    """A job that is not done."""

    job: Job
    todo: deque[Piece]
    left: int
    worker: Hashable = None
    timed: int = 0
    """Batches that ran, or run, where latency counts."""
    results: dict[int, Any] = field(default_factory=dict)
    failed: bool = False


class Dispatcher:
    """Hands out pieces of jobs and puts their results together.

    Args:
        jobs: Taken one at a time, only when a worker has nothing else to do: a generator may decide late.
        join: Results of a job's batches, in their order, to the job's result; None runs every job in one piece.
        tries: How often a piece is started at most.
        mixed: Latency counts on some workers only: one batch of every job is kept for these.
        ahead: How many jobs may be open at most.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        join: Callable[[Sequence[Any]], Any] | None = None,
        tries: int = 3,
        mixed: bool = False,
        ahead: int = 1_000_000,
    ) -> None:
        self._jobs: Iterator[Job] = iter(jobs)
        self._join, self._tries, self._mixed, self._ahead = join, tries, mixed, ahead
        self._open: dict[int, _Open] = {}
        self._exhausted = False

    @property
    def open(self) -> int:
        """Jobs taken and not done."""
        return len(self._open)

    @property
    def done(self) -> bool:
        """Whether every job has been handed back. Only sure after a worker was refused a piece."""
        return self._exhausted and not self._open

    def assign(self, worker: Hashable, timed: bool = True) -> Piece | None:
        """The next piece for a free worker, or None when there is nothing for it now.

        Args:
            worker: Its name.
            timed: Whether latency counts there.
        """
        for taken in self._open.values():
            if taken.worker == worker and (piece := self._take(taken, worker, timed)):
                return piece
        unstarted = next((o for o in self._open.values() if o.worker is None and o.todo), None)
        if unstarted and (piece := self._take(unstarted, worker, timed)):
            return piece
        if self._mixed and timed:
            # Batches that only such a worker may run come before new jobs, or they would pile up.
            for waiting in self._open.values():
                if waiting.timed == 0 and len(waiting.todo) == 1 and (piece := self._take(waiting, worker, timed)):
                    return piece
        while not self._exhausted and len(self._open) < self._ahead:
            job = next(self._jobs, None)
            if job is None:
                self._exhausted = True
                break
            if piece := self._take(self._begin(job), worker, timed):
                return piece
        for taken in sorted(self._open.values(), key=lambda o: -len(o.todo)):
            if piece := self._take(taken, worker, timed):
                return piece
        return None

    def _begin(self, job: Job) -> _Open:
        whole = self._join is None or job.method != "run" or len(job.batches) < 2
        cuts: list[Sequence[int]] = [range(len(job.batches))] if whole else [[i] for i in range(len(job.batches))]
        opened = _Open(job, deque(Piece(job, cut) for cut in cuts), left=len(cuts))
        if self._mixed and job.method != "run":
            opened.timed = 1  # pictures may be drawn anywhere
        self._open[id(job)] = opened
        return opened

    def _take(self, taken: _Open, worker: Hashable, timed: bool) -> Piece | None:
        if not taken.todo:
            return None
        if self._mixed and not timed and taken.timed == 0 and len(taken.todo) == 1:
            return None  # the last batch is kept for a worker whose latency counts
        piece = taken.todo.popleft()
        piece.timed = self._mixed and timed
        taken.timed += piece.timed
        if taken.worker is None:
            taken.worker = worker
        piece.job.tries = max(piece.job.tries, piece.failures + 1)
        return piece

    def succeed(self, piece: Piece, result: Any) -> tuple[Job, Any] | None:
        """Note a piece's result; the job with its result when that was its last piece."""
        taken = self._open.get(id(piece.job))
        if taken is None:
            return None  # the job failed elsewhere
        taken.results[piece.batches[0] if piece.batches else 0] = result
        taken.left -= 1
        if taken.left:
            return None
        del self._open[id(piece.job)]
        ordered = [taken.results[i] for i in sorted(taken.results)]
        return piece.job, ordered[0] if len(ordered) == 1 or self._join is None else self._join(ordered)

    def fail(self, piece: Piece, error: str, *, lost: bool = False) -> tuple[Job, None] | None:
        """Note that a piece failed; the job with None when its tries are used up.

        Args:
            piece: Which.
            error: What it said.
            lost: Its machine vanished: not counted as a try, up to `LOSSES` times.
        """
        taken = self._open.get(id(piece.job))
        if taken is None:
            return None
        piece.job.errors.append(error)
        taken.timed -= piece.timed
        taken.worker = None
        piece.losses += lost
        piece.failures += not lost
        if piece.failures < self._tries and piece.losses < LOSSES:
            taken.todo.append(piece)
            return None
        del self._open[id(piece.job)]
        return piece.job, None
