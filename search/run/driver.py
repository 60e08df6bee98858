"""The search: baselines, candidates, promotion to more images, winners on fresh images.

Every ask and every result is in the ledger before the next step depends on it. A search that is started again with the
same configuration replays its ledger through the same algorithm and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from dato.strategy import Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate, SearchRecord
from search.run.baselines import Baselines
from search.run.jobs import Job, Task
from search.run.limits import Limits
from search.run.loops import Loop
from search.run.pools import Pool
from search.run.promotion import Promotion
from search.run.recorder import Recorder
from search.run.validation import Validation


class Driver:
    """Runs a search to its end, from wherever its ledger stands.

    Args:
        recorder: Of the search's ledger and plan.
        protocol: How a candidate is measured.
        loop: Asks for candidates; fresh, it is brought up to date from the ledger.
        baselines: Named strategies measured first; "unaccelerated" is one.
        kept: Where shards are kept of candidates that may be promoted; needed where the protocol has fidelities.
        calibration: Strategies that a cost table is measured with; needed for predicted latencies.
        before: Given the pool before anything is measured.
        after: Given the pool and the record once the winners are known: to draw samples.
        say: Told in words what is being done where it takes long.
    """

    def __init__(
        self,
        recorder: Recorder,
        protocol: EvaluationProtocol,
        loop: Loop,
        baselines: Mapping[str, Strategy],
        *,
        kept: ShardStore | None = None,
        calibration: Sequence[Strategy] = (),
        before: Callable[[Pool], None] | None = None,
        after: Callable[[Pool, SearchRecord], None] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        if protocol.fidelities and kept is None:
            raise ValueError("a protocol with fidelities needs a place to keep shards: give kept")
        self._recorder, self._protocol, self._loop, self._calibration = recorder, protocol, loop, calibration
        self._before, self._after, self._say = before, after, say
        self._baselines = Baselines(recorder, protocol, baselines, kept)
        self._promotion = Promotion(recorder, protocol, kept) if kept and protocol.fidelities else None
        self._limits = Limits(recorder.plan)

    def run(self, pool: Pool) -> SearchRecord:
        """Search, then validate winners. Raises `SearchFailed` when every candidate of a first generation fails."""
        self.prepare(pool)
        self.search(pool)
        self.finish(pool)
        return self._recorder.record

    def prepare(self, pool: Pool) -> None:
        """Measure what candidates are compared with, and once more what failed and is to be tried again."""
        recorder, record = self._recorder, self._recorder.record
        recorder.start()
        if self._before and not record.finished:
            self._before(pool)
        if recorder.plan.latency == "predicted" and record.costs is None:
            self._measure_costs(pool)
        self._baselines.run(pool)
        pool.known_good(Job(UNACCELERATED, [record.baselines[UNACCELERATED][0].strategy], self._protocol.batches()[:1]))
        if not record.finished:
            # The others are measured where the loop comes to them.
            failed = [c for n, c in sorted(record.candidates.items()) if n in record.results and recorder.is_due(n) and self._loop.has_told(record, c)]
            for _ in self._evaluate(pool, failed, retry=True):
                pass

    def search(self, pool: Pool) -> None:
        """Ask for candidates and measure them until a limit is reached; a loop with workers of its own needs none of the pool."""
        self._loop.run(self._recorder, self._limits, partial(self._evaluate, pool))

    def finish(self, pool: Pool) -> None:
        """Promote the best, and validate the winners."""
        if not self._recorder.record.finished:
            if self._promotion:
                self._promotion.run(pool)
            Validation(self._recorder, self._protocol, pool, self._say).run()
            if self._after:
                self._after(pool, self._recorder.record)
            self._recorder.ledger.append("finished")
        self._baselines.clear()

    def _measure_costs(self, pool: Pool) -> None:
        """Measure the cost table that latencies are predicted with."""
        for job, table in pool.map([Job("costs", self._calibration, self._protocol.batches()[:1], Task.COSTS)]):
            if table is None:
                raise SearchFailed(f"the cost table cannot be measured: {job.reason}")
            self._recorder.ledger.append("costs", table=table)

    def _evaluate(self, pool: Pool, candidates: Iterable[Candidate], *, retry: bool = False) -> Iterator[Candidate]:
        """Each candidate, as they finish, when its result on the least number of images is recorded: as another try's where `retry` says so."""
        recorder, batches = self._recorder, self._protocol.batches(last=self._protocol.counts[0])
        for job, made in pool.map(Job(c.number, [c.strategy], batches, measure=recorder.measuring) for c in candidates):
            candidate = recorder.record.candidates[job.key]
            measurement = recorder.measurement(candidate.strategy, job, made.value if made else None)
            if self._promotion and made and measurement.ok:
                self._promotion.keep(candidate, measurement, made.fetch)
            (recorder.retried if retry else recorder.result)(candidate, measurement)
            yield candidate
