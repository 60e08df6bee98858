"""Tiny pipelines with the true block layouts of PixArt, Stable Diffusion 3, FLUX.1, Qwen-Image and CogView4, and how the tests run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

STEPS = 6
BLOCKS = 5


def _pixart() -> Any:
    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=BLOCKS, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8, cross_attention_dim=16, caption_channels=12,
    )  # fmt: skip
    return PixArtAlphaPipeline(tokenizer=None, text_encoder=None, vae=_vae(), transformer=model, scheduler=DPMSolverMultistepScheduler())


def _sd3(**settings: Any) -> Any:
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=BLOCKS, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
        caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8, **settings,
    )  # fmt: skip
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
    return StableDiffusion3Pipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(16), **nothing)


def _flux(guidance_embeds: bool = False) -> Any:
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=BLOCKS - 2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(), **nothing)


def _qwen() -> Any:
    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=BLOCKS, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return QwenImagePipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None)


def _cogview4() -> Any:
    model = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=BLOCKS, attention_head_dim=8, num_attention_heads=2, text_embed_dim=12, time_embed_dim=16, condition_dim=4,
        pos_embed_max_size=8, sample_size=8, rope_axes_dim=(16, 16),
    )  # fmt: skip
    return CogView4Pipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(), text_encoder=None, tokenizer=None)


def _vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(latent_channels=channels, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, shift_factor=0.0)


FAMILIES: dict[str, Callable[[], Any]] = {
    "pixart": _pixart,
    "sd3": _sd3,
    "sd3.5": lambda: _sd3(qk_norm="rms_norm", dual_attention_layers=(0, 1, 2)),
    "flux": _flux,
    "flux-embedded-guidance": lambda: _flux(guidance_embeds=True),
    "qwen-image": _qwen,
    "cogview4": _cogview4,
}
"""By name; all of five blocks."""
BATCHED = ("pixart", "sd3", "sd3.5")
"""Families that guide with a batch [uncond, cond]; the others make a call for each half."""


def tiny(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """A pipeline of a family with random weights, of which none are zero, so that every block does something."""
    torch.manual_seed(3)
    pipe = FAMILIES[family]()
    pipe.transformer.eval()
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            if weight.ndim == 1 and not weight.any():
                weight.normal_(std=0.1)
    pipe.to(dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, images: int = 1, guided: bool = True, steps: int = STEPS, **changes: Any) -> torch.Tensor:
    """Latents of as many prompts, with a seed each."""
    model = type(pipe.transformer).__name__
    chance = torch.Generator().manual_seed(9)
    dtype = pipe.transformer.dtype

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(images, *shape, generator=chance, dtype=torch.float64).to(dtype)

    given: dict[str, Any] = {"prompt_embeds": rows(7, 12), "negative_prompt_embeds": rows(7, 12) if guided else None}
    if model in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        given |= {"pooled_prompt_embeds": rows(10), "negative_pooled_prompt_embeds": rows(10) if guided else None}
    if model == "PixArtTransformer2DModel":
        mask = torch.ones(images, 7, dtype=torch.int64)
        given |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask if guided else None, "use_resolution_binning": False, "negative_prompt": None}
    if model == "QwenImageTransformer2DModel":
        mask = torch.ones(images, 7, dtype=torch.int64)
        given |= {"prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask if guided else None}
    given |= {"true_cfg_scale": 3.0 if guided else 1.0} if model in ("FluxTransformer2DModel", "QwenImageTransformer2DModel") else {"guidance_scale": 3.0 if guided else 1.0}
    side = 64 if model == "QwenImageTransformer2DModel" else 16
    generators = [torch.Generator().manual_seed(k) for k in range(images)]
    found = pipe(height=side, width=side, num_inference_steps=steps, generator=generators, output_type="latent", **{**given, **changes})
    result: torch.Tensor = found.images
    return result
