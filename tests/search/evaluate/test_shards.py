"""Shards of several workers as one worker's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from search.evaluate.measure import Metrics, measure
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shards import Shard, in_order, join_shards, make_join
from search.metrics.intervals import Groups
from search.metrics.quality import Fid


def shard(value: float, device: str, ms: float) -> Shard:
    return Shard(torch.full((2, 3), value), batch_ms=[ms], parts_ms=[{"unet": ms}], calls_by_depth={"12": 4}, seconds=1.0, device=device, batch=2)


def test_features_and_timings_add_up_in_order() -> None:
    joined = join_shards([shard(0, "A", 5.0), shard(1, "A", 7.0)])
    assert joined.features[:, 0].tolist() == [0, 0, 1, 1]
    assert joined.batch_ms == [5.0, 7.0]
    assert (joined.device, joined.seconds, joined.batch, joined.calls_by_depth) == ("A", 2.0, 2, {"12": 4})


def test_latency_counts_on_the_chosen_kind_only_and_images_everywhere() -> None:
    joined = join_shards([shard(0, "NVIDIA L4", 50.0), shard(1, "NVIDIA H100 80GB", 7.0)], "h100")
    assert joined.batch_ms == [7.0]
    assert joined.parts_ms == [{"unet": 7.0}]
    assert len(joined.features) == 4
    assert joined.device == "NVIDIA H100 80GB (images also on NVIDIA L4)"


def test_without_a_chosen_kind_all_count_and_all_are_named() -> None:
    assert join_shards([shard(0, "B", 1.0), shard(0, "A", 2.0)]).device == "A and B"


def test_no_batch_on_the_chosen_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"named like 'h100', only on NVIDIA L4; set cluster.latency_device=null"):
        join_shards([shard(0, "NVIDIA L4", 50.0)], "h100")


def test_every_strategy_of_a_job_is_joined() -> None:
    parts = [[shard(0, "A", 1.0), shard(1, "A", 2.0)], [shard(2, "A", 3.0), shard(3, "A", 4.0)]]
    first, second = make_join()(parts)
    assert (first.batch_ms, second.batch_ms) == ([1.0, 3.0], [2.0, 4.0])


def of_images(indices: list[int]) -> Shard:
    """What a worker makes of images, each image's features its own."""
    features = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in indices])
    return Shard(features, batch_ms=[1.0], indices=indices, device="A", batch=len(indices))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_who_makes_which_batch_changes_neither_features_nor_intervals(workers: int) -> None:
    batches = EvaluationProtocol(images=100, batch=8).batches()
    assert len(batches[-1]) == 4
    one = join_shards([of_images(batch) for batch in batches])
    dealt = [join_shards([of_images(batch) for batch in batches[i::workers]]) for i in range(workers)]
    assert (dealt[0].indices == one.indices) == (workers == 1)
    assert torch.equal(in_order(dealt, torch.cat([s.features for s in dealt])), one.features)
    assert torch.equal(in_order([back := join_shards(dealt[::-1])], back.features), one.features)
    metrics = Metrics(fid=Fid(torch.randn(50, 3, generator=torch.Generator().manual_seed(1000))), groups=Groups(turn=10, most=5))
    expected, found = measure([one], metrics), measure(dealt, metrics)
    assert (found.fid, found.fid_low, found.fid_high, found.fid_left_out) == (expected.fid, expected.fid_low, expected.fid_high, expected.fid_left_out)
    assert len(found.fid_left_out) == 5


def test_shards_that_do_not_tell_their_images_stay_as_they_are() -> None:
    parts = [shard(1, "A", 1.0), shard(0, "A", 1.0)]
    assert in_order(parts, torch.cat([s.features for s in parts]))[:, 0].tolist() == [1, 1, 0, 0]


def test_the_same_images_are_not_measured_twice() -> None:
    metrics = Metrics(fid=Fid(torch.randn(50, 3, generator=torch.Generator().manual_seed(0))), groups=Groups(most=5))
    slow, quick, other = (replace(of_images(images), batch_ms=[ms]) for images, ms in (([0, 1, 2, 3], 5.0), ([0, 1, 2, 3], 4.0), ([4, 5, 6, 7], 4.0)))
    assert metrics.of([slow])["fid"] is metrics.of([quick])["fid"]
    assert metrics.of([slow], intervals=())["fid"].left_out == () != metrics.of([slow])["fid"].left_out
    assert (measure([slow], metrics).latency_ms, measure([quick], metrics).latency_ms) == (5.0, 4.0)
    assert measure([other], metrics).fid != measure([slow], metrics).fid


def test_a_failed_batch_fails_its_shard() -> None:
    failed = join_shards([shard(0, "A", 1.0), Shard(torch.empty(0, 3), seconds=2.0, error="NaN"), shard(1, "A", 1.0)])
    assert (failed.error, failed.seconds) == ("NaN", 4.0)
