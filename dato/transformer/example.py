"""A call of a transformer as the pipelines of its family make it, of noise: to count or time it without text encoder and VAE.

Letters: B batch, N image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dato.transformer.refusals import require_family

PACKED = 2
"""Side of the patches of the latent that the pipelines of FLUX.1 and Qwen-Image make tokens of; other transformers make their own."""


def example_call(
    model: Any, height: int, width: int, text: int | None = None, batch: int = 1, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Any]:  # fmt: skip
    """Arguments of one call of the model's forward.

    Args:
        model: A transformer that dato accelerates; its configuration is read.
        height: Rows of the latent.
        width: Columns of the latent.
        text: T; None for as many as the pipelines of its family give at most, see `TEXT`.
        batch: B.
        dtype: None for PyTorch's default.
        device: None for PyTorch's default.

    Raises:
        ValueError: A transformer of another family.
    """
    family = require_family(model)
    generator = None if torch.device(device or torch.get_default_device()).type == "meta" else torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        if generator is None:
            return torch.empty(batch, *shape, dtype=dtype, device=device)
        return torch.randn(batch, *shape, generator=generator, device="cpu").to(device=device, dtype=dtype)

    call = _FAMILIES[family](model.config, rows, (height, width), text or TEXT[family])
    return {**call, "timestep": torch.full((batch,), 0.5, dtype=dtype, device=device)}


_Rows = Callable[..., torch.Tensor]


def _pixart(config: Any, rows: _Rows, latent: tuple[int, int], text: int) -> dict[str, Any]:
    conditions: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions or (config.use_additional_conditions is None and config.sample_size == 128):
        conditions = {"resolution": rows(2), "aspect_ratio": rows(1)}
    return {"hidden_states": rows(config.in_channels, *latent), "encoder_hidden_states": rows(text, config.caption_channels), "added_cond_kwargs": conditions}


def _sd3(config: Any, rows: _Rows, latent: tuple[int, int], text: int) -> dict[str, Any]:
    return {
        "hidden_states": rows(config.in_channels, *latent), "encoder_hidden_states": rows(text, config.joint_attention_dim), "pooled_projections": rows(config.pooled_projection_dim),
    }  # fmt: skip


def _flux(config: Any, rows: _Rows, latent: tuple[int, int], text: int) -> dict[str, Any]:
    height, width = (side // PACKED for side in latent)
    hidden = rows(height * width, config.in_channels)
    places = torch.zeros(height, width, 3, device=hidden.device, dtype=hidden.dtype)
    places[..., 1] += torch.arange(height, device=hidden.device)[:, None]
    places[..., 2] += torch.arange(width, device=hidden.device)[None]
    call: dict[str, Any] = {
        "hidden_states": hidden, "encoder_hidden_states": rows(text, config.joint_attention_dim), "pooled_projections": rows(config.pooled_projection_dim),
        "img_ids": places.reshape(-1, 3), "txt_ids": torch.zeros(text, 3, device=hidden.device, dtype=hidden.dtype),
    }  # fmt: skip
    return call | ({"guidance": rows().abs()} if config.guidance_embeds else {})


def _qwen(config: Any, rows: _Rows, latent: tuple[int, int], text: int) -> dict[str, Any]:
    height, width = (side // PACKED for side in latent)
    hidden = rows(height * width, config.in_channels)
    return {
        "hidden_states": hidden, "encoder_hidden_states": rows(text, config.joint_attention_dim), "img_shapes": [[(1, height, width)]] * len(hidden),
        "encoder_hidden_states_mask": None,
    }  # fmt: skip


def _cogview4(config: Any, rows: _Rows, latent: tuple[int, int], text: int) -> dict[str, Any]:
    return {
        "hidden_states": rows(config.in_channels, *latent), "encoder_hidden_states": rows(text, config.text_embed_dim),
        "original_size": rows(2), "target_size": rows(2), "crop_coords": rows(2),
    }  # fmt: skip


_FAMILIES: Mapping[str, Callable[[Any, _Rows, tuple[int, int], int], dict[str, Any]]] = {
    "PixArtTransformer2DModel": _pixart, "SD3Transformer2DModel": _sd3, "FluxTransformer2DModel": _flux, "QwenImageTransformer2DModel": _qwen,
    "CogView4Transformer2DModel": _cogview4,
}  # fmt: skip
TEXT: Mapping[str, int] = {
    "PixArtTransformer2DModel": 300,  # PixArt-Sigma's; PixArt-alpha's are 120
    "SD3Transformer2DModel": 77 + 256,  # CLIP's and T5's
    "FluxTransformer2DModel": 512,
    "QwenImageTransformer2DModel": 512,  # a prompt has as many as it is long, and no more
    "CogView4Transformer2DModel": 1024,  # the same, in sixteens
}
"""T by family, of a call as its pipelines make it by default."""
