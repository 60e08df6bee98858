"""UNet geometries by name, for measurements that need no weights: the arithmetic is the same whatever the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from dato.files import shown
from search.evaluate.pipelines import EMBEDDED

_SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
_SD2: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@dataclass(frozen=True)
class Geometry:
    """A UNet's configuration and the latent it is used at.

    Attributes:
        name: Short name.
        config: Arguments of UNet2DConditionModel.
        latent: Side of the latent: 64 for 512 px, 96 for 768 px, 128 for 1024 px.
    """

    name: str
    config: dict[str, Any]
    latent: int

    def meta(self) -> UNet2DConditionModel:
        """The UNet on the meta device: shapes without memory."""
        with torch.device("meta"):
            return UNet2DConditionModel(sample_size=self.latent, **self.config).eval()

    def random(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> UNet2DConditionModel:
        """The UNet with small random weights, made in place so that it needs its own memory only once."""
        unet = self.meta().to(dtype).to_empty(device=device)
        generator = torch.Generator(device).manual_seed(seed)
        with torch.no_grad():
            for name, p in unet.named_parameters():
                if p.ndim > 1:
                    p.normal_(0.0, p[0].numel() ** -0.5, generator=generator)
                else:
                    p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return unet

    def example(self, batch: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Arguments of one call: (batch, 4, latent, latent) noise, 77 text tokens, and SDXL's size conditions."""
        generator = torch.Generator().manual_seed(0)
        call: dict[str, Any] = {
            "sample": torch.randn(batch, self.config.get("in_channels", 4), self.latent, self.latent, generator=generator).to(device, dtype),
            "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": torch.randn(batch, 77, self.config["cross_attention_dim"], generator=generator).to(device, dtype),
        }
        if self.config.get("addition_embed_type") == "text_time":
            text = self.config["projection_class_embeddings_input_dim"] - 6 * self.config["addition_time_embed_dim"]
            side = 8.0 * self.latent
            ids = torch.tensor([[side, side, 0.0, 0.0, side, side]]).expand(batch, -1)
            call["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, text, generator=generator).to(device, dtype), "time_ids": ids.to(device, dtype)}
        return call


def geometry(name: str) -> Geometry:
    """A geometry by name: sd15 (512 px), sd2 (512 px), sd2-768, sdxl (1024 px), embedded. Raises ValueError otherwise."""
    known = {"sd15": (_SD15, 64), "sd2": (_SD2, 64), "sd2-768": (_SD2, 96), "sdxl": (_SDXL, 128)}
    if name == "embedded":
        config = json.loads((EMBEDDED / "unet" / "config.json").read_text(encoding="utf-8"))
        side = config.pop("sample_size")
        return Geometry(name, {k: v for k, v in config.items() if not k.startswith("_")}, side)
    if name not in known:
        raise ValueError(f"geometry is {shown(name)}; allowed are {', '.join(known)} and embedded")
    return Geometry(name, *known[name])
