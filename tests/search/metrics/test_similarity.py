"""Images and features of the same prompts and seeds, compared pair by pair."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from dato.strategy import Strategy
from search.data.datasets import DataSpec
from search.evaluate.evaluator import EvaluatorSpec, PipelineEvaluator
from search.evaluate.measure import load_metrics, measure
from search.evaluate.pipelines import ModelSpec
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger, read_ledger
from search.measurements import Measurement
from search.metrics.feature_net import QualityError
from search.metrics.intervals import Groups
from search.metrics.similarity import PSNR_OF_EQUAL, PlainFeatures, check_similarity, feature_distance, load_similarity, mean_with_interval
from search.optimize.nsga2 import Nsga2
from search.optimize.objectives import Objectives
from search.optimize.space import SearchSpace
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, SearchRecord
from search.run.driver import Driver
from search.run.loops import GenerationalLoop
from search.run.measurer import PipelineMeasurer
from search.run.pools import InProcessPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan

MODEL = ModelSpec(name="embedded", path="embedded", device="cpu", steps=6, guidance=3.0)
SPEC = EvaluatorSpec(MODEL, DataSpec(name="digits", kind="digits"), EvaluationProtocol(images=8, batch=4))
COST = {0: 0.01, 1: 0.1, 12: 1.0}


def noise(count: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_of_each_image_on_the_scale_of_8_bits() -> None:
    plain = torch.full((3, 3, 16, 16), 100, dtype=torch.uint8)
    made = torch.stack([plain[0] + 51, plain[0], plain[0] - 1])
    # 20 log10(255 / 51) and 20 log10(255 / 1)
    assert load_similarity("psnr")(made, plain).tolist() == pytest.approx([13.979, PSNR_OF_EQUAL, 48.131], abs=0.01)


def test_ssim_is_of_each_image_whatever_its_batch() -> None:
    plain, ssim = noise(3, 600), load_similarity("ssim")  # larger than what is compared at once
    made = (plain.float() * 0.8 + noise(3, 600, 1).float() * 0.2).to(torch.uint8)
    made[2] = plain[2]
    found = ssim(made, plain)
    alone = [structural_similarity_index_measure(a[None] / 255, b[None] / 255, data_range=1.0) for a, b in zip(made.float(), plain.float(), strict=True)]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
    assert found[2] == pytest.approx(1)
    assert 0 < found[0] < 0.99
    assert load_similarity("ms-ssim")(made[..., :176, :176], plain[..., :176, :176])[2] == pytest.approx(1)


@pytest.mark.parametrize(("name", "least", "fix"), [("ssim", 11, "leave it out"), ("ms-ssim", 176, "use ssim")])
def test_images_that_are_too_small_or_of_two_sizes_are_refused(name: str, least: int, fix: str) -> None:
    similarity = load_similarity(name)
    assert similarity(noise(1, least), noise(1, least)).shape == (1,)
    with pytest.raises(QualityError, match=f"{name} needs images of at least {least} pixels a side.*{fix}"):
        similarity(noise(1, least - 1), noise(1, least - 1))
    with pytest.raises(QualityError, match=f"{name} compares images of one size"):
        similarity(noise(1, 64), noise(1, 32))


@pytest.mark.parametrize(
    ("names", "what"),
    [(["beauty"], "allowed are psnr, ssim, ms-ssim and lpips:<weight file>"), (["psnr:3"], "'psnr:3'"), (["lpips"], "alexnet-owt-7be5be79.pth"), (["ssim", "ssim"], "name each once"), ([3], "holds 3")],
)
def test_unknown_similarities_are_refused(names: list[Any], what: str) -> None:
    with pytest.raises(QualityError, match=what) as raised:
        check_similarity(names, "protocol.similarity")
    assert "protocol.similarity" in str(raised.value)
    with pytest.raises(ValueError, match=r"protocol\.similarity"):
        EvaluationProtocol(similarity=names)


def test_a_distance_of_0_is_the_same_picture_and_of_1_an_unrelated_one() -> None:
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    plain = PlainFeatures.of(range(60), x)
    assert plain is not None
    same, unrelated = (feature_distance([Shard(y, indices=list(range(60)))], plain) for y in (x, x.roll(1, 0)))
    assert same is not None and unrelated is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert unrelated.low < 1 < unrelated.high
    half = feature_distance([Shard(x + plain.scale / 2 * torch.eye(16)[0], indices=list(range(60)))], plain)
    assert half is not None and half.value == pytest.approx(0.5, rel=1e-5)


def test_a_distance_is_between_images_of_one_index_however_batches_were_shared_out() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    y = x + 0.1 * torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    plain = PlainFeatures.of_shards([Shard(x[[4, 5, 6, 7]], indices=[4, 5, 6, 7]), Shard(x[:4], indices=[0, 1, 2, 3])])
    assert plain is not None
    whole, parts = feature_distance([Shard(y, indices=list(range(8)))], plain), feature_distance([Shard(y[6:], indices=[6, 7]), Shard(y[:6], indices=list(range(6)))], plain)
    assert whole is not None and parts is not None
    assert parts.value == pytest.approx(whole.value)
    with pytest.raises(QualityError, match="2 of 3 are missing"):
        feature_distance([Shard(y[:3], indices=[7, 8, 9])], plain)


def test_without_indices_or_differences_there_is_no_distance() -> None:
    x = torch.randn(4, 2)
    assert PlainFeatures.of_shards([Shard(x)]) is None
    assert PlainFeatures.of(range(4), torch.ones(4, 2)) is None, "nothing to be as different as"
    assert feature_distance([Shard(x)], PlainFeatures.of(range(4), x)) is None


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    drawn = torch.rand(2000, 50, generator=torch.Generator().manual_seed(0)) ** 2  # skewed, as distances are
    found = [mean_with_interval(x) for x in drawn]
    assert 0.92 < sum(v.low < 1 / 3 < v.high for v in found) / len(found) < 0.97


@pytest.fixture(scope="module")
def evaluator() -> PipelineEvaluator:
    return SPEC.build()


def test_strategies_in_turn_are_compared_with_the_unaccelerated_images(evaluator: PipelineEvaluator) -> None:
    cached, full = Strategy.uniform(6, 3), Strategy.full(6)
    fast, plain, close = evaluator.run([cached, full, Strategy.uniform(6, 2)], SPEC.protocol.batches())
    assert plain.scores == {}
    assert {k: len(v) for k, v in fast.scores.items()} == {"psnr": 8, "ssim": 8}
    images = [evaluator.samples([s], [5])[0] for s in (cached, full)]
    assert fast.scores["psnr"][5] == pytest.approx(float(load_similarity("psnr")(*images)), abs=0.5)  # a batch of another size rounds otherwise
    metrics = load_metrics(SPEC)
    value, low, high = measure([fast], metrics).similarity["psnr"]
    assert low < value < high
    assert measure([close], metrics).similarity["psnr"][0] > value
    (alone,) = evaluator.run([cached], SPEC.protocol.batches())
    assert alone.scores == {}
    assert alone.indices == list(range(8))


def test_a_trials_measurer_knows_the_unaccelerated_features(evaluator: PipelineEvaluator) -> None:
    plain = PlainFeatures.of_shards(evaluator.run([Strategy.full(6)], SPEC.protocol.batches()))
    measurer = PipelineMeasurer(SPEC, plain=plain).build()
    same, other = measurer.measure(Strategy.full(6)), measurer.measure(Strategy.uniform(6, 3))
    assert same.feature_distance == pytest.approx(0, abs=1e-6)
    assert other.feature_distance is not None and other.feature_distance_low is not None and other.feature_distance_high is not None
    assert 0 < other.feature_distance_low < other.feature_distance < other.feature_distance_high < 1


def test_groups_pair_whatever_the_order_of_the_batches(evaluator: PipelineEvaluator) -> None:
    metrics = replace(load_metrics(SPEC), groups=Groups(most=4))
    first, second = ([evaluator.run([Strategy.full(6)], [b])[0] for b in SPEC.protocol.batches()][::step] for step in (1, -1))
    found = [measure(shards, metrics).fid_left_out for shards in (first, second)]
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_measurements_of_before_there_was_a_distance_can_be_read() -> None:
    old = {k: v for k, v in Measurement(fid=1.0, images=5, latency_ms=3.0).to_dict().items() if not k.startswith(("feature_distance", "similarity"))}
    assert Measurement.from_dict(old).feature_distance is None
    assert Measurement.from_dict(old).similarity == {}
    now = Measurement(feature_distance=0.2, feature_distance_low=0.1, feature_distance_high=0.3, similarity={"psnr": (20.0, 19.0, 21.0)})
    assert Measurement.from_dict(json.loads(json.dumps(now.to_dict()))).similarity == {"psnr": (20.0, 19.0, 21.0)}
    assert Measurement.from_dict(now.to_dict()).feature_distance_high == 0.3


class Pictures:
    """Two features an image: its own, and how much the strategy replays; "knows": whether shards tell which images they are of."""

    def __init__(self, knows: bool = True) -> None:
        self.knows, self.plain_images = knows, 0

    def build(self) -> Pictures:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        shards = []
        for s in strategies:
            indices = [i for batch in batches for i in batch]
            blur = sum(1 - COST[x.cache_depth] for x in s)
            self.plain_images += len(indices) if blur == 0 else 0
            features = torch.tensor([[float(i % 10), blur] for i in indices])
            ms = sum(COST[x.cache_depth] for x in s)
            shards.append(Shard(features, batch_ms=[ms], seconds=1.0, batch=4, indices=indices if self.knows else []))
        return shards


def of_shards(shards: Sequence[Shard]) -> Measurement:
    features = torch.cat([s.features for s in shards])
    return Measurement(fid=10 + float(features[:, 1].mean()), images=len(features), latency_ms=shards[0].batch_ms[0], seconds=1.0)


def search(folder: Path, evaluator: Pictures, **limits: float) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "pictures", {}, {})
    try:
        return Driver(
            Recorder(ledger, SearchPlan(generations=4, population=8, objectives=Objectives(**limits)), of_shards),
            EvaluationProtocol(images=20, fidelities=[8], batch=4),
            GenerationalLoop(Nsga2(space=SearchSpace(steps=8, ratios=(0.0,)), population=8, seed=0)),
            {UNACCELERATED: Strategy.full(8), "every 2": Strategy.uniform(8, 2)},
            kept=ShardStore(folder / "kept"),
        ).run(InProcessPool(evaluator))
    finally:
        ledger.close()


def distances(record: SearchRecord) -> dict[tuple[int, int], float | None]:
    more = {(n, images): m.feature_distance for n, found in record.promotions.items() for images, m in found.items()}
    return {(n, m.images): m.feature_distance for n, m in record.results.items()} | more


def test_every_measurement_of_a_search_has_its_distance_at_no_extra_image(tmp_path: Path) -> None:
    evaluator = Pictures()
    record = search(tmp_path, evaluator)
    # The unaccelerated pipeline for the search and for its winners, and once more where the search itself asks for it.
    asked = sum(s.strategy == Strategy.full(8) for s in record.candidates.values())
    assert evaluator.plain_images <= 40 + 40 * asked
    scale = PlainFeatures.of(range(20), torch.tensor([[float(i % 10), 0.0] for i in range(20)]))
    assert scale is not None
    for n, m in record.results.items():
        blur = sum(1 - COST[x.cache_depth] for x in record.candidates[n].strategy)
        assert m.feature_distance == pytest.approx(blur / scale.scale, rel=1e-5)
    for n, found in record.promotions.items():
        assert found[20].feature_distance == pytest.approx(record.results[n].feature_distance), "one scale at all numbers of images"
    assert record.plain(8).feature_distance == record.plain(20).feature_distance == 0
    assert record.baseline("every 2", 8).feature_distance == pytest.approx(record.baseline("every 2", 20).feature_distance)
    assert all(w.fresh.feature_distance == pytest.approx(w.searched.feature_distance) for w in record.winners.values())
    assert not (tmp_path / "kept").exists()


def test_a_search_that_goes_on_has_the_same_distances(tmp_path: Path) -> None:
    whole = search(tmp_path / "a", Pictures())

    class Stops(Pictures):
        runs = 0

        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
            self.runs += 1
            if self.runs > 12:
                raise KeyboardInterrupt
            return super().run(strategies, batches)

    for lost in (False, True):
        folder = tmp_path / f"b{lost}"
        with pytest.raises(KeyboardInterrupt):
            search(folder, Stops())
        kept = folder / "kept" / "unaccelerated-20.safetensors"
        assert kept.is_file()
        if lost:
            kept.unlink()
        evaluator = Pictures()
        assert distances(search(folder, evaluator)) == distances(whole)
        assert (evaluator.plain_images >= 40) == lost, "the unaccelerated images are made again only where their features are lost"


def test_a_limit_on_the_distance_is_kept_by_the_winners(tmp_path: Path) -> None:
    free, tight = search(tmp_path / "a", Pictures()), search(tmp_path / "b", Pictures(), max_distance=0.5)
    assert max(w.searched.feature_distance or 0 for w in free.winners.values()) > 0.5
    assert tight.winners
    assert all(0 < (w.searched.feature_distance or 0) <= 0.5 for w in tight.winners.values())
    again = read_ledger(tmp_path / "b" / "ledger.jsonl")
    assert distances(again) == distances(tight)
    assert again.winners["quality"].fresh.feature_distance == tight.winners["quality"].fresh.feature_distance is not None


def test_a_limit_on_a_distance_that_cannot_be_is_refused(tmp_path: Path) -> None:
    assert all(d is None for d in distances(search(tmp_path / "a", Pictures(knows=False))).values())
    with pytest.raises(SearchFailed, match=r"search\.max_distance .* cannot be computed.*search\.max_distance=null"):
        search(tmp_path / "b", Pictures(knows=False), max_distance=0.5)
    with pytest.raises(ValueError, match=r"search\.max_distance .* was not measured"):
        Objectives(max_distance=0.5).violation(Measurement(fid=1.0), Measurement(fid=1.0))
    assert Objectives(max_distance=0.5).violation(Measurement(fid=1.0, feature_distance=0.75), Measurement()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"search\.max_distance is 0"):
        Objectives(max_distance=0)


def test_unaccelerated_features_are_sent_whole_and_once() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    plain = PlainFeatures.of(range(40), x)
    assert plain is not None
    sent = pickle.dumps(plain)
    assert len(sent) < 2 * x.numel() * x.element_size()
    torch.testing.assert_close(pickle.loads(sent).distances([7, 3], x[:2]), plain.distances([7, 3], x[:2]))
