"""The cost table adds up what it was given; how well it predicts is a benchmark."""

from __future__ import annotations

import json

import pytest

from dato import FULL, Step, Strategy
from dato.call_plan import CallPlan, plan_calls
from search.data.datasets import Data
from search.embedded.check import DIGITS, MODEL
from search.evaluate.latency import CostError, CostTable, Timings, calibration
from search.evaluate.pipelines import load_pipeline

DEPTHS, RATIOS = (0, 1, FULL), (0.3, 0.5)


def make_table() -> CostTable:
    priced = {CallPlan(Step(FULL)): 10.0, CallPlan(Step(FULL, 0.5)): 9.0, CallPlan(Step(0)): 0.0}
    priced |= {CallPlan(Step(1, 0.5), share): ms for share, ms in (("none", 2.0), ("precompute", 2.5), ("reuse", 1.0))}
    return CostTable(device="a", batch=4, calls=7, order=1, fixed_ms=3.0, work_ms=priced)


def test_a_prediction_is_the_sum_of_its_calls() -> None:
    half = Step(1, 0.5)
    # PNDM's seven calls: full, full, then d = 1 three times with its share made once, d = 0, full.
    assert make_table().predict(Strategy((Step(FULL, 0.5), half, half, half, Step(0), Step(FULL)))) == 3 + 9 + 9 + 2.5 + 1 + 1 + 0 + 10


def test_what_has_no_price_is_said() -> None:
    with pytest.raises(CostError, match=r"cost table of a has no price for Step\(cache_depth=2, prune_ratio=0.0\)"):
        make_table().predict(Strategy((Step(FULL, 0.5), Step(2), Step(2), Step(0), Step(0), Step(FULL))))


def test_a_table_survives_json() -> None:
    table = make_table()
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    with pytest.raises(CostError, match=r"schema 'x'; this version reads 'dato.costs/1': measure it again"):
        CostTable.from_dict({"schema": "x"})


@pytest.mark.parametrize("steps", [8, 20, 50])
def test_calibration_holds_every_kind_of_call(steps: int) -> None:
    held = {w for s in calibration(steps, DEPTHS, RATIOS) for w in plan_calls(s, steps + 1)}
    for ratio in RATIOS:
        assert {CallPlan(Step(FULL, ratio)), *(CallPlan(Step(1, ratio), share) for share in ("none", "precompute", "reuse"))} <= held
    assert {CallPlan(Step(0)), CallPlan(Step(FULL))} <= held


@pytest.mark.slow
def test_measuring_prices_every_call_of_a_run() -> None:
    pipe = load_pipeline(MODEL)
    timings = Timings(pipe, MODEL, Data(DIGITS), [0, 1])
    for strategy in calibration(20, DEPTHS, RATIOS):
        whole = timings.run(strategy)
        assert whole > 0
    table = timings.table("here")
    assert (table.calls, table.batch) == (21, 2)
    assert sum(len(t) for t in timings.works.values()) == 21 * len(calibration(20, DEPTHS, RATIOS))
    assert 0 < table.work_ms[CallPlan(Step(1, 0.5), "reuse")] < table.work_ms[CallPlan(Step(FULL, 0.5))]
    assert table.predict(Strategy.uniform(20, 3, prune_ratio=0.5)) < table.predict(Strategy.full(20))
