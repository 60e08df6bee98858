"""The named strategies that a search is compared with, measured before its candidates, and what candidates are compared with later."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dato.strategy import Strategy
from search.evaluate.latency import CostTable
from search.evaluate.measure import paired
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger, LedgerError
from search.metrics.similarity import PlainFeatures, with_distance
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate, Measurement, SearchRecord, Watcher
from search.run.jobs import Job
from search.run.pools import Pool
from search.run.settings import SearchPlan

_log = logging.getLogger(__name__)


class Baselines:
    """The part of `search.driver.Driver` that measures baselines and compares candidates with them; the driver makes its attributes."""

    ledger: Ledger
    plan: SearchPlan
    protocol: EvaluationProtocol
    pool: Pool
    baselines: dict[str, Strategy]
    watchers: Sequence[Watcher]
    latencies: Mapping[tuple[str, int], float]
    _measure: Callable[[Sequence[Shard]], Measurement]
    _kept: ShardStore | None
    _kept_baselines: ShardStore | None
    _plain: PlainFeatures | None
    _retry_failed: bool

    @property
    def record(self) -> SearchRecord:
        """What is known so far."""
        return self.ledger.record

    def _run_baselines(self) -> None:
        there = self.record.baselines_at
        missing = {n: s for n, s in self.baselines.items() if self.protocol.images not in there.get(n, {}) and not self._failed_for_good(n)}
        if not missing:
            return
        earlier: dict[str, list[Shard]] = {name: [] for name in missing}
        stages: list[tuple[int, dict[str, list[Shard]]]] = []
        errors: dict[str, str] = {}
        for first, last in itertools.pairwise((0, *self.protocol.counts)):
            shards, failed = self._baseline_shards({n: s for n, s in missing.items() if n not in errors}, first, last)
            if UNACCELERATED in failed:
                raise SearchFailed(f"the unaccelerated pipeline itself fails: {failed[UNACCELERATED]}")
            errors |= failed
            earlier = {name: [*parts, *shards.get(name, ())] for name, parts in earlier.items()}
            stages.append((last, earlier))
        if UNACCELERATED in missing:
            self._keep_plain(earlier[UNACCELERATED])
        else:
            self._recall_plain()
        for last, shards in stages:
            for name in sorted(missing, key=lambda n: n != UNACCELERATED):  # the others are compared with it
                if name in errors:
                    measurement = Measurement(error=errors[name], images=last)
                else:
                    measurement = with_distance(self._measure(shards[name]), shards[name], self._plain)
                    measurement = self._with_latency(missing[name], measurement)
                    if name != UNACCELERATED:
                        measurement = self._with_interval(measurement)
                candidate = Candidate(number=-1, generation=-1, strategy=missing[name], origin=name)
                if last in there.get(name, {}):
                    continue  # recorded before an interruption
                self.ledger.baseline(candidate, measurement)
                if last == self.protocol.images:
                    for watcher in self.watchers:
                        watcher.measured(self.record, candidate)
        if self._kept_baselines:
            self._kept_baselines.clear()

    def _keep_plain(self, shards: Sequence[Shard]) -> None:
        """What feature distances are taken from. Raises `SearchFailed` where they are limited and there can be none."""
        self._plain = PlainFeatures.of_shards(shards)
        if self._plain is None and self.plan.objectives.max_distance is not None:
            raise SearchFailed(
                "search.max_distance limits the feature distance to the unaccelerated images, which cannot be computed: the evaluator tells of no images, or the "
                "features of all of them are the same; look at the images, set another protocol.features, or search.max_distance=null"
            )
        if self._kept and self._plain is not None:
            self._kept.put(UNACCELERATED, self.protocol.images, shards)

    def _recall_plain(self) -> None:
        """Have the unaccelerated features of an earlier run of this search, which are made again where they were not kept."""
        known = self.record.baselines.get(UNACCELERATED)
        if self._plain is not None or self.record.finished or known is None or known[1].feature_distance is None:
            return
        wanted = {i for batch in self.protocol.batches() for i in batch}
        shards = (self._kept.get(UNACCELERATED, self.protocol.images) if self._kept else None) or []
        if wanted - {i for s in shards for i in s.indices}:
            _log.warning("the features of the unaccelerated images are not there any more: making these %d images again", len(wanted))
            found, errors = self._compare({UNACCELERATED: self.baselines[UNACCELERATED]}, self.protocol.batches())
            if errors:
                raise SearchFailed(f"the unaccelerated pipeline itself fails: {errors[UNACCELERATED]}")
            shards = found[UNACCELERATED]
        self._keep_plain(shards)

    def _failed_for_good(self, name: str) -> bool:
        """Whether a baseline is recorded as failed, and is not to be tried again."""
        return not self._retry_failed and any(not m.ok for m in self.record.baselines_at.get(name, {}).values())

    def _baseline_shards(self, strategies: Mapping[str, Strategy], first: int, last: int) -> tuple[dict[str, list[Shard]], dict[str, str]]:
        """As `_compare`, of images `first` to `last`; a driver that was killed after some of these has kept them."""
        kept, names = self._kept_baselines, sorted(self.baselines)
        there = {n: parts for n in strategies if kept and (parts := kept.get(names.index(n), last))}
        due = {n: s for n, s in strategies.items() if n not in there}
        found, errors = self._compare(due, self.protocol.batches(first=first, last=last)) if due else ({}, {})
        for name, parts in found.items():
            if kept:
                kept.put(names.index(name), last, parts)
        return {**there, **found}, errors

    def _compare(self, strategies: Mapping[str, Strategy], batches: Sequence[Sequence[int]]) -> tuple[dict[str, list[Shard]], dict[str, str]]:
        """Run strategies in turn on the same batches, spread over the workers: their latencies compare fairly.

        One that fails beside others is run alone, the unaccelerated pipeline first: shards of those that work, errors of the others.
        """
        share = min(self.pool.size, len(batches))
        jobs = [Job(i, list(strategies.values()), batches[i::share]) for i in range(share)]
        results = {job.key: (job, shards) for job, shards in self.pool.map(jobs)}
        # By shard number, not by finish: sums of floats depend on their order.
        ordered = [results[i] for i in range(share)]
        found = {name: [shards[k] for _, shards in ordered if shards is not None] for k, name in enumerate(strategies)}
        failed = [name for name, shards in found.items() if len(shards) < share or (len(found) > 1 and any(s.error for s in shards))]
        errors: dict[str, str] = {}
        for name in sorted(failed, key=lambda n: n != UNACCELERATED):
            del found[name]
            if len(strategies) == 1:
                return found, {name: next(job.errors[0] for job, shards in ordered if shards is None)}
            alone, error = self._compare({name: strategies[name]}, batches)
            found, errors = found | alone, errors | error
            if UNACCELERATED in errors:
                break
        return found, errors

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
                raise LedgerError(f"no latency is recorded for strategy {strategy.digest} on {measurement.images} images: latency_from names a ledger of another search")
            return replace(measurement, latency_ms=recorded)
        if self.record.costs is not None:
            predicted = CostTable.from_dict(self.record.costs).predict(strategy)
            return replace(measurement, latency_ms=predicted, measured_ms=measurement.latency_ms)
        return measurement
