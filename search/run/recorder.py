"""What is asked for and measured: shards become a measurement, which is in the ledger before anybody is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dato.strategy import Strategy
from search.evaluate.latency import CostTable
from search.evaluate.measure import measure_shards, paired
from search.evaluate.shards import Shard
from search.ledger import Ledger, LedgerError
from search.measurements import Measurement
from search.metrics.similarity import PlainFeatures
from search.optimize.pareto import hypervolume
from search.optimize.winners import reference_point
from search.records import UNACCELERATED, Candidate, SearchRecord, Watcher
from search.run.jobs import Job, Measure
from search.run.settings import SearchPlan


class Recorder:
    """Writes down candidates and what they gave, and tells the watchers.

    Args:
        ledger: Open for writing.
        plan: What the search is after.
        measure: Shards of one strategy to its measurement; raises ValueError where the images are no good. Called where results are,
            so that it is picklable; None until it is known, and set before anything is measured.
        watchers: Told of everything.
        latencies: Recorded latencies in ms by strategy digest and images, used in place of measured ones: repeats a search exactly.
        retry_failed: Measure once more what is recorded as failed: candidates, their promotions, baselines.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: SearchPlan,
        measure: Callable[[Sequence[Shard]], Measurement] | None,
        *,
        watchers: Sequence[Watcher] = (),
        latencies: Mapping[tuple[str, int], float] | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.ledger, self.plan, self.measure, self.retry_failed = ledger, plan, measure, retry_failed
        self.plain_features: PlainFeatures | None = None
        """Of the unaccelerated images, which feature distances are taken from; None until they are there, and where there are none."""
        self._watchers, self._latencies = watchers, latencies or {}
        self._numbers = {c.strategy.digest: n for n, c in self.record.candidates.items()}
        failed: set[tuple[int, int | None]] = {(n, None) for n, m in self.record.results.items() if not m.ok}
        failed |= {(n, images) for n, more in self.record.promotions.items() for images, m in more.items() if not m.ok}
        self._again = failed if retry_failed else set()

    @property
    def record(self) -> SearchRecord:
        """What is known so far."""
        return self.ledger.record

    def start(self) -> None:
        """Tell the watchers that the search begins or goes on."""
        for watcher in self._watchers:
            watcher.started(self.record)

    def number(self, strategy: Strategy) -> int:
        """A candidate's number, or that of the next one where the strategy was never asked for."""
        return self._numbers.get(strategy.digest, len(self.record.candidates))

    def ask(self, number: int, strategy: Strategy | None, parents: Sequence[str] = ()) -> Candidate:
        """A candidate asked for, written down with its parents by digest; the same as before where it was asked for before.

        Raises `LedgerError` where another strategy, or None, takes the place of one asked for before.
        """
        known = self.record.candidates.get(number)
        if known is not None:
            if strategy is None or known.strategy != strategy:
                raise LedgerError(
                    f"{self.ledger.path}: candidate {number} was {known.strategy.digest} and is now {strategy.digest if strategy else 'none'}; "
                    "the ledger was made by another version of dato or its libraries: set another output"
                )
            return known
        assert strategy is not None
        self._numbers[strategy.digest] = number
        origin = "offspring" if parents else "initial"
        numbers = tuple(sorted(self._numbers[digest] for digest in parents))
        candidate = Candidate(number=number, generation=number // self.plan.population, strategy=strategy, origin=origin, parents=numbers)
        self.ledger.ask(candidate)
        return candidate

    def is_due(self, number: int, images: int | None = None) -> bool:
        """Whether a candidate's result, or its promotion to so many images, is to be measured: for the first time, or as it failed."""
        known = number in self.record.results if images is None else images in self.record.promotions.get(number, {})
        return not known or (number, images) in self._again

    @property
    def measuring(self) -> Measure:
        """What is asked of a strategy's shards: `measure_shards`, with what this search knows."""
        return self.measuring_against(self.plain_features)

    def measuring_against(self, plain: PlainFeatures | None) -> Measure:
        """The same, with feature distances to other unaccelerated images, or with none."""
        if self.measure is None:
            raise RuntimeError("the recorder has no measure yet: set it before anything is measured")
        return Measure(measure_shards, (self.measure, plain))

    def measurement(self, strategy: Strategy, job: Job, measured: Measurement | None) -> Measurement:
        """What a strategy's job gave, complete; with an error where it failed."""
        if measured is None:
            return Measurement(error=job.reason, seconds=job.failed_s)
        return self.complete(strategy, measured)

    def complete(self, strategy: Strategy, measurement: Measurement) -> Measurement:
        """A measurement with its latency (`with_latency`) and the interval of its difference to the unaccelerated pipeline on the same images."""
        measurement = self.with_latency(strategy, measurement)
        return paired(measurement, self.record.plain(measurement.images)) if measurement.ok else measurement

    def with_latency(self, strategy: Strategy, measurement: Measurement) -> Measurement:
        """A measurement with a recorded or predicted latency, where one of these is asked for."""
        if not measurement.ok:
            return measurement
        if self._latencies:
            recorded = self._latencies.get((strategy.digest, measurement.images))
            if recorded is None:
                raise LedgerError(f"no latency is recorded for strategy {strategy.digest} on {measurement.images} images: latency_from names a ledger of another search")
            return replace(measurement, latency_ms=recorded)
        if self.record.costs is not None:
            predicted = CostTable.from_dict(self.record.costs).predict(strategy)
            return replace(measurement, latency_ms=predicted, measured_ms=measurement.latency_ms)
        return measurement

    def violation(self, measurement: Measurement) -> float:
        """By how much a measurement exceeds the limits; 0 where it keeps them, or failed."""
        return self.plan.objectives.violation(measurement, self.record.plain(measurement.images)) if measurement.ok else 0.0

    def values(self, measurement: Measurement) -> tuple[tuple[float, ...] | None, float]:
        """What an algorithm is told of a measurement: its objectives, None where it failed, and its violation of the limits."""
        return self.plan.objectives.values(measurement) if measurement.ok else None, self.violation(measurement)

    def told(self, number: int) -> tuple[tuple[float, ...] | None, float]:
        """The `values` that the algorithm was told of a candidate, or is to be."""
        return self.values(self.record.as_told(number))

    def bounds(self) -> tuple[float, float] | None:
        """Objectives beyond which nothing is gained, on the images of all candidates; None where there is only one."""
        return self.plan.objectives.bounds(self.record.plain(min(self.record.baselines_at[UNACCELERATED])))

    def result(self, candidate: Candidate, measurement: Measurement) -> None:
        """Write down what a candidate gave."""
        self.ledger.result(candidate.number, measurement)
        self._done(candidate)

    def retried(self, candidate: Candidate, measurement: Measurement) -> None:
        """Write down what a failed candidate gave now; what the algorithm was told of it stays told, so that a replay asks for the same."""
        self.ledger.retried(candidate.number, measurement)
        self._done(candidate)

    def promotion(self, candidate: Candidate, images: int, measurement: Measurement) -> None:
        """Write down what a candidate gave on more images."""
        self.ledger.promotion(candidate.number, images, measurement)
        self._done(candidate, images)

    def baseline(self, candidate: Candidate, measurement: Measurement, *, is_last: bool) -> None:
        """Write down what a named strategy gave; the watchers are told of the last of its numbers of images."""
        self.ledger.baseline(candidate, measurement)
        if is_last:
            self._tell(candidate)

    def _done(self, candidate: Candidate, images: int | None = None) -> None:
        self._again.discard((candidate.number, images))
        self._tell(candidate)

    def _tell(self, candidate: Candidate) -> None:
        for watcher in self._watchers:
            watcher.measured(self.record, candidate)

    def close_generation(self, generation: int) -> None:
        """Write down the hypervolume at the end of a generation, unless it is there."""
        if len(self.record.hypervolumes) > generation:
            return
        points = [(m.fid, m.latency_ms) for _, m in self.record.evaluated()]
        self.ledger.append("generation", generation=generation, hypervolume=hypervolume(points, reference_point(self.record)))
        for watcher in self._watchers:
            watcher.generation_done(self.record, generation)
