"""The search: ask, dispatch, record, tell, generation by generation; then winners on fresh images.

Every ask and every result is in the ledger before the next step depends on it. A search that is started again with the
same configuration replays its ledger through the same algorithm and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dato.strategy import Strategy
from search.evaluate import Protocol as EvaluationProtocol
from search.evaluate import Shard
from search.ledger import Ledger, LedgerError
from search.nsga2 import Nsga2, hypervolume
from search.records import Candidate, Measurement, SearchRecord, Winner
from search.workers import Job

UNACCELERATED = "unaccelerated"


class Pool(Protocol):
    """Runs jobs; see `search.workers`."""

    size: int

    def map(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result as it finishes."""
        ...


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


class SearchFailed(RuntimeError):
    """Every candidate of the first generation failed: the message holds the first error."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search runs."""

    generations: int
    population: int
    min_speedup: float = 3.0
    """The `fastest` winner is the fastest whose FID is within the unaccelerated interval, `quality` the best FID at this speedup."""

    def __post_init__(self) -> None:
        if not isinstance(self.generations, int) or self.generations < 1:
            raise ValueError(f"search.generations is {self.generations!r}; give at least 1")


class Driver:
    """Runs a search to its end, from wherever its ledger stands.

    Args:
        ledger: Open for writing.
        algorithm: Asks for strategies; fresh, it is brought up to date from the ledger.
        plan: How long.
        protocol: How a candidate is measured.
        pool: Where jobs run.
        measure: Shards of one strategy to its measurement.
        baselines: Named strategies measured first; "unaccelerated" is one.
        watchers: Told of everything.
        latencies: Recorded latencies in ms by strategy digest, used in place of measured ones: repeats a search exactly.
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
        latencies: Mapping[str, float] | None = None,
    ) -> None:
        self.ledger, self.algorithm, self.plan, self.protocol, self.pool = ledger, algorithm, plan, protocol, pool
        self._measure, self.baselines, self.watchers = measure, dict(baselines), watchers
        self.latencies = latencies or {}

    @property
    def record(self) -> SearchRecord:
        """What is known so far."""
        return self.ledger.record

    def run(self) -> SearchRecord:
        """Search, then validate winners. Raises `SearchFailed` when a whole first generation fails."""
        for watcher in self.watchers:
            watcher.started(self.record)
        self._run_baselines()
        for generation in range(self.plan.generations):
            if not self._run_generation(generation):
                break
        if len(self.record.winners) < 3:
            self._validate_winners()
        if not self.record.finished:
            self.ledger.append("finished")
        return self.record

    def _run_baselines(self) -> None:
        missing = {name: s for name, s in self.baselines.items() if name not in self.record.baselines}
        if not missing:
            return
        for name, measurement in self._compare(missing, fresh=False).items():
            if not measurement.ok and name == UNACCELERATED:
                raise SearchFailed(f"the unaccelerated pipeline itself fails: {measurement.error}")
            candidate = Candidate(number=-1, generation=-1, strategy=missing[name], origin=name)
            self.ledger.baseline(candidate, self._with_recorded_latency(missing[name], measurement))
            for watcher in self.watchers:
                watcher.measured(self.record, candidate)

    def _compare(self, strategies: Mapping[str, Strategy], *, fresh: bool) -> dict[str, Measurement]:
        """Run strategies in turn on the same batches, spread over the workers: their latencies compare fairly."""
        batches = self.protocol.batches(fresh)
        share = min(self.pool.size, len(batches))
        jobs = [Job(i, list(strategies.values()), batches[i::share]) for i in range(share)]
        results = {job.key: (job, shards) for job, shards in self.pool.map(jobs)}
        failed = [job for job, shards in results.values() if shards is None]
        if failed:
            return dict.fromkeys(strategies, Measurement(error=failed[0].errors[0]))
        # By shard number, not by finish: sums of floats depend on their order.
        ordered = [results[i][1] for i in range(share)]
        return {name: self._measure([shards[k] for shards in ordered]) for k, name in enumerate(strategies)}

    def _run_generation(self, generation: int) -> bool:
        asked = self.algorithm.ask()
        if not asked:
            return False
        first = generation * self.plan.population
        candidates = [
            Candidate(number=first + i, generation=generation, strategy=s, origin="initial" if generation == 0 else "offspring")
            for i, s in enumerate(asked)
        ]
        for candidate in candidates:
            known = self.record.candidates.get(candidate.number)
            if known is None:
                self.ledger.ask(candidate)
            elif known.strategy != candidate.strategy:
                raise LedgerError(
                    f"{self.ledger.path}: candidate {candidate.number} was {known.strategy.digest} and is now {candidate.strategy.digest}; "
                    "the ledger was made by another version of dato or its libraries: set another output"
                )
        todo = [c for c in candidates if c.number not in self.record.results]
        by_number = {c.number: c for c in todo}
        jobs = [Job(c.number, [c.strategy], self.protocol.batches()) for c in todo]
        # The longest first, so that little is left to wait for at a generation's end.
        jobs.sort(key=lambda job: -sum(step.cache_depth for step in job.strategies[0]))
        for job, shards in self.pool.map(jobs):
            candidate = by_number[job.key]
            self.ledger.result(candidate.number, self._to_measurement(candidate.strategy, job, shards))
            for watcher in self.watchers:
                watcher.measured(self.record, candidate)
        results = [self.record.results[c.number] for c in candidates]
        if generation == 0 and not any(r.ok for r in results):
            raise SearchFailed(f"all {len(results)} candidates of the first generation failed; the first error: {results[0].error}")
        self.algorithm.tell([(r.fid, r.latency_ms) if r.ok else None for r in results])
        if len(self.record.hypervolumes) <= generation:
            self.ledger.append("generation", generation=generation, hypervolume=self._hypervolume())
            for watcher in self.watchers:
                watcher.generation_done(self.record, generation)
        return True

    def _to_measurement(self, strategy: Strategy, job: Job, shards: Sequence[Shard] | None) -> Measurement:
        if shards is None:
            return Measurement(error="; then ".join(dict.fromkeys(job.errors)))
        try:
            measurement = self._measure([shards[0]])
        except ValueError as error:  # NaN features: the candidate is infeasible
            return Measurement(error=str(error))
        return self._with_recorded_latency(strategy, measurement)

    def _with_recorded_latency(self, strategy: Strategy, measurement: Measurement) -> Measurement:
        if not self.latencies or not measurement.ok:
            return measurement
        recorded = self.latencies.get(strategy.digest)
        if recorded is None:
            raise LedgerError(f"no latency is recorded for strategy {strategy.digest}: replay_latency names a ledger of another search")
        return Measurement.from_dict({**measurement.to_dict(), "latency_ms": recorded})

    def _hypervolume(self) -> float:
        reference = reference_point(self.record)
        return hypervolume([(m.fid, m.latency_ms) for _, m in self.record.evaluated()], reference)

    def _validate_winners(self) -> None:
        chosen = choose_winners(self.record, self.plan.min_speedup)
        # By digest: one candidate may win several aliases, and is measured once.
        strategies = {UNACCELERATED: self.baselines[UNACCELERATED], **{c.strategy.digest: c.strategy for c in chosen.values()}}
        fresh = self._compare(strategies, fresh=True)
        for alias, candidate in chosen.items():
            measurement = fresh[candidate.strategy.digest]
            if not measurement.ok:
                raise SearchFailed(f"the winner {alias!r} fails on fresh images: {measurement.error}; run the same command again")
            self.ledger.winner(
                Winner(
                    alias=alias,
                    candidate=candidate,
                    searched=self.record.results[candidate.number],
                    fresh=measurement,
                    fresh_baseline=fresh[UNACCELERATED],
                )
            )


def reference_point(record: SearchRecord) -> tuple[float, float]:
    """Where a hypervolume is measured from: twice the unaccelerated FID, and its latency."""
    _, plain = record.baselines[UNACCELERATED]
    return 2 * plain.fid, plain.latency_ms


def choose_winners(record: SearchRecord, min_speedup: float) -> dict[str, Candidate]:
    """`quality`, `balanced` and `fastest` from the front.

    fastest: the fastest whose FID is no worse than the unaccelerated one's by more than its interval.
    quality: the lowest FID among those at least `min_speedup` times faster, or of all where none is.
    balanced: the best of the weighted score FID + w x latency (Algorithm 1), w such that both objectives' ranges
    between those two weigh the same. One candidate may win more than once.
    """
    _, plain = record.baselines[UNACCELERATED]
    points = record.front()
    if not points:
        raise SearchFailed("no candidate could be measured, so there is no winner")
    spread = plain.fid_high - plain.fid if plain.fid_high == plain.fid_high else 0.0
    good = [(c, m) for c, m in points if m.fid <= plain.fid + spread]
    fastest = min(good or points, key=lambda p: p[1].latency_ms if good else p[1].fid)
    quick = [(c, m) for c, m in points if plain.latency_ms / m.latency_ms >= min_speedup]
    quality = min(quick or points, key=lambda p: p[1].fid)
    between = [p for p in points if min(fastest[1].latency_ms, quality[1].latency_ms) <= p[1].latency_ms <= max(fastest[1].latency_ms, quality[1].latency_ms)]
    fids, times = [m.fid for _, m in between], [m.latency_ms for _, m in between]
    weight = (max(fids) - min(fids)) / (max(times) - min(times)) if max(times) > min(times) else 0.0
    balanced = min(between, key=lambda p: p[1].fid + weight * p[1].latency_ms)
    return {"quality": quality[0], "balanced": balanced[0], "fastest": fastest[0]}
