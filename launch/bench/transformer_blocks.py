"""Blocks of diffusion transformers at the width and the numbers of tokens of the real models, with random weights: their arithmetic is the same whatever the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import nn

Call = dict[str, Any]


@dataclass(frozen=True)
class BlockGeometry:
    """A kind of block.

    Attributes:
        channels: C.
        text: T, of the longest prompt that the pipeline passes, or a usual one where it passes only so many as there are.
        blocks: How many the model has, of all kinds: a plan that is made once a call is one for all.
        block: Makes one.
        call: From numbers of image and text tokens to its arguments.
        text_first: How many text tokens come first among those that its attention is given.
    """

    channels: int
    text: int
    blocks: int
    block: Callable[[], nn.Module]
    call: Callable[[int, int], Call]
    text_first: int = 0


def _tokens(channels: int, image: int, text: int) -> Call:
    return {"hidden_states": torch.randn(1, image, channels), "encoder_hidden_states": torch.randn(1, text, channels)}


def _pixart() -> nn.Module:
    return BasicTransformerBlock(
        1152, 16, 72, cross_attention_dim=1152, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, attention_bias=True, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip


def _pixart_call(image: int, text: int) -> Call:
    return {**_tokens(1152, image, text), "encoder_attention_mask": torch.zeros(1, 1, text), "timestep": torch.randn(1, 6 * 1152)}


def _sd3_call(image: int, text: int) -> Call:
    return {**_tokens(1536, image, text), "temb": torch.randn(1, 1536)}


def _flux_call(image: int, text: int) -> Call:
    return {**_tokens(3072, image, text), "temb": torch.randn(1, 3072), "image_rotary_emb": (torch.randn(text + image, 128), torch.randn(text + image, 128))}


def _qwen_call(image: int, text: int) -> Call:
    rotary = torch.randn(image, 64, dtype=torch.complex64), torch.randn(text, 64, dtype=torch.complex64)
    return {**_tokens(3072, image, text), "encoder_hidden_states_mask": None, "temb": torch.randn(1, 3072), "image_rotary_emb": rotary}


GEOMETRIES = {
    "SD3-medium": BlockGeometry(1536, 333, 24, lambda: JointTransformerBlock(1536, 24, 64), _sd3_call),
    "PixArt-Sigma": BlockGeometry(1152, 300, 28, _pixart, _pixart_call),
    "FLUX.1, double": BlockGeometry(3072, 512, 57, lambda: FluxTransformerBlock(3072, 24, 128), _flux_call),
    "FLUX.1, single": BlockGeometry(3072, 512, 57, lambda: FluxSingleTransformerBlock(3072, 24, 128), _flux_call, text_first=512),
    "Qwen-Image": BlockGeometry(3072, 128, 60, lambda: QwenImageTransformerBlock(3072, 24, 128), _qwen_call),
}
"""By name. 1024 image tokens are a picture of 512 x 512, 4096 one of 1024 x 1024."""
