"""Schedulers are exchanged for the same model."""

from diffusers import DDIMScheduler, PNDMScheduler

from dato.sampler import exchange_scheduler


def test_latents_are_not_clipped_unless_the_model_says_so() -> None:
    clipped = exchange_scheduler(DDIMScheduler(clip_sample=True), "DDPMScheduler")
    assert clipped.config.clip_sample
    assert not exchange_scheduler(PNDMScheduler(), "DDIMScheduler").config.clip_sample
    assert "clip_sample" not in exchange_scheduler(PNDMScheduler(), "EulerDiscreteScheduler").config
