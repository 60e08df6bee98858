"""Results that real Ray actors measure: the driver has values, and fetches results where it wants them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from dato.strategy import Strategy
from search.evaluate.measure import Metrics, measure_shards
from search.evaluate.shards import Shard, make_join
from search.measurements import Measurement
from search.metrics.intervals import Groups
from search.metrics.quality import Fid
from search.metrics.similarity import PlainFeatures
from search.run.jobs import Job, Measure, Measured
from search.run.pools import InProcessPool, Pool
from search.run.ray_measuring import MeasuringError
from search.run.ray_pool import RayPool

pytestmark = pytest.mark.slow
FEATURES, BATCHES = 24, [list(range(i, i + 5)) for i in range(0, 40, 5)]


class Drawn:
    """Features by image index, moved by the strategy's number of steps; a batch takes as long as `pause` says."""

    device = "drawn"

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def build(self) -> Drawn:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        time.sleep(self.pause * len(batches))
        indices = [i for batch in batches for i in batch]
        rows = torch.stack([torch.randn(FEATURES, generator=torch.Generator().manual_seed(i)) for i in indices])
        return [Shard(rows + len(s) / 100, [1.0] * len(batches), seconds=1.0, device="drawn", batch=5, indices=indices) for s in strategies]


class Times:
    """Fid as a measure, told from which process it came by the device."""

    def __init__(self) -> None:
        self.metrics = Metrics(fid=Fid(torch.randn(400, FEATURES, generator=torch.Generator().manual_seed(9))), groups=Groups(most=8))

    def __call__(self, shards: Sequence[Shard]) -> Measurement:
        value = self.metrics.of(shards)["fid"]
        return Measurement(fid=value.value, fid_left_out=value.left_out, images=sum(len(s.features) for s in shards), latency_ms=1.0, device=str(os.getpid()))


MEASURE = Times()
PLAIN = PlainFeatures.of_shards(Drawn().run([Strategy.full(50)], BATCHES))
WHOLE = Measure(measure_shards, (MEASURE, PLAIN))


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    found = RayPool(Drawn(), workers=2, join=make_join(), load_timeout_s=120)  # which hold all the CPUs that this Ray has
    yield found
    found.close()


def jobs(count: int, **changes: Any) -> Iterator[Job]:
    return (Job(n, [Strategy.full(n)], BATCHES, measure=WHOLE, **changes) for n in range(1, count + 1))


def numbers(found: Pool) -> dict[int, Any]:
    return {job.key: (made.value.fid, made.value.fid_left_out, made.value.feature_distance) for job, made in found.map(jobs(3))}


def test_values_are_the_same_here_and_there_and_no_driver_computes_them(pool: RayPool) -> None:
    made = {job.key: found for job, found in pool.map(jobs(3))}
    assert all(isinstance(found, Measured) and found.value.ok for found in made.values())
    processes = {found.value.device for found in made.values()}
    assert str(os.getpid()) not in processes
    here = numbers(InProcessPool(Drawn()))
    there = {key: (found.value.fid, found.value.fid_left_out, found.value.feature_distance) for key, found in made.items()}
    assert there == here
    (shard,) = made[2].fetch()
    assert sorted(shard.indices) == list(range(40))
    assert len(shard.features) == 40


def test_what_is_beside_a_result_and_results_that_are_here(pool: RayPool) -> None:
    earlier = Drawn().run([Strategy.full(2)], [[100, 101, 102]])
    ((_, made),) = pool.map([Job("more", [Strategy.full(2)], BATCHES, measure=Measure(measure_shards, (MEASURE, None)), beside=(earlier,))])
    assert made.value.images == 43
    shards = [Drawn().run([Strategy.full(n)], BATCHES) for n in (3, 1, 2)]
    values = pool.measure(WHOLE, [(s,) for s in shards])
    assert [v.fid for v in values] == [WHOLE(s).fid for s in shards]
    assert pool.measure(WHOLE, []) == []


def test_its_process_stays_for_the_next_ones(pool: RayPool) -> None:
    """A new process would take seconds to load what measuring needs."""
    first = {found.value.device for _, found in pool.map(jobs(1))}
    time.sleep(2)
    assert {found.value.device for _, found in pool.map(jobs(1))} == first


def test_images_that_are_no_good_are_a_measurement_and_a_fault_of_the_measure_is_said(pool: RayPool) -> None:
    spoilt = [Shard(torch.full((40, FEATURES), torch.nan), [1.0], seconds=2.0)]
    (found,) = pool.measure(WHOLE, [(spoilt,)])
    assert "finite" in found.error
    assert found.seconds == 2.0

    def wrong(shards: Sequence[Shard]) -> Measurement:
        raise TypeError("no such metric")

    with pytest.raises(MeasuringError, match="cannot be measured: TypeError: no such metric; run the same command again"):
        pool.measure(Measure(measure_shards, (wrong, None)), [(spoilt,)])


def test_a_measuring_process_that_dies_is_started_anew(pool: RayPool) -> None:
    ((_, made),) = pool.map(jobs(1))
    os.kill(int(made.value.device), signal.SIGKILL)
    ((_, again),) = pool.map(jobs(1))
    assert again.value.fid == made.value.fid
    assert again.value.device != made.value.device


def test_nothing_is_measured_in_the_middle_of_a_map(pool: RayPool) -> None:
    handed_back = pool.map(jobs(12))
    next(handed_back)
    if pool._measuring.running:
        with pytest.raises(RuntimeError, match="take them all first"):
            pool.measure(WHOLE, [])
    assert len(list(handed_back)) == 11
