"""The search: ask, dispatch, record, tell, by generations or without; promotion to more images; winners on fresh images.

Every ask and every result is in the ledger before the next step depends on it. A search that is started again with the
same configuration replays its ledger through the same algorithm and goes on where it was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from dato.strategy import Strategy
from search.evaluate import Protocol as EvaluationProtocol
from search.evaluate import Shard, paired
from search.kept import KeptShards
from search.latency import CostTable
from search.ledger import Ledger, LedgerError
from search.nsga2 import Nsga2, hypervolume
from search.plan import STALLED, SearchPlan
from search.records import UNACCELERATED, Candidate, Measurement, SearchRecord, Winner
from search.steady import SteadyNsga2
from search.winners import SearchFailed, choose_winners, first_ranks, reference_point
from search.workers import Job, Pool


class Watcher(Protocol):
    """Is told what happens: the terminal view and MLflow."""

    def started(self, record: SearchRecord) -> None:
        """The search begins or goes on."""
        ...

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """A candidate or baseline has a measurement."""
        ...

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """A generation is complete and its hypervolume recorded."""
        ...


class Driver:
    """Runs a search to its end, from wherever its ledger stands.

    Args:
        ledger: Open for writing.
        algorithm: Asks for strategies; fresh, it is brought up to date from the ledger. A `SteadyNsga2` for a steady-state plan.
        plan: How long, and what for.
        protocol: How a candidate is measured.
        pool: Where jobs run.
        measure: Shards of one strategy to its measurement.
        baselines: Named strategies measured first; "unaccelerated" is one.
        watchers: Told of everything.
        latencies: Recorded latencies in ms by strategy digest and images, used in place of measured ones: repeats a search exactly.
        kept: Where shards of candidates that may be promoted are kept; needed where the protocol has fidelities.
        calibration: Strategies that a cost table is measured with; needed for predicted latencies.
        before: Given the pool before anything is measured.
        after: Given the pool and the record once the winners are known: to draw samples.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        algorithm: Nsga2,
        plan: SearchPlan,
        protocol: EvaluationProtocol,
        pool: Pool,
        measure: Callable[[Sequence[Shard]], Measurement],
        baselines: Mapping[str, Strategy],
        watchers: Sequence[Watcher] = (),
        latencies: Mapping[tuple[str, int], float] | None = None,
        kept: KeptShards | None = None,
        calibration: Sequence[Strategy] = (),
        before: Callable[[Pool], None] | None = None,
        after: Callable[[Pool, SearchRecord], None] | None = None,
    ) -> None:
        self.ledger, self.algorithm, self.plan, self.protocol, self.pool = ledger, algorithm, plan, protocol, pool
        self._measure, self.baselines, self.watchers = measure, dict(baselines), watchers
        self.latencies, self._kept, self._calibration, self._before, self._after = latencies or {}, kept, calibration, before, after
        if protocol.fidelities and kept is None:
            raise ValueError("a protocol with fidelities needs a place to keep shards: give kept")
        self._promised: list[tuple[Candidate, Measurement]] = []  # those of which shards are kept
        self._numbers: dict[str, int] = {}  # of the candidates, by their strategies' digests
        self._began = time.monotonic()

    @property
    def record(self) -> SearchRecord:
        """What is known so far."""
        return self.ledger.record

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

    def _finish(self) -> None:
        self._promote()
        if len(self.record.winners) < 3:
            self._validate_winners()
        if not self.record.finished:
            if self._after:
                self._after(self.pool, self.record)
            self.ledger.append("finished")
        if self._kept:
            self._kept.clear()

    def _search(self) -> None:
        self.algorithm.bounds = self._bounds()
        if isinstance(self.algorithm, SteadyNsga2):
            self._run_steady(self.algorithm)
            return
        for generation in range(self.plan.generations):
            if self._ended(generation * self.plan.population) or not self._run_generation(generation):
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
        grown = known.hypervolumes
        return bool(plan.stalled and len(grown) > plan.stalled and grown[-1] <= grown[-1 - plan.stalled] * (1 + STALLED))

    def _price(self) -> None:
        """Measure the cost table once, where latencies are predicted."""
        if self.plan.latency != "predicted" or self.record.costs is not None:
            return
        for job, table in self.pool.map([Job("costs", self._calibration, self.protocol.batches()[:1], method="costs")]):
            if table is None:
                raise SearchFailed(f"the cost table cannot be measured: {job.errors[0]}")
            self.ledger.append("costs", table=table)

    def _run_baselines(self) -> None:
        missing = {name: s for name, s in self.baselines.items() if self.protocol.images not in self.record.baselines_at.get(name, {})}
        if not missing:
            return
        earlier: dict[str, list[Shard]] = {name: [] for name in missing}
        for first, last in itertools.pairwise((0, *self.protocol.counts)):
            shards, error = self._compare(missing, self.protocol.batches(first=first, last=last))
            for name in sorted(missing, key=lambda n: n != UNACCELERATED):  # the others are compared with it
                if error is not None:
                    if name == UNACCELERATED:
                        raise SearchFailed(f"the unaccelerated pipeline itself fails: {error}")
                    measurement = Measurement(error=error)
                else:
                    earlier[name] += shards[name]
                    measurement = self._with_latency(missing[name], self._measure(earlier[name]))
                    if name != UNACCELERATED:
                        measurement = self._with_interval(measurement)
                candidate = Candidate(number=-1, generation=-1, strategy=missing[name], origin=name)
                self.ledger.baseline(candidate, measurement)
                if last == self.protocol.images:
                    for watcher in self.watchers:
                        watcher.measured(self.record, candidate)

    def _compare(self, strategies: Mapping[str, Strategy], batches: Sequence[Sequence[int]]) -> tuple[dict[str, list[Shard]], str | None]:
        """Run strategies in turn on the same batches, spread over the workers: their latencies compare fairly. Shards, or an error."""
        share = min(self.pool.size, len(batches))
        jobs = [Job(i, list(strategies.values()), batches[i::share]) for i in range(share)]
        results = {job.key: (job, shards) for job, shards in self.pool.map(jobs)}
        failed = [job for job, shards in results.values() if shards is None]
        if failed:
            return {}, failed[0].errors[0]
        # By shard number, not by finish: sums of floats depend on their order.
        ordered = [results[i][1] for i in range(share)]
        return {name: [shards[k] for shards in ordered] for k, name in enumerate(strategies)}, None

    def _run_generation(self, generation: int) -> bool:
        asked = self.algorithm.ask()
        if not asked:
            return False
        candidates = [self._note(generation * self.plan.population + i, s, self.algorithm.parents(s)) for i, s in enumerate(asked)]
        todo = [c for c in candidates if c.number not in self.record.results]
        # The longest first, so that little is left to wait for at a generation's end.
        todo.sort(key=lambda c: -sum(step.cache_depth for step in c.strategy))
        for job, shards in self.pool.map([self._job(c) for c in todo]):
            self._take(job, shards)
        results = [self.record.results[c.number] for c in candidates]
        if generation == 0 and not any(r.ok for r in results):
            raise self._hopeless(results)
        self.algorithm.tell([self._objectives(r) for r in results], [self._violation(r) for r in results])
        self._close_generation(generation)
        return True

    def _run_steady(self, algorithm: SteadyNsga2) -> None:
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
        return SearchFailed(f"all of the first {len(results)} candidates failed; the first error: {results[0].error}. Mend it, then run the same command with restart=true")

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

    def _take(self, job: Job, shards: Sequence[Shard] | None) -> None:
        """A candidate's shards into the ledger."""
        candidate = self.record.candidates[job.key]
        measurement = self._to_measurement(candidate.strategy, job, [shards[0]] if shards else None)
        if self._kept and shards and measurement.ok:
            self._kept.put(candidate.number, measurement.images, [shards[0]])
        self.ledger.result(candidate.number, measurement)
        if self._kept and measurement.ok:
            self._kept.keep_only([c for c, _ in self._promise(candidate, measurement)])
        for watcher in self.watchers:
            watcher.measured(self.record, candidate)

    def _promise(self, candidate: Candidate, measurement: Measurement) -> list[tuple[Candidate, Measurement]]:
        """`_promising` after one more result, from what it was before: one that left it never comes back."""
        if not self._promised:
            self._promised = self._promising(measurement.images, self.plan.promoted_ranks)
            return self._promised
        # Either all of them are within the limits, or none is yet.
        before, now = not self._violation(self._promised[0][1]), not self._violation(measurement)
        if now or not before:
            self._promised = first_ranks([*(self._promised if before == now else ()), (candidate, measurement)], self.plan.promoted_ranks)
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
            ranks, known = self.plan.promoted_ranks, self.record.evaluated(low)
            while True:
                chosen = self._promising(low, ranks)
                self._measure_more([c for c, _ in chosen if high not in self.record.promotions.get(c.number, {})], low, high)
                # Those at a limit may be beyond it on more images: the next ranks go on until one is within.
                if self._within_limits(high) or len(chosen) >= len(self._within_limits(low) or known):
                    break
                ranks += 1

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

    def _tell_one(self, algorithm: SteadyNsga2, candidate: Candidate) -> None:
        m = self.record.results[candidate.number]
        algorithm.tell_one(candidate.strategy, self._objectives(m), self._violation(m))

    def _to_measurement(self, strategy: Strategy, job: Job, shards: Sequence[Shard] | None) -> Measurement:
        if shards is None:
            return Measurement(error=job.reason, seconds=job.failed_s)
        try:
            measurement = self._measure(shards)
        except ValueError as error:  # NaN features: the candidate is infeasible
            return Measurement(error=str(error), seconds=sum(s.seconds for s in shards))
        return self._with_interval(self._with_latency(strategy, measurement))

    def _with_interval(self, measurement: Measurement) -> Measurement:
        """The measurement with the interval of its difference to the unaccelerated pipeline on the same images."""
        return paired(measurement, self.record.plain(measurement.images)) if measurement.ok else measurement

    def _with_latency(self, strategy: Strategy, measurement: Measurement) -> Measurement:
        """The measurement with a recorded or predicted latency, where one of these is asked for."""
        if not measurement.ok:
            return measurement
        if self.latencies:
            recorded = self.latencies.get((strategy.digest, measurement.images))
            if recorded is None:
                raise LedgerError(f"no latency is recorded for strategy {strategy.digest} on {measurement.images} images: replay_latency names a ledger of another search")
            return replace(measurement, latency_ms=recorded)
        if self.record.costs is not None:
            predicted = CostTable.from_dict(self.record.costs).predict(strategy)
            return replace(measurement, latency_ms=predicted, measured_ms=measurement.latency_ms)
        return measurement

    def _hypervolume(self) -> float:
        reference = reference_point(self.record)
        return hypervolume([(m.fid, m.latency_ms) for _, m in self.record.evaluated()], reference)

    def _validate_winners(self) -> None:
        chosen = choose_winners(self.record, self.plan.winner_speedup, self.plan.objectives)
        # By digest: one candidate may win several aliases, and is measured once.
        strategies = {UNACCELERATED: self.baselines[UNACCELERATED], **{c.strategy.digest: c.strategy for c in chosen.values()}}
        shards, error = self._compare(strategies, self.protocol.batches(fresh=True))
        if error is not None:
            raise SearchFailed(f"the winners fail on fresh images: {error}; run the same command again")
        fresh = {name: self._measure(parts) for name, parts in shards.items()}
        fresh |= {name: paired(m, fresh[UNACCELERATED]) for name, m in fresh.items() if name != UNACCELERATED}
        fresh[UNACCELERATED] = replace(fresh[UNACCELERATED], fid_draws=())
        searched = {c.number: m for c, m in self.record.front()}
        for alias, candidate in chosen.items():
            self.ledger.winner(
                Winner(
                    alias=alias,
                    candidate=candidate,
                    searched=searched[candidate.number],
                    fresh=fresh[candidate.strategy.digest],
                    fresh_baseline=fresh[UNACCELERATED],
                )
            )
