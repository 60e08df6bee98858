"""Differences to the unaccelerated pipeline, with intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from search.evaluate.measure import Metrics, measure, paired
from search.evaluate.shards import Shard
from search.metrics.intervals import Groups, Value
from search.metrics.quality import Fid
from search.records import Measurement, difference_in_words, fid_difference


@pytest.fixture(scope="module")
def measured() -> tuple[Measurement, Measurement]:
    """Unaccelerated, and accelerated images that differ little from them, on the same prompts and seeds."""
    generator = torch.Generator().manual_seed(0)
    metrics = Metrics(fid=Fid(torch.randn(500, 8, generator=generator)), groups=Groups())
    plain = 0.1 + torch.randn(200, 8, generator=generator)
    fast = plain + 0.1 + 0.05 * torch.randn(200, 8, generator=generator)
    slow, quick = (measure([Shard(x, batch_ms=[ms, ms, ms], seconds=1.0, batch=10)], metrics) for x, ms in ((plain, 10.0), (fast, 4.0)))
    return slow, quick


def test_what_both_share_is_in_no_interval(measured: tuple[Measurement, Measurement]) -> None:
    plain, fast = measured
    apart, together = fid_difference(fast, plain), fid_difference(paired(fast, plain), plain)
    assert apart[0] == together[0] == fast.fid - plain.fid > 0
    assert together[2] - together[1] < 0.6 * (apart[2] - apart[1])
    pairs = zip(fast.fid_left_out, plain.fid_left_out, strict=True)
    assert together[1:] == pytest.approx((lambda v: (v.low, v.high))(Value.around(together[0], [a - b for a, b in pairs])))


def test_only_baselines_keep_what_leaving_out_gave(measured: tuple[Measurement, Measurement]) -> None:
    plain, fast = measured
    assert len(plain.fid_left_out) == 20
    assert paired(fast, plain).fid_left_out == ()
    again = Measurement.from_dict(plain.to_dict())
    assert again.fid_left_out == plain.fid_left_out


@pytest.mark.parametrize("other", [{"fid_left_out": ()}, {"images": 100}])
def test_without_the_same_groups_there_is_the_wider_interval(measured: tuple[Measurement, Measurement], other: dict[str, object]) -> None:
    plain, fast = measured
    without = paired(fast, replace(plain, **other))  # type: ignore[arg-type]
    assert math.isnan(without.difference_low)
    assert without.fid_left_out == ()
    assert fid_difference(without, plain) == fid_difference(fast, plain)


def test_in_words() -> None:
    plain = Measurement(fid=1.0)
    assert difference_in_words(Measurement(fid=1.25), plain) == "+0.25"
    assert difference_in_words(Measurement(fid=0.5, difference_low=-0.75, difference_high=-0.25), plain) == "-0.50 (-0.75 .. -0.25)"
