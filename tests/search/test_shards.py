"""Shards of several workers as one worker's."""

from __future__ import annotations

import pytest
import torch

from search.evaluate import Shard
from search.shards import join_shards, make_join


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
