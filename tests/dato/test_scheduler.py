"""A strategy's sampler on real pipelines: exchanged, followed, put back exactly, or refused by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline

import dato
from dato import FULL, Step, Strategy, StrategyError
from dato.provenance import ProvenanceWarning
from dato.sampler import SAMPLERS, Sampler
from dato.scheduler import exchange_scheduler, scheduler_for
from tests.dato.conftest import STEPS, report_of, run, sharing, untouched, use

FEW = Strategy.full(STEPS, sampler="DPM++")
KARRAS = Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3})
KINDS = [*SAMPLERS, "HeunDiscreteScheduler"]


def test_latents_are_not_clipped_unless_the_model_says_so() -> None:
    clipped = exchange_scheduler(DDIMScheduler(clip_sample=True), "DDPMScheduler")
    assert clipped.config.clip_sample
    assert not exchange_scheduler(PNDMScheduler(), "DDIMScheduler").config.clip_sample
    assert "clip_sample" not in exchange_scheduler(PNDMScheduler(), "EulerDiscreteScheduler").config


@pytest.mark.parametrize("sampler", KINDS)
@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_it_is_the_pipeline_with_that_scheduler_and_then_the_pipeline_as_it_was(layout: str, sampler: str, make_layout: Callable[[str], Any]) -> None:
    pipe, other = make_layout(layout), make_layout(layout)
    given = Sampler.of(sampler)
    assert given is not None
    other.scheduler = exchange_scheduler(other.scheduler, given.scheduler, **given.settings)
    plain, own, config = run(pipe), pipe.scheduler, dict(pipe.config)
    settings = dict(own.config)
    with dato.accelerate(pipe, Strategy.full(STEPS, sampler=sampler)):
        assert torch.equal(run(pipe), run(other))
        assert report_of(pipe).finished
    cached = Strategy.uniform(STEPS, 2, depth=2, prune_ratio=0.5)
    with dato.accelerate(other, cached):
        expected = run(other)
    dato.enable(pipe, Strategy(cached.steps, sampler=given))
    assert torch.equal(run(pipe), expected)
    dato.disable(pipe)
    dato.disable(pipe)
    assert pipe.scheduler is own
    assert (dict(pipe.config), dict(own.config)) == (config, settings)
    assert untouched(pipe.unet)
    assert torch.equal(run(pipe), plain)


def test_fewer_steps_are_a_strategy(pipe: Any) -> None:
    for sampler in SAMPLERS:
        own, pipe.scheduler = pipe.scheduler, scheduler_for(pipe, pipe.scheduler, SAMPLERS[sampler])
        expected = run(pipe, num_inference_steps=3)
        pipe.scheduler = own
        strategy = Strategy.full(3, sampler=sampler)
        with dato.accelerate(pipe, strategy):
            assert torch.equal(run(pipe, num_inference_steps=len(strategy)), expected)


def test_settings_reach_the_scheduler_and_its_status_names_it(pipe: Any) -> None:
    with dato.accelerate(pipe, Strategy.full(STEPS, sampler=KARRAS)):
        assert pipe.scheduler.config.use_karras_sigmas
        assert pipe.scheduler.config.solver_order == 3
        different = run(pipe)
        report = report_of(pipe)
    assert report.strategy.sampler == KARRAS
    for shown in (str(report), report.summary()):
        assert "DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True)" in shown
    with dato.accelerate(pipe, FEW):
        assert not torch.equal(run(pipe), different)


def test_one_after_another_and_within_another(pipe: Any) -> None:
    plain, own = run(pipe), pipe.scheduler
    results = {}
    for sampler in ("DPM++", "Euler", None):
        with dato.accelerate(pipe, Strategy.full(STEPS, sampler=sampler)):
            results[sampler] = run(pipe)
    assert torch.equal(results[None], plain)
    for sampler in ("DPM++", "Euler", None, "Euler"):
        dato.enable(pipe, Strategy.full(STEPS, sampler=sampler))
        assert (pipe.scheduler is own) == (sampler is None)
        assert torch.equal(run(pipe), results[sampler])
    dato.disable(pipe)
    assert pipe.scheduler is own
    with dato.accelerate(pipe, FEW):
        for inner in ("Euler", None):
            with dato.accelerate(pipe, Strategy.full(STEPS, sampler=inner)):
                assert torch.equal(run(pipe), results[inner])
            assert torch.equal(run(pipe), results["DPM++"])
        with pytest.raises(ValueError, match="solver_order"):
            dato.enable(pipe, Strategy.full(STEPS, sampler=Sampler("DDIMScheduler", {"solver_order": 3})))
        assert torch.equal(run(pipe), results["DPM++"])
    assert pipe.scheduler is own
    assert torch.equal(run(pipe), plain)


def test_a_scheduler_given_since_is_refused_and_stays(pipe: Any) -> None:
    plain = run(use(pipe, "DDIMScheduler"))
    given = DDIMScheduler.from_config(pipe.scheduler.config)
    dato.enable(pipe, FEW)
    pipe.scheduler = given
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline runs with DDIMScheduler, .* for the sampler DPM\+\+.*dato.enable again"):
        run(pipe)
    dato.enable(pipe, FEW)
    assert run(pipe).shape == plain.shape
    dato.disable(pipe)
    assert pipe.scheduler is given
    dato.enable(pipe, FEW)
    pipe.scheduler = given
    dato.disable(pipe)
    assert pipe.scheduler is given
    assert torch.equal(run(pipe), plain)


def test_other_steps_are_refused(pipe: Any) -> None:
    own = pipe.scheduler
    with dato.accelerate(pipe, FEW), pytest.raises(StrategyError, match=rf"{STEPS} steps, but the scheduler makes 4 calls"):
        run(pipe, num_inference_steps=4)
    assert pipe.scheduler is own


class TestSharedPipelines:
    def test_another_sampler_is_refused_by_name(self, pipe: Any) -> None:
        other, own = sharing(pipe), pipe.scheduler
        plain = run(other)
        with dato.accelerate(pipe, FEW):
            expected = run(pipe)
            with pytest.raises(ValueError, match=r"StableDiffusionPipeline runs with PNDMScheduler, .* for the sampler DPM\+\+.*the scheduler of the enabled one.*dato.disable"):
                run(other)
            assert torch.equal(run(pipe), expected)
            assert other.scheduler is own
        assert torch.equal(run(other), plain)

    def test_the_same_sampler_follows(self, pipe: Any) -> None:
        image = {"image": torch.rand(1, 3, 32, 32), "strength": 0.5, "num_inference_steps": STEPS, "output_type": "latent"}
        with dato.accelerate(pipe, Strategy((*[Step(FULL)] * 4, Step(1), Step(0)), sampler="DPM++")):
            expected = run(pipe)
            other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
            other.set_progress_bar_config(disable=True)
            other("x", **image)
            report = report_of(pipe)
            assert (report.pipeline, report.calls_by_depth) == ("StableDiffusionImg2ImgPipeline", {FULL: 1, 1: 1, 0: 1})
            other.scheduler = copy.deepcopy(pipe.scheduler)
            other("x", **image)
            assert torch.equal(run(pipe), expected)

    def test_a_copy_follows_by_itself(self, pipe: Any) -> None:
        plain, own = run(pipe), pipe.scheduler
        dato.enable(pipe, FEW)
        expected = run(pipe)
        other = copy.deepcopy(pipe)
        assert torch.equal(run(other), expected)
        dato.disable(other)
        assert isinstance(other.scheduler, PNDMScheduler)
        assert other.scheduler is not own
        assert torch.equal(run(other), plain)
        assert torch.equal(run(pipe), expected)
        dato.disable(pipe)
        assert pipe.scheduler is own
        assert torch.equal(run(pipe), plain)

    def test_a_pipeline_that_is_given_another_unet(self, pipe: Any, make_pipe: Callable[..., Any]) -> None:
        own, old = pipe.scheduler, pipe.unet
        dato.enable(pipe, FEW)
        pipe.unet = make_pipe().unet
        dato.enable(pipe, Strategy.full(STEPS, sampler="Euler"))
        assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
        assert untouched(old)
        run(pipe)
        pipe.unet = old
        dato.disable(pipe)
        assert pipe.scheduler is own


@torch.inference_mode()
def test_a_loop_of_ones_own_uses_the_one_in_its_place(pipe: Any) -> None:
    own = DDIMScheduler.from_config(pipe.scheduler.config)
    loop = SimpleNamespace(unet=pipe.unet, scheduler=own)
    with dato.accelerate(loop, Strategy((Step(FULL), Step(0), Step(1)), sampler="DPM++")):
        loop.scheduler.set_timesteps(3)
        for t in loop.scheduler.timesteps:
            loop.unet(torch.ones(1, 4, 16, 16), t, torch.ones(1, 7, 64))
        assert report_of(loop).calls_by_depth == {FULL: 1, 0: 1, 1: 1}
    assert loop.scheduler is own


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        (Sampler("FastestScheduler"), ("diffusers", "has no scheduler FastestScheduler", "Strategy(strategy.steps)")),
        (Sampler("DDIMScheduler", {"solver_order": 2}), ("sets solver_order", "DDIMScheduler", "set_alpha_to_one")),
        (Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "fast"}), ("refuses", "DPMSolverMultistepScheduler(algorithm_type='fast')")),
        (Sampler("FlowMatchEulerDiscreteScheduler"), ("FlowMatchEulerDiscreteScheduler", "StableDiffusionPipeline's own, PNDMScheduler, is for noise of another kind")),
    ],
)
def test_what_the_pipeline_cannot_take_is_refused_and_nothing_is_touched(pipe: Any, sampler: Sampler, named: tuple[str, ...]) -> None:
    own = pipe.scheduler
    with pytest.raises(ValueError, match=re.escape(named[0])) as caught:
        dato.enable(pipe, Strategy.full(STEPS, sampler=sampler))
    assert all(words in str(caught.value) for words in named), str(caught.value)
    assert pipe.scheduler is own
    assert untouched(pipe.unet)
    assert dato.status(pipe) is None


def test_pipelines_whose_scheduler_cannot_be_exchanged_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"DPM\+\+, and SimpleNamespace has no scheduler"):
        dato.enable(SimpleNamespace(unet=pipe.unet), FEW)
    flow = SimpleNamespace(unet=pipe.unet, scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"SimpleNamespace's own, FlowMatchEulerDiscreteScheduler, is for noise of another kind"):
        dato.enable(flow, Strategy(FEW.steps, sampler="DDIM"))
    assert untouched(pipe.unet)


def test_what_it_was_measured_with_is_compared_with_its_own_sampler(pipe: Any) -> None:
    measured = FEW.with_provenance(sampler={"steps": STEPS, "settings": {"class": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}})
    with dato.accelerate(pipe, measured):  # a warning would be an error
        run(pipe)
    with pytest.warns(ProvenanceWarning, match="the sampler is PNDMScheduler and was DPMSolverMultistepScheduler"):
        dato.enable(pipe, Strategy(measured.steps, measured.provenance))
