"""What a run keeps between calls: seen through the UNet's own calls, without a sampler's loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

import dato
from dato import FULL, Step, Strategy
from tests.dato.conftest import report_of, sharing


@pytest.fixture
def freeu(pipe: Any) -> Iterator[Any]:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    yield pipe
    dato.disable(pipe)


@torch.inference_mode()
@pytest.mark.parametrize("depth", range(1, 12))
def test_freeu_which_scales_in_place_leaves_the_cache_alone(freeu: Any, depth: int) -> None:
    sample, states = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(2, 7, 64)
    plain = freeu.unet(sample, torch.tensor(500), states).sample
    dato.enable(freeu, Strategy((Step(FULL), Step(depth), Step(depth))))
    freeu.scheduler.timesteps = torch.full((3,), 500)
    # With the same input, features that are kept are those that would be computed: every call gives the full result.
    for t in freeu.scheduler.timesteps:
        assert torch.equal(freeu.unet(sample, t, states).sample, plain)


def test_image_to_image_with_an_extra_call_follows_the_last_entries(pipe: Any) -> None:
    other = sharing(pipe, StableDiffusionImg2ImgPipeline)
    strategy = Strategy((*[Step(FULL)] * 4, Step(2), Step(1), Step(1), Step(1), Step(1), Step(0)))
    with dato.accelerate(other, strategy):
        other("x", image=torch.rand(1, 3, 32, 32), strength=0.6, num_inference_steps=10, output_type="latent")
        report = report_of(other)
    assert report.finished
    # PNDM makes 11 calls for 10 steps, and the last 7 at this strength: entries 3 to 9.
    assert report.calls_by_depth == {FULL: 1, 2: 1, 1: 4, 0: 1}


@torch.inference_mode()
@pytest.mark.parametrize("strategy", ["F00F00", "F00100", "pruned"])
def test_a_loop_may_change_in_place_what_it_is_given(pipe: Any, strategy: str) -> None:
    steps = tuple(Step(FULL if c == "F" else int(c), 0.0) for c in strategy) if strategy != "pruned" else (Step(FULL, 0.5), Step(0), Step(2, 0.5)) * 2
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe._guidance_scale = 1.0
    states = torch.ones(1, 7, 64)

    def loop(in_place: bool) -> torch.Tensor:
        pipe.scheduler.set_timesteps(len(steps))
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        for i, t in enumerate(pipe.scheduler.timesteps):
            noise = pipe.unet(latents, t, states).sample
            noise = noise if in_place else noise.clone()
            noise[:, :, :8].mul_(3.0 + i)
            latents = pipe.scheduler.step(noise, t, latents).prev_sample
        return latents

    with dato.accelerate(pipe, Strategy(steps)):
        assert torch.equal(loop(in_place=True), loop(in_place=False))
