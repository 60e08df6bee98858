"""The check on fresh images, with an evaluator whose strategies get worse there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dato.strategy import Step, Strategy
from search.evaluate.measure import Metrics, measure, paired
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shards import Shard
from search.ledger import Ledger, read_ledger
from search.metrics.intervals import Groups
from search.metrics.quality import Fid
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate, SearchRecord
from search.run.pools import InProcessPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.validation import Validation

PROTOCOL = EvaluationProtocol(images=40, batch=10)
FULL, SHIFT = Strategy.full(4), torch.linspace(0.1, 0.8, 4)
METRICS = Metrics(fid=Fid(torch.randn(2000, 4, generator=torch.Generator().manual_seed(5))), groups=Groups(turn=4))


class Sets:
    """Features of a strategy: the unaccelerated ones, moved. The number of shallow calls makes it fast; the prune ratio tells by how much it is moved.

    Args:
        fresh: Added to the move on fresh images: what the search overlooked, by strategy digest.
    """

    def __init__(self, fresh: dict[str, float] | None = None) -> None:
        self.fresh, self.made = fresh or {}, list[tuple[str, int]]()

    def build(self) -> Sets:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        shards = []
        for s in strategies:
            indices = [i for b in batches for i in b]
            self.made.append((s.digest, len(indices)))
            rows = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in indices])
            more = self.fresh.get(s.digest, 0.0)
            new = torch.tensor([more if i >= 1_000_000 else 0.0 for i in indices])[:, None]
            ms = 100.0 if s == FULL else 100.0 / (2 + sum(x.cache_depth == 1 for x in s))
            shards.append(Shard(rows[:, :4] + SHIFT + s[1].prune_ratio + new + 0.01 * rows[:, 4:], [ms] * len(batches), seconds=1.0, batch=10))
        return shards


def strategy(shallow: int, moved: float) -> Strategy:
    return Strategy((Step(12), *[Step(1 if i < shallow else 12, moved) for i in range(3)]))


FAST, MIDDLE, SLOW = strategy(3, 0.0), strategy(2, 0.01), strategy(1, 0.02)


def validate(folder: Path, evaluator: Sets, strategies: Sequence[Strategy] = (FAST, MIDDLE, SLOW), **plan: object) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "toy", {}, {})

    def judge(shards: Sequence[Shard]):  # type: ignore[no-untyped-def]
        return measure(shards, METRICS)

    try:
        if not ledger.record.results:
            plain = judge(evaluator.run([FULL], PROTOCOL.batches()))
            ledger.baseline(Candidate(number=-1, generation=-1, strategy=FULL, origin=UNACCELERATED), plain)
            for number, s in enumerate(strategies):
                ledger.ask(Candidate(number=number, generation=0, strategy=s))
                ledger.result(number, paired(judge(evaluator.run([s], PROTOCOL.batches())), plain))
        evaluator.made.clear()
        settings = {"generations": 1, "population": 4, "tolerance": 0.15, **plan}
        Validation(Recorder(ledger, SearchPlan(**settings), judge), PROTOCOL, InProcessPool(evaluator)).run()  # type: ignore[arg-type]
        return ledger.record
    finally:
        ledger.close()


def test_the_fastest_that_stays_within_the_tolerance_on_fresh_images(tmp_path: Path) -> None:
    record = validate(tmp_path, Sets(), winner_speedups=[2, 4])
    assert record.winners["fastest"].candidate.strategy == FAST
    assert record.winners["fastest"].speedup == pytest.approx(5.0)
    assert set(record.winners) == {"quality", "balanced", "fastest", "at-2x", "at-4x"}
    assert all(w.fresh.images == w.fresh_baseline.images == 40 for w in record.winners.values())
    assert str(read_ledger(tmp_path / "ledger.jsonl").winners) == str(record.winners)


def test_one_that_fails_there_is_dropped_and_the_next_is_tried(tmp_path: Path) -> None:
    record = validate(tmp_path, Sets(fresh={FAST.digest: 0.5}))
    assert record.winners["fastest"].candidate.strategy == MIDDLE
    assert record.fresh[0][40].difference_low > 0.15


def test_without_any_there_is_no_fastest_but_the_other_winners(tmp_path: Path) -> None:
    record = validate(tmp_path, Sets(fresh={s.digest: 0.5 for s in (FAST, MIDDLE, SLOW)}))
    assert set(record.winners) == {"quality", "balanced"}


def test_what_is_not_decided_gets_more_images_up_to_the_limit(tmp_path: Path) -> None:
    """On fresh images its difference lies about at the tolerance."""
    evaluator = Sets(fresh={FAST.digest: 0.0365})
    record = validate(tmp_path / "a", evaluator, strategies=[FAST], max_fresh_images=160)
    assert sorted(record.fresh[0]) == [40, 80, 160]
    assert [count for digest, count in evaluator.made if digest == FAST.digest] == [40, 40, 80], "paying for the new images only"
    m = record.fresh[0][160]
    assert m.difference_low < 0.15 < m.difference_high
    assert "fastest" not in record.winners
    assert sorted(validate(tmp_path / "b", Sets(fresh={FAST.digest: 0.0365}), strategies=[FAST], max_fresh_images=60).fresh[0]) == [40, 60]


def test_cut_after_any_line_it_ends_with_the_same_winners(tmp_path: Path) -> None:
    fresh = {FAST.digest: 0.0365, MIDDLE.digest: 0.5}
    whole = validate(tmp_path / "whole", Sets(fresh=fresh), winner_speedups=[4])
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"fresh"' in line[:20])
    for count in range(first, len(lines)):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:count]))
        again = validate(folder, Sets(fresh=fresh), winner_speedups=[4])
        assert {a: w.candidate.number for a, w in again.winners.items()} == {a: w.candidate.number for a, w in whole.winners.items()}
        assert {n: sorted(m) for n, m in again.fresh.items()} == {n: sorted(m) for n, m in whole.fresh.items()}


def test_images_that_are_not_finite_do_not_win(tmp_path: Path) -> None:
    record = validate(tmp_path / "a", Sets(fresh={FAST.digest: float("nan")}))
    assert record.winners["fastest"].candidate.strategy == MIDDLE
    assert not record.fresh[0][40].ok
    with pytest.raises(SearchFailed, match="unaccelerated pipeline itself fails on fresh images"):
        validate(tmp_path / "b", Sets(fresh={FULL.digest: float("nan")}))


class Fails(Sets):
    """One strategy fails on fresh images, as one does whose images are not finite: beside others, which go on, its error is in its shard."""

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        shards, error = super().run(strategies, batches), "ValueError: images of the strategy are not finite"
        if batches[0][0] < 1_000_000 or FAST not in strategies:
            return shards
        if len(strategies) == 1:
            raise ValueError(error)
        return [replace(shard, error=error) if s == FAST else shard for s, shard in zip(strategies, shards, strict=True)]


class Raises(Fails):
    """It ends the job for its neighbours too, as where it takes the worker with it."""

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        shards = super().run(strategies, batches)
        if any(shard.error for shard in shards):
            raise ValueError("nothing works any more")
        return shards


@pytest.mark.parametrize("evaluator", [Fails(), Raises()])
def test_a_candidate_that_fails_on_fresh_images_is_dropped(tmp_path: Path, evaluator: Fails) -> None:
    record = validate(tmp_path, evaluator)
    assert record.winners["fastest"].candidate.strategy == MIDDLE
    assert "are not finite" in (record.fresh[0][40].error or "")
    assert all(w.candidate.strategy != FAST for w in record.winners.values())
