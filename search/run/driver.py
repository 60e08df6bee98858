"""The search: ask, dispatch, record, tell, by generations or without; promotion to more images; winners on fresh images.

Every ask and every result is in the ledger before the next step depends on it. A search that is started again with the
same configuration replays its ledger through the same algorithm and goes on where it was.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from dato.strategy import Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger, LedgerError
from search.metrics.similarity import PlainFeatures, with_distance
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.pareto import first_ranks, hypervolume
from search.optimize.winners import SearchFailed, reference_point
from search.records import UNACCELERATED, Candidate, Measurement, SearchRecord, Watcher
from search.run.baselines import Baselines
from search.run.jobs import Job, Task
from search.run.pools import Pool
from search.run.settings import SearchPlan, has_stalled
from search.run.validation import Validation

_log = logging.getLogger(__name__)


class Driver(Baselines):
    """Runs a search to its end, from wherever its ledger stands.

    Args:
        ledger: Open for writing.
        algorithm: Asks for strategies; fresh, it is brought up to date from the ledger. A `AsynchronousNsga2` for a steady-state plan.
        plan: How long, and what for.
        protocol: How a candidate is measured.
        pool: Where jobs run.
        measure: Shards of one strategy to its measurement.
        baselines: Named strategies measured first; "unaccelerated" is one.
        watchers: Told of everything.
        latencies: Recorded latencies in ms by strategy digest and images, used in place of measured ones: repeats a search exactly.
        kept: Where shards of candidates that may be promoted are kept; needed where the protocol has fidelities.
        calibration: Strategies that a cost table is measured with; needed for predicted latencies.
        retry_failed: Measure once more what is recorded as failed: candidates, their promotions, baselines.
        before: Given the pool before anything is measured.
        after: Given the pool and the record once the winners are known: to draw samples.
        say: Told in words what is being done where it takes long.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        algorithm: Nsga2 | AsynchronousNsga2,
        plan: SearchPlan,
        protocol: EvaluationProtocol,
        pool: Pool,
        measure: Callable[[Sequence[Shard]], Measurement],
        baselines: Mapping[str, Strategy],
        watchers: Sequence[Watcher] = (),
        latencies: Mapping[tuple[str, int], float] | None = None,
        kept: ShardStore | None = None,
        calibration: Sequence[Strategy] = (),
        retry_failed: bool = False,
        before: Callable[[Pool], None] | None = None,
        after: Callable[[Pool, SearchRecord], None] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.ledger, self.algorithm, self.plan, self.protocol, self.pool = ledger, algorithm, plan, protocol, pool
        self._measure, self.baselines, self.watchers = measure, dict(baselines), watchers
        self.latencies, self._kept, self._calibration, self._before, self._after, self._say = latencies or {}, kept, calibration, before, after, say
        if protocol.fidelities and kept is None:
            raise ValueError("a protocol with fidelities needs a place to keep shards: give kept")
        # Of a baseline at each number of images, until all of them are recorded.
        self._kept_baselines = ShardStore(kept.folder.with_name(f"{kept.folder.name}-baselines")) if kept else None
        self._promised: list[tuple[Candidate, Measurement]] = []  # those of which shards are kept
        self._plain: PlainFeatures | None = None
        self._retry_failed = retry_failed
        self._again = {n for n, m in self.record.results.items() if retry_failed and not m.ok}  # candidates to be tried again
        self._promote_again = {(n, i) for n, more in self.record.promotions.items() for i, m in more.items() if retry_failed and not m.ok}
        self._numbers: dict[str, int] = {}  # of the candidates, by their strategies' digests
        self._began = time.monotonic()

    def run(self) -> SearchRecord:
        """Search, then validate winners. Raises `SearchFailed` when every candidate of a first generation fails."""
        for watcher in self.watchers:
            watcher.started(self.record)
        self._began = time.monotonic()
        self._prepare()
        self._search()
        self._finish()
        return self.record

    def _prepare(self) -> None:
        if self._before and not self.record.finished:
            self._before(self.pool)
        self._price()
        self._run_baselines()
        self._recall_plain()
        self.pool.known_good(Job(UNACCELERATED, [self.baselines[UNACCELERATED]], self.protocol.batches()[:1]))
        self._retry()

    def _retry(self) -> None:
        """Measure failed candidates once more. What the algorithm was told of them stays told, so that a replay asks for the same."""
        if self.record.finished:
            return
        failed = [self.record.candidates[n] for n in sorted(self._again)]
        told = [c for c in failed if isinstance(self.algorithm, AsynchronousNsga2) or c.generation < len(self.record.hypervolumes)]
        for job, shards in self.pool.map([self._job(c) for c in told]):
            self._take(job, shards, self.ledger.retried)
            self._again.discard(job.key)

    def _finish(self) -> None:
        self._promote()
        if not self.record.finished:
            self._validate_winners()
            if self._after:
                self._after(self.pool, self.record)
            self.ledger.append("finished")
        for kept in (self._kept, self._kept_baselines):
            if kept:
                kept.clear()

    def _search(self) -> None:
        self.algorithm.bounds = self._bounds()
        if isinstance(self.algorithm, AsynchronousNsga2):
            self._run_steady(self.algorithm)
            return
        for generation in range(self.plan.generations):
            if self._ended(generation * self.plan.population) or not self._run_generation(self.algorithm, generation):
                break

    def _ended(self, asked: int) -> bool:
        """Whether a limit of the plan is reached after so many candidates. Only time makes it differ when replayed."""
        plan, known = self.plan, self.record
        if asked < len(known.candidates):
            return False  # was asked for before: the limits allowed it then
        if asked >= min(plan.generations * plan.population, plan.max_candidates or asked + 1):
            return True
        if plan.max_minutes and time.monotonic() - self._began >= 60 * plan.max_minutes:
            return True
        if plan.max_device_hours and known.device_seconds() >= 3600 * plan.max_device_hours:
            return True
        return has_stalled(known.hypervolumes, plan.patience)

    def _price(self) -> None:
        """Measure the cost table once, where latencies are predicted."""
        if self.plan.latency != "predicted" or self.record.costs is not None:
            return
        for job, table in self.pool.map([Job("costs", self._calibration, self.protocol.batches()[:1], Task.COSTS)]):
            if table is None:
                raise SearchFailed(f"the cost table cannot be measured: {job.errors[0]}")
            self.ledger.append("costs", table=table)

    def _run_generation(self, algorithm: Nsga2, generation: int) -> bool:
        asked = algorithm.ask()
        if not asked:
            return False
        candidates = [self._note(generation * self.plan.population + i, s, algorithm.parents(s)) for i, s in enumerate(asked)]
        todo = [c for c in candidates if c.number not in self.record.results or c.number in self._again]
        # The longest first, so that little is left to wait for at a generation's end.
        todo.sort(key=lambda c: -sum(step.cache_depth for step in c.strategy))
        for job, shards in self.pool.map([self._job(c) for c in todo]):
            self._take(job, shards)
            self._again.discard(job.key)
        results = [self.record.results[c.number] for c in candidates]
        if generation == 0 and not any(r.ok for r in results):
            raise self._hopeless(results)
        told = [self.record.as_told(c.number) for c in candidates]
        algorithm.tell([self._objectives(r) for r in told], [self._violation(r) for r in told])
        self._close_generation(generation)
        return True

    def _run_steady(self, algorithm: AsynchronousNsga2) -> None:
        open_ones: dict[int, Candidate] = {}
        for event, number in list(self.record.events):
            candidate = self.record.candidates[number]
            if event == "ask":
                self._note(number, algorithm.ask_one())
                open_ones[number] = candidate
            else:
                del open_ones[number]
                self._tell_one(algorithm, candidate)

        def jobs() -> Iterator[Job]:
            for candidate in list(open_ones.values()):
                yield self._job(candidate)
            while not self._ended(len(self.record.candidates)):
                strategy = algorithm.ask_one()
                if strategy is None:
                    return
                yield self._job(self._note(len(self.record.candidates), strategy, algorithm.parents(strategy)))

        self._close_if_full()  # A driver killed right after the last result of a generation has not done so.
        for job, shards in self.pool.map(jobs()):
            self._take(job, shards)
            self._tell_one(algorithm, self.record.candidates[job.key])
            self._close_if_full()

    def _close_if_full(self) -> None:
        """Without generations, one is counted for every `population` results."""
        done, population = len(self.record.results), self.plan.population
        if self._all_failed():
            raise self._hopeless(list(self.record.results.values())[:population])
        if done and done % population == 0:
            self._close_generation(done // population - 1)

    def _all_failed(self) -> bool:
        """Whether the first `population` results are there, and all of them failures."""
        first = itertools.islice(self.record.results.values(), self.plan.population)
        return len(self.record.results) >= self.plan.population and not any(m.ok for m in first)

    @staticmethod
    def _hopeless(results: Sequence[Measurement]) -> SearchFailed:
        return SearchFailed(f"all of the first {len(results)} candidates failed; the first error: {results[0].error}. Mend it, then run the same command with search.retry_failed=true to try them again, or with fresh_start=true to begin anew")

    def _note(self, number: int, strategy: Strategy | None, parents: Sequence[str] = ()) -> Candidate:
        """A candidate asked for, written down with its parents by digest; the same as before where it was asked for before."""
        generation = number // self.plan.population
        if strategy is not None:
            self._numbers[strategy.digest] = number
        known = self.record.candidates.get(number)
        if known is not None:
            if strategy is None or known.strategy != strategy:
                raise LedgerError(
                    f"{self.ledger.path}: candidate {number} was {known.strategy.digest} and is now {strategy.digest if strategy else 'none'}; "
                    "the ledger was made by another version of dato or its libraries: set another output"
                )
            return known
        assert strategy is not None
        origin = "offspring" if parents else "initial"
        numbers = tuple(sorted(self._numbers[digest] for digest in parents))
        candidate = Candidate(number=number, generation=generation, strategy=strategy, origin=origin, parents=numbers)
        self.ledger.ask(candidate)
        return candidate

    def _job(self, candidate: Candidate) -> Job:
        return Job(candidate.number, [candidate.strategy], self.protocol.batches(last=self.protocol.counts[0]))

    def _take(self, job: Job, shards: Sequence[Shard] | None, write: Callable[[int, Measurement], None] | None = None) -> None:
        """A candidate's shards into the ledger, as its result unless `write` says otherwise."""
        candidate = self.record.candidates[job.key]
        measurement = self._to_measurement(candidate.strategy, job, [shards[0]] if shards else None)
        if self._kept and shards and measurement.ok:
            self._kept.put(candidate.number, measurement.images, [shards[0]])
        (write or self.ledger.result)(candidate.number, measurement)
        if self._kept and measurement.ok:
            self._kept.keep_only([c for c, _ in self._promise(candidate, measurement)])
        for watcher in self.watchers:
            watcher.measured(self.record, candidate)

    def _promise(self, candidate: Candidate, measurement: Measurement) -> list[tuple[Candidate, Measurement]]:
        """`_promising` after one more result, from what it was before: one that left it never comes back."""
        if not self._promised:
            self._promised = self._promising(measurement.images, self.plan.promote_ranks)
            return self._promised
        # Either all of them are within the limits, or none is yet.
        before, now = not self._violation(self._promised[0][1]), not self._violation(measurement)
        if now or not before:
            self._promised = first_ranks([*(self._promised if before == now else ()), (candidate, measurement)], self.plan.promote_ranks)
        return self._promised

    def _promising(self, images: int, ranks: int) -> list[tuple[Candidate, Measurement]]:
        """The candidates of the first ranks among those measured on so many images and within the limits, or among all where none is."""
        return first_ranks(self._within_limits(images) or self.record.evaluated(images), ranks)

    def _within_limits(self, images: int) -> list[tuple[Candidate, Measurement]]:
        """Candidates measured on so many images that keep the search's limits."""
        return [(c, m) for c, m in self.record.evaluated(images) if not self._violation(m)]

    def _promote(self) -> None:
        """Measure the best at each number of images on more, paying for the new images only."""
        for low, high in itertools.pairwise(self.protocol.counts):
            ranks, known = self.plan.promote_ranks, self.record.evaluated(low)
            while True:
                chosen = self._promising(low, ranks)
                self._measure_more([c for c, _ in chosen if self._unknown(c.number, high)], low, high)
                # Those at a limit may be beyond it on more images: the next ranks go on until one is within.
                if self._within_limits(high) or len(chosen) >= len(self._within_limits(low) or known):
                    break
                ranks += 1

    def _unknown(self, number: int, images: int) -> bool:
        """Whether a candidate is still to be measured on so many images."""
        return images not in self.record.promotions.get(number, {}) or (number, images) in self._promote_again

    def _measure_more(self, due: Sequence[Candidate], low: int, high: int) -> None:
        assert self._kept is not None
        earlier = {c.number: self._kept.get(c.number, low) for c in due}
        jobs = [Job(c.number, [c.strategy], self.protocol.batches(first=low if earlier[c.number] else 0, last=high)) for c in due]
        for job, shards in self.pool.map(jobs):
            candidate = self.record.candidates[job.key]
            whole = [*(earlier[job.key] or []), shards[0]] if shards else None
            measurement = self._to_measurement(candidate.strategy, job, whole)
            if whole and measurement.ok:
                self._kept.put(candidate.number, high, whole)
            self.ledger.promotion(candidate.number, high, measurement)
            self._promote_again.discard((candidate.number, high))
            for watcher in self.watchers:
                watcher.measured(self.record, candidate)

    def _close_generation(self, generation: int) -> None:
        if len(self.record.hypervolumes) > generation:
            return
        self.ledger.append("generation", generation=generation, hypervolume=self._hypervolume())
        for watcher in self.watchers:
            watcher.generation_done(self.record, generation)

    def _objectives(self, m: Measurement) -> tuple[float, ...] | None:
        return self.plan.objectives.values(m) if m.ok else None

    def _bounds(self) -> tuple[float, float] | None:
        return self.plan.objectives.bounds(self.record.plain(self.protocol.counts[0]))

    def _violation(self, m: Measurement) -> float:
        return self.plan.objectives.violation(m, self.record.plain(m.images)) if m.ok else 0.0

    def _tell_one(self, algorithm: AsynchronousNsga2, candidate: Candidate) -> None:
        m = self.record.as_told(candidate.number)
        algorithm.tell_one(candidate.strategy, self._objectives(m), self._violation(m))

    def _to_measurement(self, strategy: Strategy, job: Job, shards: Sequence[Shard] | None) -> Measurement:
        if shards is None:
            return Measurement(error=job.reason, seconds=job.failed_s)
        try:
            measurement = self._measure(shards)
        except ValueError as error:  # NaN features: the candidate is infeasible
            return Measurement(error=str(error), seconds=sum(s.seconds for s in shards))
        return self._with_interval(self._with_latency(strategy, with_distance(measurement, shards, self._plain)))

    def _hypervolume(self) -> float:
        reference = reference_point(self.record)
        return hypervolume([(m.fid, m.latency_ms) for _, m in self.record.evaluated()], reference)

    def _validate_winners(self) -> None:
        Validation(
            ledger=self.ledger,
            plan=self.plan,
            protocol=self.protocol,
            unaccelerated=self.baselines[UNACCELERATED],
            compare=self._compare,
            measure=self._measure,
            say=self._say,
        ).run()
