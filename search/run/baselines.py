"""The named strategies that a search is compared with, measured before its candidates."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dato.strategy import Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.measurements import Measurement
from search.metrics.similarity import PlainFeatures
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate
from search.run.in_turn import run_in_turn
from search.run.jobs import Measure
from search.run.pools import Pool
from search.run.recorder import Recorder

_log = logging.getLogger(__name__)


class Baselines:
    """Measures what the ledger does not hold yet, and has the unaccelerated features that candidates are compared with.

    Args:
        recorder: Writes down what they give.
        protocol: How they are measured, at each of its numbers of images.
        strategies: By name; "unaccelerated" is one.
        kept: Where the unaccelerated features are kept for as long as the search goes on, and beside it, in a folder of their own, all
            baselines' until they are recorded; None for nowhere.
    """

    def __init__(self, recorder: Recorder, protocol: EvaluationProtocol, strategies: Mapping[str, Strategy], kept: ShardStore | None) -> None:
        self._recorder, self._protocol, self._strategies, self._kept = recorder, protocol, dict(strategies), kept
        self._unrecorded = ShardStore(kept.folder.with_name(f"{kept.folder.name}-baselines")) if kept else None

    def run(self, pool: Pool) -> None:
        """Measure and write down. Raises `SearchFailed` where the unaccelerated pipeline fails, or its features cannot be compared with as asked for."""
        self._measure(pool)
        self._recall_plain(pool)

    def clear(self) -> None:
        """Delete what is kept."""
        for kept in (self._kept, self._unrecorded):
            if kept:
                kept.clear()

    def _measure(self, pool: Pool) -> None:
        recorder, there = self._recorder, self._recorder.record.baselines_at
        missing = {n: s for n, s in self._strategies.items() if self._protocol.images not in there.get(n, {}) and not self._failed_for_good(n)}
        if not missing:
            return
        earlier: dict[str, list[Shard]] = {name: [] for name in missing}
        stages: list[tuple[int, dict[str, list[Shard]]]] = []
        errors: dict[str, str] = {}
        for first, last in itertools.pairwise((0, *self._protocol.counts)):
            shards, failed = self._shards(pool, {n: s for n, s in missing.items() if n not in errors}, first, last)
            if UNACCELERATED in failed:
                raise SearchFailed(f"the unaccelerated pipeline itself fails: {failed[UNACCELERATED]}")
            errors |= failed
            earlier = {name: [*parts, *shards.get(name, ())] for name, parts in earlier.items()}
            stages.append((last, earlier))
        if UNACCELERATED in missing:
            self._keep_plain(pool, earlier[UNACCELERATED])
        else:
            self._recall_plain(pool)
        names = sorted(missing, key=lambda n: n != UNACCELERATED)  # the others are compared with it
        works = [(last, name) for last, _ in stages for name in names if name not in errors and last not in there.get(name, {})]
        shards_of = dict(stages)
        found = dict(zip(works, pool.measure(recorder.measuring, [(shards_of[last][name],) for last, name in works]), strict=True))
        for last in shards_of:
            for name in names:
                if last in there.get(name, {}):
                    continue  # recorded before an interruption
                measurement = found.get((last, name)) or Measurement(error=errors[name])
                if not measurement.ok:
                    if name == UNACCELERATED:
                        raise SearchFailed(f"the unaccelerated pipeline itself fails: {measurement.error}")
                    measurement = replace(measurement, images=last)
                complete = recorder.with_latency if name == UNACCELERATED else recorder.complete
                measurement = complete(missing[name], measurement)
                candidate = Candidate(number=-1, generation=-1, strategy=missing[name], origin=name)
                recorder.baseline(candidate, measurement, is_last=last == self._protocol.images)
        if self._unrecorded:
            self._unrecorded.clear()

    def _failed_for_good(self, name: str) -> bool:
        """Whether a baseline is recorded as failed, and is not to be tried again."""
        return not self._recorder.retry_failed and any(not m.ok for m in self._recorder.record.baselines_at.get(name, {}).values())

    def _shards(self, pool: Pool, strategies: Mapping[str, Strategy], first: int, last: int) -> tuple[dict[str, list[Shard]], dict[str, str]]:
        """As `run_in_turn`, of images `first` to `last`; a driver that was killed after some of these has kept them."""
        kept, names = self._unrecorded, sorted(self._strategies)
        there = {n: parts for n in strategies if kept and (parts := kept.get(names.index(n), last))}
        due = {n: s for n, s in strategies.items() if n not in there}
        found, errors = run_in_turn(pool, due, self._protocol.batches(first=first, last=last)) if due else ({}, {})
        for name, parts in found.items():
            if kept:
                kept.put(names.index(name), last, parts)
        return {**there, **found}, errors

    def _keep_plain(self, pool: Pool, shards: Sequence[Shard]) -> None:
        """What feature distances are taken from. Raises `SearchFailed` where they are limited and there can be none."""
        (self._recorder.plain_features,) = pool.measure(Measure(PlainFeatures.of_shards), [(shards,)])
        if self._recorder.plain_features is None and self._recorder.plan.objectives.max_distance is not None:
            raise SearchFailed(
                "search.max_distance limits the feature distance to the unaccelerated images, which cannot be computed: the evaluator tells of no images, or the "
                "features of all of them are the same; look at the images, set another protocol.features, or search.max_distance=null"
            )
        if self._kept and self._recorder.plain_features is not None:
            self._kept.put(UNACCELERATED, self._protocol.images, shards)

    def _recall_plain(self, pool: Pool) -> None:
        """Have the unaccelerated features of an earlier run of this search, which are made again where they were not kept."""
        record = self._recorder.record
        known = record.baselines.get(UNACCELERATED)
        if self._recorder.plain_features is not None or record.finished or known is None or known[1].feature_distance is None:
            return
        wanted = {i for batch in self._protocol.batches() for i in batch}
        shards = (self._kept.get(UNACCELERATED, self._protocol.images) if self._kept else None) or []
        if wanted - {i for s in shards for i in s.indices}:
            _log.warning("the features of the unaccelerated images are not there any more: making these %d images again", len(wanted))
            found, errors = run_in_turn(pool, {UNACCELERATED: self._strategies[UNACCELERATED]}, self._protocol.batches())
            if errors:
                raise SearchFailed(f"the unaccelerated pipeline itself fails: {errors[UNACCELERATED]}")
            shards = found[UNACCELERATED]
        self._keep_plain(pool, shards)
