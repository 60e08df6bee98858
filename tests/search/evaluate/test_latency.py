"""The cost table adds up what it was given; how well it predicts is a benchmark."""

from __future__ import annotations

import json

import pytest

from dato import FULL, Step, Strategy
from dato.call_plan import CallPlan, plan_calls
from dato.sampler import SAMPLERS, Sampler
from search.data.datasets import Data
from search.embedded.check import DIGITS, MODEL
from search.evaluate.latency import CostError, CostTable, SamplerCost, Timings, calibration, kind_of
from search.evaluate.pipelines import load_pipeline

DEPTHS, RATIOS = (0, 1, FULL), (0.3, 0.5)
HEUN = Sampler("HeunDiscreteScheduler")
EVERY = {"depths": DEPTHS, "ratios": RATIOS, "guidance": ("both", "cond"), "samplers": (None, "DPM++", "UniPC")}
OLD = {
    "schema": "dato.costs/1", "device": "a", "batch": 4, "calls": 7, "order": 1, "fixed_ms": 3.0,
    "work_ms": [[12, 0.0, "none", 10.0], [12, 0.5, "none", 9.0], [0, 0.0, "none", 0.0], [1, 0.5, "none", 2.0], [1, 0.5, "made", 2.5], [1, 0.5, "reuse", 1.0]],
}  # fmt: skip
HALF = Step(1, 0.5)
SIX = Strategy((Step(FULL, 0.5), HALF, HALF, HALF, Step(0), Step(FULL)))


def make_table() -> CostTable:
    priced = {CallPlan(Step(FULL)): 10.0, CallPlan(Step(FULL, 0.5)): 9.0, CallPlan(Step(0)): 0.0, CallPlan(Step(FULL, 0.0, "cond")): 5.0, CallPlan(Step(0, 0.0, "cond")): 0.125}
    priced |= {CallPlan(Step(1, 0.5), share): ms for share, ms in (("none", 2.0), ("precompute", 2.5), ("reuse", 1.0))}
    samplers = {None: SamplerCost(extra=1, call_ms=0.5), SAMPLERS["DPM++"]: SamplerCost(call_ms=0.25), HEUN: SamplerCost(order=2, call_ms=1.0)}
    return CostTable(device="a", batch=4, fixed_ms=3.0, samplers=samplers, work_ms=priced)


def test_a_prediction_is_the_sum_of_its_calls() -> None:
    # PNDM's seven calls: full, full, then d = 1 three times with its share made once, d = 0, full.
    assert make_table().predict(SIX) == 3 + 7 * 0.5 + 9 + 9 + 2.5 + 1 + 1 + 0 + 10


def test_any_length_and_sampler_has_its_calls() -> None:
    table = make_table()
    assert table.predict(Strategy.full(1)) == 3 + 0.5 + 10  # PNDM repeats its second step, which is not there
    assert table.predict(Strategy.full(20)) == 3 + 21 * 10.5
    assert table.predict(Strategy.full(4, "DPM++")) == 3 + 4 * 10.25
    assert table.predict(Strategy.full(3, HEUN)) == 3 + 5 * 11
    # Full in both halves, the conditional half alone, replayed in the same; and of both halves replayed, each has its own last one.
    cond = Strategy((Step(FULL), Step(FULL, 0.0, "cond"), Step(0, 0.0, "cond"), Step(0)), sampler=SAMPLERS["DPM++"])
    assert table.predict(cond) == 3 + 4 * 0.25 + 10 + 5 + 0.125 + 0
    alone = Strategy((Step(FULL, 0.0, "cond"), Step(0)), sampler=SAMPLERS["DPM++"])
    assert table.predict(alone) == 3 + 2 * 0.25 + 5 + 10, "of the unconditional half nothing is kept"


def test_what_is_extrapolated_costs_what_it_costs_as_it_was() -> None:
    table = make_table()
    linear = Strategy((Step(FULL), Step(1, 0.5, order=1), Step(1, 0.5, order=2), Step(0, order=2)), sampler=SAMPLERS["DPM++"])
    assert table.predict(linear) == 3 + 4 * 0.25 + 10 + 2 * 2.0 + 0, "nothing is shared between calls"


@pytest.mark.parametrize(
    ("strategy", "named"),
    [
        (Strategy((Step(FULL, 0.5), Step(2), Step(2), Step(0), Step(0), Step(FULL))), r"Step\(cache_depth=2, prune_ratio=0.0"),
        (Strategy((Step(FULL, 0.5, "cond"),)), "guidance='cond'"),
        (Strategy.full(3, "UniPC"), r"the sampler UniPC, only for the pipeline's own sampler, the sampler DPM\+\+, the sampler HeunDiscreteScheduler"),
    ],
)
def test_what_has_no_price_is_said(strategy: Strategy, named: str) -> None:
    with pytest.raises(CostError, match=f"cost table of a has no price for .*{named}"):
        make_table().predict(strategy)


