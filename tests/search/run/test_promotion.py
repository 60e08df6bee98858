"""Promotion to more images, on evaluators that give each image a feature of its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from dato.strategy import Step, Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger
from search.measurements import Measurement
from search.optimize.objectives import Objectives
from search.records import UNACCELERATED, Candidate
from search.run.promotion import Promotion
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from tests.search.run.searches import MODES, STEPS, Images, of_shards, outcome, search_in_steps


@pytest.mark.parametrize("mode", MODES)
def test_promotion_pays_for_new_images_only_and_compares_equal_counts(tmp_path: Path, mode: str) -> None:
    evaluator = Images()
    record = search_in_steps(tmp_path, evaluator, mode=mode)
    assert len(record.results) == 40
    assert {m.images for m in record.results.values()} == {8}
    assert record.images == 40
    low, middle, high = (record.front(images) for images in (8, 20, 40))
    assert {c.number for c, _ in middle} <= {c.number for c, _ in low} == {n for n, more in record.promotions.items() if 20 in more}
    assert {n for n, more in record.promotions.items() if 40 in more} == {c.number for c, _ in middle}
    assert record.front() == high
    won = {w.candidate.strategy.digest for w in record.winners.values()}
    for n, candidate in record.candidates.items():
        wanted = max([8, *record.promotions.get(n, {})]) + (40 if candidate.strategy.digest in won else 0)
        assert evaluator.made[candidate.strategy.digest] == wanted
        if n in record.promotions:
            # In one piece or in three, the same numbers.
            whole = of_shards(Images().run([candidate.strategy], STEPS.batches(last=20)))
            assert record.promotions[n][20].fid == whole.fid
    assert all(w.searched.images == 40 for w in record.winners.values())
    assert not (tmp_path / "kept").exists(), "nothing is left behind"


def test_lost_shards_cost_time_and_nothing_else(tmp_path: Path) -> None:
    undisturbed = search_in_steps(tmp_path / "a", Images())

    class Forgets(ShardStore):
        def get(self, number: int, images: int) -> None:
            path = self.path(number, images)
            path.write_bytes(path.read_bytes()[:40])
            assert super().get(number, images) is None

    record = search_in_steps(tmp_path / "b", Images(), kept=Forgets)
    assert outcome(record) == outcome(undisturbed)


def test_a_full_disk_for_kept_features_costs_time_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    undisturbed = search_in_steps(tmp_path / "a", Images())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "kept").write_text("in the way")  # nothing can be written into a folder of this name
    evaluator = Images()
    assert outcome(search_in_steps(tmp_path / "b", evaluator)) == outcome(undisturbed)
    assert [r.getMessage().count("features are not kept in") for r in caplog.records] == [1]
    promoted = [undisturbed.candidates[n].strategy.digest for n in undisturbed.promotions]
    assert all(evaluator.made[digest] > 20 for digest in promoted)


@pytest.mark.parametrize("limits", [{}, {"min_speedup": 2.0}, {"max_fid": 11.0}, {"max_fid": 0.1}])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_promising_is_the_same_result_by_result_as_all_at_once(tmp_path: Path, limits: dict[str, float], ranks: int) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "steps", {}, {})
    recorder = Recorder(ledger, SearchPlan(generations=9, population=8, promote_ranks=ranks, objectives=Objectives(**limits)), of_shards)
    kept = ShardStore(tmp_path / "kept")
    promotion = Promotion(recorder, EvaluationProtocol(images=40, fidelities=[8], batch=4), kept)
    ledger.baseline(Candidate(number=-1, generation=-1, strategy=Strategy.full(8), origin=UNACCELERATED), Measurement(fid=10.0, images=8, latency_ms=8.0))
    chance, strategies = random.Random(ranks), set()
    while len(strategies) < 60:
        strategies.add(Strategy(tuple(Step(chance.choice((0, 1, 12)), 0.3) for _ in range(8))).canonical())
    for number, strategy in enumerate(sorted(strategies, key=lambda s: s.digest)):
        candidate = recorder.ask(number, strategy)
        # Few values, so that there are ties.
        m = Measurement(fid=chance.randint(9, 14), images=8, latency_ms=chance.randint(1, 8)) if chance.random() < 0.9 else Measurement(error="unwell")
        if m.ok:
            promotion.keep(candidate, m, lambda: [Shard(torch.zeros(8, 1))])
        recorder.result(candidate, m)
        promising = {c.number for c, _ in promotion.promising(8, ranks)}
        assert {n for n in recorder.record.candidates if kept.get(n, 8)} == promising
    ledger.close()
