"""Winners are measured on fresh images, and `fastest` must be no worse there too: the next one is tried where one is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from search.evaluate.measure import paired
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shards import Shard
from search.measurements import Measurement
from search.metrics.similarity import PlainFeatures
from search.optimize.winners import SearchFailed, choose_winners, compare_to_tolerance, in_order_of_speed
from search.records import UNACCELERATED, Candidate, Winner
from search.run.in_turn import run_in_turn
from search.run.jobs import Measure
from search.run.pools import Pool
from search.run.recorder import Recorder

AT_ONCE = 4
"""Candidates for `fastest` that are checked beside one run of the unaccelerated pipeline, which costs more than all of them."""


@dataclass(frozen=True)
class _Made:
    """A candidate's shards of the first fresh images, and the unaccelerated pipeline's that ran in turn with them."""

    images: int
    own: list[Shard]
    plain: list[Shard]


class Validation:
    """Chooses winners and checks them on images that chose nothing; what the ledger holds is not measured again.

    Args:
        recorder: Of the search's ledger and plan: tolerance, speedups and the limit of fresh images.
        protocol: How a candidate is measured.
        pool: Where.
        say: Told what is being checked.
    """

    def __init__(self, recorder: Recorder, protocol: EvaluationProtocol, pool: Pool, say: Callable[[str], None] = lambda _line: None) -> None:
        self._ledger, self._plan, self._recorder, self._record = recorder.ledger, recorder.plan, recorder, recorder.record
        self._protocol, self._pool, self._say = protocol, pool, say
        self._made: dict[int, _Made] = {}
        """What this process has of each candidate: more images are added to it."""

    def run(self) -> None:
        """Choose, check and write down the winners. Raises `SearchFailed` where nothing could be measured or fresh images fail."""
        plan = self._plan
        chosen = choose_winners(self._record, plan.winner_speedup, plan.objectives, speedups=plan.winner_speedups, tolerance=plan.tolerance)
        waiting = in_order_of_speed(self._record, plan.tolerance, plan.objectives)
        self._check([*chosen.values(), *waiting[:AT_ONCE]])
        fastest = self._first_that_passes(waiting)
        for alias in ("quality", "balanced", "fastest", *chosen):
            candidate = fastest if alias == "fastest" else chosen[alias]
            if candidate and alias not in self._record.winners and any(m.ok for m in self._record.fresh[candidate.number].values()):
                self._write(alias, candidate)

    def _first_that_passes(self, waiting: Sequence[Candidate]) -> Candidate | None:
        for place, candidate in enumerate(waiting):
            if place % AT_ONCE == 0:
                self._check(waiting[place : place + AT_ONCE])
            images = self._protocol.images
            while True:
                m, plain = self._fresh(candidate.number, images), self._fresh(-1, images)
                found = compare_to_tolerance(m, plain, self._plan.tolerance) if m.ok else "fails"
                if found != "undecided" or images >= self._most():
                    break
                images = min(2 * images, self._most())
                self._say(f"candidate {candidate.number} is not decided yet: {images} fresh images")
                self._measure_on(images, [candidate])
            if found == "passes":
                return candidate
            self._say(f"candidate {candidate.number} is not shown to be within the tolerance on {images} fresh images; the next is tried")
        return None

    def _most(self) -> int:
        return max(self._protocol.images, self._plan.max_fresh_images or 4 * self._protocol.images)

    def _fresh(self, number: int, images: int) -> Measurement:
        return self._record.fresh[number][images]

    def _check(self, candidates: Iterable[Candidate]) -> None:
        self._measure_on(self._protocol.images, candidates)

    def _measure_on(self, images: int, candidates: Iterable[Candidate]) -> None:
        """Measure candidates on the first `images` fresh images in turn with the unaccelerated pipeline, paying for what is new only.

        The unaccelerated pipeline runs again beside each group of candidates, even where its images are known: latencies that were
        measured minutes apart do not compare.
        """
        due = {c.number: c.strategy for c in candidates if images not in self._record.fresh.get(c.number, {})}
        if not due:
            return
        have = {self._made[n].images if n in self._made else 0 for n in due}
        begin = have.pop() if len(have) == 1 else 0
        self._say(f"checking {len(due)} candidate{'s' if len(due) > 1 else ''} on fresh images {begin + 1} to {images}")
        named = {UNACCELERATED: self._record.baselines[UNACCELERATED][0].strategy, **{str(n): s for n, s in due.items()}}
        shards, errors = run_in_turn(self._pool, named, self._protocol.batches(fresh=True, first=begin, last=images))
        if UNACCELERATED in errors:
            raise SearchFailed(f"the unaccelerated pipeline itself fails on fresh images: {errors[UNACCELERATED]}; run the same command again")
        made: dict[int, _Made] = {}
        for number in due:
            if str(number) in errors:
                self._ledger.fresh(number, images, Measurement(error=errors[str(number)], images=images))
                continue
            before = self._made[number] if begin else _Made(0, [], [])
            made[number] = _Made(images, [*before.own, *shards[str(number)]], [*before.plain, *shards[UNACCELERATED]])
        self._made |= made
        if made:
            self._judge(made, images)

    def _judge(self, made: Mapping[int, _Made], images: int) -> None:
        """Measure candidates, and the unaccelerated pipeline that ran in turn with them, and write down both."""
        plain = next(iter(made.values())).plain
        (features,) = self._pool.measure(Measure(PlainFeatures.of_shards), [(plain,)])
        (beside,) = self._pool.measure(self._recorder.measuring_against(None), [(plain,)])
        if not beside.ok:
            raise SearchFailed(f"the unaccelerated pipeline itself fails on fresh images: {beside.error}")
        if images not in self._record.fresh.get(-1, {}):
            self._ledger.fresh(-1, images, beside)
        found = self._pool.measure(self._recorder.measuring_against(features), [(m.own,) for m in made.values()])
        for number, measured in zip(made, found, strict=True):
            m = paired(measured, self._fresh(-1, images)) if measured.ok else Measurement(error=measured.error, images=images)
            self._ledger.fresh(number, images, m, (beside.latency_ms, beside.latency_low_ms, beside.latency_high_ms))

    def _write(self, alias: str, candidate: Candidate) -> None:
        images = max(n for n, m in self._record.fresh[candidate.number].items() if m.ok)
        latency, low, high = self._record.fresh_plain_ms[candidate.number, images]
        plain = replace(self._fresh(-1, images), fid_left_out=(), latency_ms=latency, latency_low_ms=low, latency_high_ms=high)
        searched = {c.number: m for c, m in self._record.evaluated(self._record.images)}[candidate.number]
        self._ledger.winner(Winner(alias=alias, candidate=candidate, searched=searched, fresh=self._fresh(candidate.number, images), fresh_baseline=plain))
