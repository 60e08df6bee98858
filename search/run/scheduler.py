"""Which worker does what next: jobs cut into batches, affinity, work stealing, retries, checks. Pure: no Ray, no clock.

A job stays with its worker while others have jobs of their own; a worker that would idle takes a batch of the job with the
most left. So 64 workers are busy with 20 candidates, and the end of a generation waits for one batch, not for a candidate.

A job is only given up after it failed on workers that succeed with others (`search.run.health`), at once where it did not fit into the
memory of one. Where nobody else can show whether a worker is sound, it is checked with what is known to work, and judges after that.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.evaluate.memory import tells_of_memory
from search.run.health import Health, poisons
from search.run.jobs import Job, Piece, put_together

LOSSES = 20
"""How often a job may lose a worker to a vanished machine before it is given up: such losses are not its fault."""


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
    failures: int = 0
    """Of all its pieces together, those that count."""
    unjudged: int = 0
    """Of all its pieces together, those that do not."""


class Dispatcher:
    """Hands out pieces of jobs and puts their results together.

    Args:
        jobs: Taken one at a time, only when a worker has nothing else to do: a generator may decide late.
        join: Results of a job's batches, in their order, to the job's result; None runs every job in one piece.
        tries: How often a piece may fail, or all pieces of a job together of which none has succeeded.
        mixed: Latency counts on some workers only: one batch of every job is kept for these.
        ahead: How many jobs may be open at most.
        health: What is known of the workers; None where they are new.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        join: Callable[[Sequence[Any]], Any] | None = None,
        tries: int = 3,
        mixed: bool = False,
        ahead: int = 1_000_000,
        health: Health | None = None,
    ) -> None:
        self._jobs: Iterator[Job] = iter(jobs)
        self._join, self._tries, self._mixed = join, tries, mixed
        self.ahead = ahead
        """May be changed as workers come and go."""
        self.health = Health() if health is None else health
        self._workers: set[Hashable] = set()
        self._checks = 0
        """Checks that are running."""
        self._open: dict[int, _Open] = {}
        self._mine: dict[Hashable, _Open] = {}
        self._orphans: deque[_Open] = deque()
        """Jobs without a worker of their own: refused so far, or cut off."""
        self._kept: dict[int, _Open] = {}
        """Jobs whose last batch only a worker whose latency counts may run."""
        self._longest: list[tuple[int, int, _Open]] = []
        """Heap of jobs by batches left; entries that are no longer true are skipped."""
        self._order = itertools.count()
        self._exhausted = False
        self._alone = False

    @property
    def open(self) -> int:
        """Jobs taken and not done."""
        return len(self._open)

    @property
    def done(self) -> bool:
        """Whether every job has been handed back. Only sure after a worker was refused a piece."""
        return self._exhausted and not self._open

    def assign(self, worker: Hashable, timed: bool = True, alone: bool = False) -> Piece | None:
        """The next piece for a free worker, or None when there is nothing for it now.

        Args:
            worker: Its name.
            timed: Whether latency counts there.
            alone: Nobody is running anything: what failed on this worker is tried here again, after a check where one is possible.
        """
        self._alone = alone
        self._workers.add(worker)
        health = self.health
        if health.is_broken(worker) or (health.suspect(worker) and not alone):
            return None
        piece = None if health.suspect(worker) and health.good else self._choose(worker, timed)
        if piece is None and alone and health.good and not health.proven(worker) and sum(len(o.todo) for o in self._open.values()) > self._checks:
            self._checks += 1
            piece = Piece(Job("check", health.good.strategies, health.good.batches), range(len(health.good.batches)), check=True)
        if piece:
            piece.worker = worker
            health.begins(worker)
        return piece

    def leaves(self, worker: Hashable) -> None:
        """A worker has left for good: nothing waits for it any more. What it was running is told of by `fail`, before or after."""
        self._workers.discard(worker)
        mine = self._mine.pop(worker, None)
        if mine:
            mine.worker = None
            if mine.todo:
                self._orphans.append(mine)

    def _choose(self, worker: Hashable, timed: bool) -> Piece | None:
        mine = self._mine.get(worker)
        if mine and (piece := self._take(mine, worker, timed)):
            return piece
        for _ in range(len(self._orphans)):
            orphan = self._orphans.popleft()
            if piece := self._take(orphan, worker, timed):
                return piece
            if orphan.todo and id(orphan.job) in self._open:
                self._orphans.append(orphan)
        if timed:
            # Batches that only such a worker may run come before new jobs, or they would pile up.
            for kept in list(self._kept.values()):
                if piece := self._take(kept, worker, timed):
                    return piece
        while not self._exhausted and len(self._open) < self.ahead:
            job = next(self._jobs, None)
            if job is None:
                self._exhausted = True
                break
            begun = self._begin(job)
            if piece := self._take(begun, worker, timed):
                return piece
            self._orphans.append(begun)
        return self._help(worker, timed)

    def _help(self, worker: Hashable, timed: bool) -> Piece | None:
        """A batch of the job with the most left."""
        refused = []
        found = None
        while self._longest and not found:
            entry = heapq.heappop(self._longest)
            taken = entry[2]
            if -entry[0] == len(taken.todo) and not (found := self._take(taken, worker, timed)):
                refused.append(entry)
        for entry in refused:
            if id(entry[2].job) in self._open:
                heapq.heappush(self._longest, entry)
        return found

    def _begin(self, job: Job) -> _Open:
        whole = self._join is None or not job.task.is_divisible or len(job.batches) < 2
        cuts: list[Sequence[int]] = [range(len(job.batches))] if whole else [[i] for i in range(len(job.batches))]
        opened = _Open(job, deque(Piece(job, cut) for cut in cuts), left=len(cuts))
        opened.timed = int(self._mixed and not job.task.is_timed)  # as if one batch had run where latency counts
        self._open[id(job)] = opened
        return opened

    def _take(self, taken: _Open, worker: Hashable, timed: bool) -> Piece | None:
        if not taken.todo or id(taken.job) not in self._open:
            return None
        place = next((i for i, piece in enumerate(taken.todo) if self._may(taken, piece, worker)), None)
        if place is None:
            return None
        if self._mixed and not timed and taken.timed == 0 and len(taken.todo) == 1:
            return None  # the last batch is kept for a worker whose latency counts
        piece = taken.todo[place]
        del taken.todo[place]
        piece.alone = self._alone
        piece.timed = self._mixed and timed
        taken.timed += piece.timed
        if taken.worker is None:
            taken.worker = worker
            self._mine[worker] = taken
        if taken.todo:
            heapq.heappush(self._longest, (-len(taken.todo), next(self._order), taken))
        if self._mixed and taken.timed == 0 and len(taken.todo) == 1:
            self._kept[id(taken.job)] = taken
        else:
            self._kept.pop(id(taken.job), None)
        piece.job.tries = max(piece.job.tries, min(piece.failures + piece.unjudged + 1, self._tries))
        return piece

    def _may(self, taken: _Open, piece: Piece, worker: Hashable) -> bool:
        """Whether a worker may run a piece: what failed goes to a proven one that it has not failed on."""
        if self._alone and (self.health.good is None or self.health.proven(worker)):
            return True
        doubtful = piece.doubtful or (taken.unjudged + taken.failures and not taken.results)
        return worker not in piece.avoid and (not doubtful or self.health.proven(worker))

    def _close(self, job: Job) -> None:
        closed = self._open.pop(id(job))
        self._kept.pop(id(job), None)
        if self._mine.get(closed.worker) is closed:
            del self._mine[closed.worker]

    def succeed(self, piece: Piece, result: Any) -> tuple[Job, Any] | None:
        """Note a piece's result; the job when that was its last piece, with its result, or with those of all its pieces where it is to be measured."""
        self._checks -= piece.check
        if piece.job.task.proves:
            self.health.succeeded(piece.worker)
            self.health.good = Job("good", piece.job.strategies, [piece.job.batches[i] for i in piece.batches])
        taken = self._open.get(id(piece.job))
        if taken is None:
            return None  # the job failed elsewhere
        taken.results[piece.batches[0] if piece.batches else 0] = result
        taken.left -= 1
        if taken.left:
            return None
        self._close(piece.job)
        ordered = [taken.results[i] for i in sorted(taken.results)]
        return piece.job, ordered if piece.job.measure else put_together(ordered, self._join)

    def begin_again(self, job: Job) -> tuple[Job, None] | None:
        """A job that was done, and whose results were lost before they were measured, is run again; the job with None where that happens too often."""
        job.vanished += 1
        if job.vanished >= LOSSES:
            job.errors.append(f"its results were lost {job.vanished} times with the machines that had them")
            return job, None
        self._orphans.append(self._begin(job))
        return None

    def fail(self, piece: Piece, error: str, *, lost: bool = False, worker: Hashable = None, seconds: float = 0.0, where: str = "") -> tuple[Job, None] | None:
        """Note that a piece failed; the job with None when its tries are used up.

        Args:
            piece: Which.
            error: What it said.
            lost: Its machine vanished: not counted as a try, up to `LOSSES` times.
            worker: Which is still there, and is not given this piece again while there are others; None where its process ended.
            seconds: How long it took.
            where: The machine and the log of the process that it failed in, in words.
        """
        self._checks -= piece.check
        taken = self._open.get(id(piece.job))
        counts = self._judge(piece, error, lost=lost, gone=worker is None, known=taken is None or taken.failures > 0)
        if taken is None:
            return None
        piece.job.errors.append(error)
        if counts or not piece.job.blamed:
            piece.job.where = where or piece.job.where
        if counts:
            piece.job.blamed.append(error)
            piece.job.failed_s += seconds
        taken.timed -= piece.timed
        if self._mine.get(taken.worker) is taken:
            del self._mine[taken.worker]
        taken.worker = None
        if worker is not None:
            piece.avoid.add(worker)
            if len(piece.avoid) >= len(self._workers):
                piece.avoid = {worker}
        piece.losses += lost
        piece.failures += counts
        piece.unjudged += not counts and not lost
        taken.failures += counts
        taken.unjudged += not counts and not lost
        hopeless = taken.failures >= self._tries and not taken.results
        # The worker has tried it again already, with its memory emptied: the next one's is no larger.
        hopeless = hopeless or (counts and worker is not None and tells_of_memory(error))
        # Nothing ever succeeded here, and nobody is left to ask: whoever gave the job is told so.
        baseless = piece.alone and self.health.good is None and taken.failures + taken.unjudged >= self._tries
        if piece.failures < self._tries and piece.losses + piece.unjudged < LOSSES and not hopeless and not baseless:
            # Before the job's other pieces: where it fails again, they need not be begun.
            taken.todo.appendleft(piece)
            self._orphans.append(taken)
            return None
        self._close(piece.job)
        return piece.job, None

    def _judge(self, piece: Piece, error: str, *, lost: bool, gone: bool, known: bool) -> bool:
        """Whether a failure counts against the job, after what is known of the worker; and what it says about the worker."""
        if lost:
            self.health.renewed(piece.worker)
            return False
        if piece.check:
            self.health.unfit(piece.worker, gone=gone)
            return False
        if not piece.job.task.proves:
            if gone:
                self.health.renewed(piece.worker)
            return not (not gone and poisons(error)) or self.health.failed(piece.worker, error, known=known, gone=gone)
        return self.health.failed(piece.worker, error, known=known, gone=gone)
