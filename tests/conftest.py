"""Tiny real pipelines with Stable Diffusion v1.5's block layout and random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from search.embedded.train import BETAS, make_autoencoder, make_text_encoder, make_tokenizer

torch.set_num_threads(1)  # the tiny models gain nothing from more, and two processes with two threads each crawl


def make_unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "cross_attention_dim": 64,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**settings, **changes}).eval()


@pytest.fixture(scope="session")
def make_pipe() -> Callable[..., StableDiffusionPipeline]:
    """A factory of pipelines; keyword arguments change the UNet."""

    def make(**changes: Any) -> StableDiffusionPipeline:
        tokenizer = make_tokenizer()
        torch.manual_seed(1)
        pipe = StableDiffusionPipeline(
            vae=make_autoencoder().eval(),
            text_encoder=make_text_encoder(tokenizer).eval(),
            tokenizer=tokenizer,
            unet=make_unet(**changes),
            scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def pipe(make_pipe: Callable[..., StableDiffusionPipeline]) -> StableDiffusionPipeline:
    return make_pipe()
