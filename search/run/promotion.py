"""Promotion: the candidates that are best on few images are measured on more, at the cost of the new images only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.measurements import Measurement
from search.optimize.pareto import first_ranks
from search.records import Candidate
from search.run.jobs import Job
from search.run.pools import Pool
from search.run.recorder import Recorder


class Promotion:
    """Keeps the shards of the candidates that may be promoted, and promotes them.

    Args:
        recorder: Writes down what they give.
        protocol: Its fidelities are the numbers of images.
        kept: Where shards are kept.
    """

    def __init__(self, recorder: Recorder, protocol: EvaluationProtocol, kept: ShardStore) -> None:
        self._recorder, self._protocol, self._kept = recorder, protocol, kept
        self._promising: list[tuple[Candidate, Measurement]] = []
        """Those of which shards are kept."""

    def keep(self, candidate: Candidate, measurement: Measurement, fetch: Callable[[], Sequence[Shard] | None]) -> None:
        """Keep a candidate's shards where it is promising, and delete those of the candidates that are not any more.

        Args:
            candidate: Whose.
            measurement: What it gave.
            fetch: Brings its shards here: only where they are kept. Those that are lost are made again where they are needed.
        """
        known = self._promising or self.promising(measurement.images, self._recorder.plan.promote_ranks)
        # Either all of them are within the limits, or none is yet. One that is not promising any more never is again.
        before, now = bool(known) and not self._recorder.violation(known[0][1]), not self._recorder.violation(measurement)
        if now or not before:
            known = first_ranks([*(known if before == now else ()), (candidate, measurement)], self._recorder.plan.promote_ranks)
        self._promising = known
        chosen = [c for c, _ in known]
        if candidate in chosen and (shards := fetch()):
            self._kept.put(candidate.number, measurement.images, shards)
        self._kept.keep_only(chosen)

    def promising(self, images: int, ranks: int) -> list[tuple[Candidate, Measurement]]:
        """The candidates of the first ranks among those measured on so many images and within the limits, or among all where none is."""
        return first_ranks(self._within_limits(images) or self._recorder.record.evaluated(images), ranks)

    def _within_limits(self, images: int) -> list[tuple[Candidate, Measurement]]:
        """Candidates measured on so many images that keep the search's limits."""
        return [(c, m) for c, m in self._recorder.record.evaluated(images) if not self._recorder.violation(m)]

    def run(self, pool: Pool) -> None:
        """Measure the best at each number of images on the next."""
        for low, high in itertools.pairwise(self._protocol.counts):
            ranks, known = self._recorder.plan.promote_ranks, self._recorder.record.evaluated(low)
            while True:
                chosen = self.promising(low, ranks)
                self._measure([c for c, _ in chosen if self._recorder.is_due(c.number, high)], low, high, pool)
                # Those at a limit may be beyond it on more images: the next ranks go on until one is within.
                if self._within_limits(high) or len(chosen) >= len(self._within_limits(low) or known):
                    break
                ranks += 1

    def _measure(self, due: Sequence[Candidate], low: int, high: int, pool: Pool) -> None:
        recorder, earlier = self._recorder, {c.number: self._kept.get(c.number, low) or [] for c in due}
        for job, made in pool.map(self._job(c, low if earlier[c.number] else 0, high, earlier[c.number]) for c in due):
            candidate = recorder.record.candidates[job.key]
            measurement = recorder.measurement(candidate.strategy, job, made.value if made else None)
            if made and measurement.ok and (shards := made.fetch()):
                self._kept.put(candidate.number, high, [*earlier[job.key], *shards])
            recorder.promotion(candidate, high, measurement)

    def _job(self, candidate: Candidate, first: int, last: int, earlier: Sequence[Shard]) -> Job:
        batches = self._protocol.batches(first=first, last=last)
        return Job(candidate.number, [candidate.strategy], batches, measure=self._recorder.measuring, beside=(earlier,))
