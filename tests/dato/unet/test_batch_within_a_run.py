"""Batch, guidance and size that change within a run: what does not fit any more is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import dato
from dato import FULL, Options, Step, Strategy
from tests.dato.conftest import MIXED, PRUNED, SHALLOW, STEPS, report_of, run, with_controlnet
from tests.dato.unet.naive import close, naive

HALVES = Strategy((Step(FULL), Step(0, 0.0, "cond"), Step(3), Step(0, 0.0, "both", 1), Step(1, 0.0, "cond", 1), Step(0)))


def guidance(off: int | None, on: int | None) -> dict[str, Any]:
    """Guidance switched off after one step and on after another."""
    kept: list[torch.Tensor] = []

    def callback(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        embeds = kwargs["prompt_embeds"]
        if step == off:
            kept[:] = [embeds]
            pipe._guidance_scale, kwargs["prompt_embeds"] = 0.0, embeds.chunk(2)[1]
        elif step == on:
            pipe._guidance_scale, kwargs["prompt_embeds"] = 3.0, kept[0] if kept else torch.cat([0.5 * embeds, embeds])
        return kwargs

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


def larger(at: int, size: tuple[int, int] = (24, 20)) -> dict[str, Any]:
    def callback(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            kwargs["latents"] = nn.functional.interpolate(kwargs["latents"], size=size)
        return kwargs

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents"]}


def fewer_images(at: int, keep: int) -> dict[str, Any]:
    """One of two images goes on."""

    def callback(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            kwargs["latents"] = kwargs["latents"][keep : keep + 1]
            halves = kwargs["prompt_embeds"].chunk(2) if _pipe.do_classifier_free_guidance else (kwargs["prompt_embeds"],)
            kwargs["prompt_embeds"] = torch.cat([h[keep : keep + 1] for h in halves])
        return kwargs

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}


def unguided(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "guidance_scale": 1.0}


WITHIN: dict[str, tuple[Callable[[], dict[str, Any]], tuple[int, ...]]] = {
    "guidance off": (lambda: guidance(1, None), (0,)),
    "guidance off and on": (lambda: guidance(1, 3), (0,)),
    "guidance on": (lambda: unguided(guidance(None, 1)), (0,)),
    "guidance off and on at once": (lambda: guidance(1, 2), (0, 1)),
    "larger": (lambda: larger(1), (0,)),
    "smaller, last step": (lambda: larger(STEPS - 2, (8, 12)), (0,)),
    "the first of two images": (lambda: fewer_images(1, 0), (0, 1)),
    "the second of two images": (lambda: fewer_images(2, 1), (0, 1)),
    "the first of two images, unguided": (lambda: unguided(fewer_images(1, 0)), (0, 1)),
}


@pytest.mark.parametrize("name", WITHIN)
class TestWithinARun:
    def test_a_full_strategy_is_the_plain_pipeline(self, make: Callable[[], Any], name: str) -> None:
        settings, seeds = WITHIN[name]
        pipe = make()
        plain = run(pipe, seeds, **settings())
        with dato.accelerate(pipe, Strategy.full(STEPS)):
            assert torch.equal(run(pipe, seeds, **settings()), plain)
            report = report_of(pipe)
        assert report.finished
        assert torch.equal(run(pipe, seeds, **settings()), plain)

    @pytest.mark.parametrize("strategy", [SHALLOW, MIXED, HALVES], ids=["shallow", "mixed", "halves"])
    def test_what_does_not_fit_is_forgotten(self, make: Callable[[], Any], name: str, strategy: Strategy) -> None:
        settings, seeds = WITHIN[name]
        expected, made = naive(make(), strategy, seeds=seeds, **settings())
        pipe = make()
        with dato.accelerate(pipe, strategy):
            assert close(run(pipe, seeds, **settings()), expected)
            report = report_of(pipe)
        assert report.calls_by_depth == {d: made.count(d) for d in set(made)}

    def test_pruned(self, make: Callable[[], Any], name: str) -> None:
        settings, seeds = WITHIN[name]
        for options in (Options(), Options(diff_source="feature"), Options(align="uncond", plan_per="layer", score_noise=0.1)):
            pipe = make()
            with dato.accelerate(pipe, PRUNED, options):
                first = run(pipe, seeds, **settings())
                assert torch.isfinite(first).all()
                assert torch.equal(run(pipe, seeds, **settings()), first)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_whichever_image_goes_on_the_next_call_is_full(make: Callable[[], Any], scale: float, keep: int) -> None:
    pipe = make()
    strategy = Strategy((Step(FULL), Step(1), Step(0), Step(FULL), Step(FULL), Step(FULL)))
    forced = Strategy((Step(FULL), Step(1), Step(FULL), Step(FULL), Step(FULL), Step(FULL)))
    results = []
    for s in (strategy, forced):
        with dato.accelerate(pipe, s):
            results.append(run(pipe, (0, 1), **{**fewer_images(1, keep), "guidance_scale": scale}))
    assert torch.equal(*results)


def test_the_next_call_after_a_change_prunes_at_random_until_two_predictions_fit(make: Callable[[], Any]) -> None:
    pipe = make()
    with dato.accelerate(pipe, Strategy((Step(FULL, 0.5),) * STEPS)):
        run(pipe, **larger(2))
        report = report_of(pipe)
    # 3 calls at 16 x 16 tokens and 3 at 24 x 20, each of a batch of 2, half of them pruned.
    assert set(report.tokens_pruned.values()) == {3 * 2 * 128 + 3 * 2 * 240}


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("name", ["guidance off", "guidance off and on", "guidance on", "larger"])
def test_a_controlnet_is_run_where_its_residuals_are_needed(make: Callable[[], Any], name: str, guess: bool) -> None:
    def settings() -> dict[str, Any]:
        found = WITHIN[name][0]()
        inner = found["callback_on_step_end"]

        def callback(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            guided = pipe.do_classifier_free_guidance
            kwargs = inner(pipe, step, t, kwargs)
            if not guess and guided and not pipe.do_classifier_free_guidance:
                kwargs["image"] = kwargs["image"].chunk(2)[1]
            elif not guess and not guided and pipe.do_classifier_free_guidance:
                kwargs["image"] = torch.cat([kwargs["image"]] * 2)
            size = kwargs["latents"].shape[-2:]
            kwargs["image"] = nn.functional.interpolate(kwargs["image"], size=(2 * size[0], 2 * size[1]))
            return kwargs

        names = ["latents", "prompt_embeds", "image"]
        return {**found, "image": torch.ones(1, 3, 32, 32, dtype=torch.float64), "guess_mode": guess, "callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}

    strategy = Strategy((Step(FULL), *[Step(0)] * (STEPS - 1)))
    expected, made = naive(with_controlnet(make()), strategy, **settings())
    pipe = with_controlnet(make())
    with dato.accelerate(pipe, strategy):
        assert close(run(pipe, **settings()), expected)
        report = report_of(pipe)
    assert report.calls_by_depth == {d: made.count(d) for d in set(made)}
    assert 0 < report.controls_skipped <= made.count(0)
