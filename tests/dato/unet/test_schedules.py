"""Guidance and orders of extrapolation: a run is what its strategy says, step by step, on real pipelines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dato
from dato import FULL, Options, Step, Strategy
from dato.call_plan import plan_calls
from tests.dato.conftest import cast, report_of, run, use
from tests.dato.unet.naive import close, naive_steps


@pytest.fixture(scope="module")
def pipes(make_layout: Callable[[str], Any]) -> dict[str, Any]:
    """A pipeline of each layout in double precision, so that what is only rounding is told from what is wrong."""
    return {name: use(cast(make_layout(name), torch.float64), "DDIMScheduler", clip_sample=False) for name in ("sd15", "sdxl")}


def check(pipe: Any, steps: Sequence[Step], options: Options | None = None, calls: Sequence[Step] | None = None, **given: Any) -> None:
    """Ours is the naive run of the same calls, and did what was foreseen."""
    strategy, count = Strategy(tuple(steps)), len(calls or steps)
    given = {"num_inference_steps": len(steps), **given}
    plain = run(pipe, **given)
    expected, made = naive_steps(pipe, calls or steps, options, **given)
    with dato.accelerate(pipe, strategy, options):
        assert close(run(pipe, **given), expected)
        report = report_of(pipe)
    assert report.finished
    assert report.calls_by_depth == Counter(s.cache_depth for s in made)
    guided = pipe.do_classifier_free_guidance
    assert report.conditional_alone == sum(s.guidance == "cond" and s.cache_depth > 0 for s in made)
    foreseen = plan_calls(strategy, count, pipe.scheduler.order, guided=guided)
    assert [(p.step.cache_depth, p.step.guidance) for p in foreseen] == [(s.cache_depth, s.guidance) for s in made]
    assert torch.equal(run(pipe, **given), plain), "exactly undone"


def every_way(depth: int, ratio: float) -> list[Step]:
    """Both guidances and all orders at a depth, after histories of one to three values and halves of different age."""

    def at(guidance: str, order: int) -> Step:
        return Step(depth, ratio, guidance, order)

    both, cond = Step(FULL, ratio), Step(FULL, ratio, "cond")
    return [both, at("both", 2), at("cond", 1), cond, at("both", 1), at("cond", 1), at("both", 0), both, at("cond", 2), at("both", 2), cond, cond, at("both", 2), at("cond", 0)]


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize(("layout", "depth"), [("sd15", d) for d in (0, 1, 2, 6, 11, FULL)] + [("sdxl", d) for d in (0, 1, 4, 8)])
def test_every_depth_guidance_and_order(pipes: dict[str, Any], layout: str, depth: int, ratio: float) -> None:
    check(pipes[layout], every_way(depth, ratio), seeds=(0, 1) if depth == 2 else (0,))


STEP = st.builds(Step, st.sampled_from([0, 0, 1, 2, 5, FULL]), st.sampled_from([0.0, 0.5]), st.sampled_from(["both", "cond"]), st.sampled_from([0, 1, 2]))


@settings(max_examples=20, deadline=None)
@given(st.lists(STEP, min_size=2, max_size=9), st.sampled_from([1.0, 3.0]))
def test_any_strategy(pipes: dict[str, Any], steps: list[Step], scale: float) -> None:
    check(pipes["sd15"], steps, guidance_scale=scale)
