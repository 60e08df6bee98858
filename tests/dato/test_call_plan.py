"""What a run is going to do, against what a run does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dato
from dato import FULL, Step, Strategy, StrategyError
from dato.call_plan import CallPlan, check_steps, plan_calls
from tests.dato.conftest import SAMPLERS, STEPS, report_of, run, runs_of, use

STEP = st.builds(Step, st.sampled_from([0, 1, 2, 5, FULL]), st.sampled_from([0.0, 0.5]), st.sampled_from(["both", "cond"]), st.sampled_from([0, 1, 2]))


@given(st.lists(STEP, min_size=1, max_size=12), st.integers(0, 1), st.integers(0, 5), st.booleans())
def test_plans_follow_the_rules(steps: list[Step], extra: int, start: int, guided: bool) -> None:
    strategy = Strategy(tuple(steps))
    calls = len(strategy) + extra
    found = plan_calls(strategy, calls, start=min(start, calls - 1), guided=guided)
    assert len(found) == calls - min(start, calls - 1)
    assert found[0].step.cache_depth == FULL
    assert next((p.step.cache_depth for p in found if p.step.guidance == "both"), FULL) == FULL
    assert all(p.step.prune_ratio == 0 for p in found[1:] if p.step.cache_depth == 0)
    assert all(p.step.order == 0 for p in found if p.step.cache_depth == FULL)
    assert all(p.share == "none" for p in found if p.step.order)
    if not guided and not extra and not start:
        assert found == plan_calls(strategy.canonical(guided=False), calls)
    for i, plan in enumerate(found):
        if plan.share == "reuse":
            # What it reuses was made before of the same halves, and no deeper call has come between.
            before = [p for p in found[:i] if p.step.cache_depth > plan.step.cache_depth or _same(p, plan)]
            assert before[-1].share in ("precompute", "reuse")
            assert _same(before[-1], plan)
        if plan.share == "precompute":
            assert next(p for p in found[i + 1 :] if p.step.cache_depth > plan.step.cache_depth or _same(p, plan)).share == "reuse"


def _same(one: CallPlan, other: CallPlan) -> bool:
    """Whether two calls start from the same tensor, as it is, where no deeper one comes between."""
    return [(p.step.cache_depth, p.step.guidance, p.step.order) for p in (one, other)] == [(other.step.cache_depth, other.step.guidance, 0)] * 2


def test_by_hand() -> None:
    depths = (FULL, 1, 0, 1, 2, 1, FULL, 1)
    shares = [p.share for p in plan_calls(Strategy(tuple(Step(d) for d in depths)), 8)]
    assert shares == ["none", "precompute", "none", "reuse", "none", "none", "none", "none"]
    assert plan_calls(Strategy((Step(0, 0.5), Step(1, 0.5))), 3) == [CallPlan(Step(FULL)), CallPlan(Step(0)), CallPlan(Step(1, 0.5))]
    halves = Strategy((Step(1, 0.5, "cond", 2), Step(0, 0.5, "cond", 1), Step(0, 0.5), Step(1), Step(1, 0.0, "cond"), Step(1), Step(1, 0.0, "both", 1), Step(1, 0.0, "cond")))
    assert plan_calls(halves, 8) == [
        CallPlan(Step(FULL, 0.5, "cond")), CallPlan(Step(0, 0.0, "cond", 1)), CallPlan(Step(FULL)), CallPlan(Step(1), "precompute"),
        CallPlan(Step(1, 0.0, "cond"), "precompute"), CallPlan(Step(1), "reuse"), CallPlan(Step(1, 0.0, "both", 1)), CallPlan(Step(1, 0.0, "cond"), "reuse"),
    ]  # fmt: skip


def test_a_run_does_what_was_foreseen(pipe: Any) -> None:
    strategy = Strategy((Step(0), Step(1), *[Step(2, 0.5, guidance) for guidance in ("both", "cond", "both", "cond")], Step(2, 0.0, "both", 1), Step(FULL), Step(1)))
    seen: list[set[tuple[int, str]]] = []

    def look(unet: Any, _a: Any, _o: Any) -> None:
        last = runs_of(unet).last
        seen.append(set(last.kept.precomputed) if last is not None and last.kept is not None else set())

    handle = pipe.unet.register_forward_hook(look)
    with dato.accelerate(pipe, strategy):
        run(pipe, num_inference_steps=len(strategy))
        report = report_of(pipe)
    handle.remove()
    foreseen = plan_calls(strategy, len(strategy) + 1)
    assert report.calls_by_depth == Counter(p.step.cache_depth for p in foreseen)
    for plan, kept in list(zip(foreseen, seen, strict=True))[:-1]:
        if 0 < plan.step.cache_depth < FULL and not plan.step.order:
            assert ((plan.step.cache_depth, plan.step.guidance) in kept) == (plan.share != "none")
    assert Counter(p.share for p in foreseen) == {"none": 6, "precompute": 2, "reuse": 2}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("entries", [STEPS - 1, STEPS + 1])
def test_one_step_more_or_less_is_refused(pipe: Any, sampler: str, entries: int) -> None:
    use(pipe, sampler)
    calls = "7 calls for 6 steps" if sampler == "PNDMScheduler" else "6 calls"
    message = rf"the strategy has {entries} steps, but the scheduler makes {calls}: run with num_inference_steps={entries}, or use strategy.resample\(6\)"
    with dato.accelerate(pipe, Strategy.full(entries)), pytest.raises(StrategyError, match=message):
        run(pipe)


def test_pndm_with_runge_kutta_steps_is_told_the_way_out_and_both_work(pipe: Any) -> None:
    use(pipe, "PNDMScheduler", skip_prk_steps=False)
    with dato.accelerate(pipe, Strategy.full(STEPS)), pytest.raises(StrategyError) as caught:
        run(pipe)
    message = str(caught.value)
    assert f"num_inference_steps={STEPS}" not in message, "this is what the user did"
    assert "makes 15 calls" in message
    assert "skip_prk_steps=True" in message
    assert "strategy.resample(15)" in message
    plain = run(pipe)
    with dato.accelerate(pipe, Strategy.full(STEPS).resample(15)):
        assert torch.equal(run(pipe), plain)
    use(pipe, "PNDMScheduler", skip_prk_steps=True)
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        run(pipe)


def test_own_sigmas_are_counted_with_the_one_that_ends_the_run(pipe: Any) -> None:
    use(pipe, "EulerDiscreteScheduler")
    pipe.scheduler.set_timesteps(STEPS)
    sigmas = pipe.scheduler.sigmas.tolist()
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        with pytest.raises(StrategyError, match=rf"makes {STEPS - 1} calls.*strategy.resample\({STEPS - 1}\); with sigmas of your own, give {STEPS + 1} of them"):
            run(pipe, sigmas=sigmas[:STEPS])
        run(pipe, sigmas=sigmas)


def test_steps_of_a_run() -> None:
    check_steps(6, [9, 7, 7, 5, 3, 2, 1], 6)  # PNDM
    check_steps(7, [9, 7, 6, 5, 3, 1, 1], 7)  # rounded until two are equal, as DPM++ does with Karras's sigmas
    check_steps(6, [9, 7, 6, 5, 3, 1], None)
    check_steps(4, [9, 7, 7, 5, 5, 3, 3], 4, order=2)
    with pytest.raises(StrategyError, match=r"the strategy has 7 steps, but the scheduler makes 7 calls for 4 steps: .* strategy.resample\(4\)"):
        check_steps(7, [9, 7, 7, 5, 5, 3, 3], 4, order=2)