def test_a_table_survives_json() -> None:
    table = make_table()
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    with pytest.raises(CostError, match=r"schema 'x'; this version reads .*'dato.costs/2': measure it again"):
        CostTable.from_dict({"schema": "x"})


def test_a_table_of_before_prices_as_before_and_nothing_else() -> None:
    old = CostTable.from_dict(OLD)
    assert old.predict(SIX) == 3 + 9 + 9 + 2.5 + 1 + 1 + 0 + 10
    again = CostTable.from_dict(json.loads(json.dumps(old.to_dict())))
    assert again == old
    for strategy, named in ((Strategy.full(4), "4 steps"), (Strategy.full(6, "DPM++"), r"the sampler DPM\+\+"), (Strategy((Step(FULL, 0.0, "cond"), *SIX[1:])), "cond")):
        with pytest.raises(CostError, match=f"no price for .*{named}"):
            again.predict(strategy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", 0), ("fixed_ms", None), ("device", 5), ("calls", 0), ("samplers", [[None, 0, 1, 0.5]]), ("samplers", [[None, 1, -1, 0.5]]), ("samplers", [[None, 1, 0, "x"]]),
        ("samplers", [[{"scheduler": 5}, 1, 0, 0.5]]), ("work_ms", [[12, 0.0, "both", "none", -1.0]]), ("work_ms", [[12, 0.0, "both", "some", 1.0]]),
        ("work_ms", [[12, 0.0, "uncond", "none", 1.0]]),
    ],
)  # fmt: skip
def test_a_table_of_no_measurement_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError):
        CostTable.from_dict({**make_table().to_dict(), key: value})


@pytest.mark.parametrize("steps", [(1,), (3, 8), (20,), (50, 4)])
@pytest.mark.parametrize("order", [1, 2])
def test_calibration_holds_every_kind_of_call_and_every_sampler(steps: tuple[int, ...], order: int) -> None:
    runs = calibration(steps=steps, **EVERY)  # type: ignore[arg-type]
    cost = SamplerCost(order=order, extra=2 - order)
    held = {w for s in runs for w in plan_calls(s, cost.calls(len(s)), order)}
    for half in ("both", "cond"):
        for ratio in (0.0, *RATIOS):
            assert {CallPlan(Step(FULL, ratio, half)), *(CallPlan(Step(1, ratio, half), share) for share in ("none", "precompute", "reuse"))} <= held
        assert CallPlan(Step(0, 0.0, half)) in held
    assert {s.sampler for s in runs} == {None, SAMPLERS["DPM++"], SAMPLERS["UniPC"]}
    assert runs[-1] == Strategy.full(max(*steps, 7))
    assert sum(map(len, runs)) <= 3 * max(*steps, 28) * 1.4 + len(runs[-1])


def test_calibration_of_few_calls_holds_every_sampler() -> None:
    runs = calibration(steps=(4,), depths=(FULL,), ratios=(), samplers=[None, *SAMPLERS])
    assert [s.sampler for s in runs] == [None, *SAMPLERS.values(), None]
    assert all(set(s) == {Step(FULL)} for s in runs)


@pytest.mark.slow
def test_measuring_prices_every_call_of_a_run() -> None:
    pipe = load_pipeline(MODEL)
    timings = Timings(pipe, MODEL, Data(DIGITS), [0, 1])
    runs = calibration(steps=(4, 20), **EVERY)  # type: ignore[arg-type]
    for strategy in runs:
        whole = timings.run(strategy)
        assert whole > 0
    table = timings.table("here")
    assert table.batch == 2
    assert {s: (c.order, c.extra) for s, c in table.samplers.items()} == {None: (1, 1), SAMPLERS["DPM++"]: (1, 0), SAMPLERS["UniPC"]: (1, 0)}
    assert sum(len(t) for t in timings.works.values()) == sum(len(s) + (s.sampler is None) for s in runs)
    assert 0 < table.work_ms[CallPlan(Step(1, 0.5), "reuse")] < table.work_ms[CallPlan(Step(FULL, 0.5))]
    assert table.predict(Strategy.uniform(20, 3, prune_ratio=0.5)) < table.predict(Strategy.full(20))
    assert table.predict(Strategy.full(4, "UniPC")) < table.predict(Strategy.full(10, "UniPC"))
    assert all(kind_of(p) in table.work_ms for p in plan_calls(Strategy((Step(FULL), Step(1, 0.3, "cond", 2), Step(0, order=1))), 4))
