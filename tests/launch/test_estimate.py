"""A cost table made from the calibration runs of a configuration prices whatever that search may ask for."""

from __future__ import annotations

import numpy as np
import pytest

from dato.call_plan import plan_calls
from dato.sampler import Sampler
from dato.strategy import Strategy
from launch.config import SearchConfig, build, compose_config
from launch.estimate import baselines_of, calibration_of
from search.evaluate.latency import CostError, CostTable, SamplerCost, kind_of


def table_of(config: SearchConfig, own: SamplerCost) -> CostTable:
    """Each kind of call that the calibration runs of a configuration hold costs 1; `own` is the pipeline's own sampler's."""
    runs = calibration_of(config)
    samplers = {s.sampler: own if s.sampler is None else SamplerCost() for s in runs}
    held = {kind_of(p): 1.0 for s in runs for p in plan_calls(s, samplers[s.sampler].calls(len(s)), samplers[s.sampler].order)}
    return CostTable(device="a", batch=1, fixed_ms=0.0, samplers=samplers, work_ms=held)


WHOLE = ["space.samplers=[null,DPM++,UniPC]", "space.steps=[1,2,3,5,20]", "space.guidance=[both,cond]", "space.orders=[0,1,2]"]


@pytest.mark.parametrize("own", [SamplerCost(extra=1), SamplerCost(order=2)], ids=["PNDM", "second order"])
@pytest.mark.parametrize(
    "words",
    [[], WHOLE, [*WHOLE, "space.depths=[12]"], [*WHOLE, "space.depths=[0,1,3,12]", "space.ratios=[0.5]"], [*WHOLE, "space.depths=[0,12]", "space.guidance=[cond]"]],
    ids=["default", "whole", "nothing reused", "two depths", "conditional half alone"],
)
def test_the_calibration_of_a_search_prices_all_that_it_may_ask_for(words: list[str], own: SamplerCost) -> None:
    config = build(compose_config("search", words))
    space, table, chance = config.space, table_of(config, own), np.random.default_rng(0)
    drawn = [space.decode(chance.integers(0, space.upper + 1)) for _ in range(300)]
    assert {s.sampler for s in drawn} == set(map(Sampler.of, space.samplers))
    assert {len(s) for s in drawn} == set(space.lengths)
    for strategy in (*drawn, *baselines_of(config).values()):
        assert table.predict(strategy) == table.samplers[strategy.sampler].calls(len(strategy))
    with pytest.raises(CostError):
        table.predict(Strategy.full(3, "LMSDiscreteScheduler"))


def test_calibrating_the_whole_space_takes_no_more_calls_than_caching_and_pruning_alone() -> None:
    def calls(words: list[str]) -> float:
        return sum(0.5 if step.guidance == "cond" else 1.0 for s in calibration_of(build(compose_config("search", words))) for step in s)

    alone = ["space.samplers=[null]", "space.steps=[]", "space.guidance=[both]", "space.orders=[0]"]
    assert calls(WHOLE) <= calls(alone)
