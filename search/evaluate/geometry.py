"""Geometries of UNets and transformers by name, for measurements that need no weights: the arithmetic is the same whatever the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]

from dato.costs import CostModel
from dato.denoiser import DENOISERS
from dato.files import shown
from dato.options import Options
from dato.sampler import Sampler
from dato.scheduler import scheduler_for
from dato.transformer.example import example_call
from search.evaluate.model_files import EMBEDDED_MODELS

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
_SD35: dict[str, Any] = {
    "sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
_PIXART: dict[str, Any] = {"sample_size": 128, "caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False}
_PUBLISHED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "sd15": (_SD15, 64, "UNet2DConditionModel", "PNDMScheduler"),
    "sd2": (_SD2, 64, "UNet2DConditionModel", "PNDMScheduler"),
    "sd2-768": (_SD2, 96, "UNet2DConditionModel", "PNDMScheduler"),
    "sdxl": (_SDXL, 128, "UNet2DConditionModel", "EulerDiscreteScheduler"),
    "sd35": (_SD35, 128, "SD3Transformer2DModel", "FlowMatchEulerDiscreteScheduler"),  # medium
    "flux": ({"guidance_embeds": True}, 128, "FluxTransformer2DModel", "FlowMatchEulerDiscreteScheduler"),  # dev
    "pixart": (_PIXART, 128, "PixArtTransformer2DModel", "DPMSolverMultistepScheduler"),  # Sigma
    "qwen_image": ({}, 166, "QwenImageTransformer2DModel", "FlowMatchEulerDiscreteScheduler"),
}
"""By name: what differs from its class's defaults, the latent's side, that class, and the scheduler that it comes with."""
NAMES = (*_PUBLISHED, *EMBEDDED_MODELS)
"""Every geometry that has a name."""


@dataclass(frozen=True)
class Geometry:
    """A UNet's or transformer's configuration and the latent it is used at.

    Attributes:
        name: Short name.
        config: Arguments of its class.
        latent: Side of the latent: 64 for 512 px, 96 for 768 px, 128 for 1024 px.
        kind: Its class, by diffusers' name.
        scheduler: The class of the scheduler that it comes with, by diffusers' name.
        text: Text tokens of a call; None for as many as is usual.
    """

    name: str
    config: dict[str, Any]
    latent: int
    kind: str = "UNet2DConditionModel"
    scheduler: str = "PNDMScheduler"
    text: int | None = None

    @property
    def is_unet(self) -> bool:
        """Whether it is a UNet; a transformer otherwise."""
        return self.kind == "UNet2DConditionModel"

    @property
    def guided(self) -> bool:
        """Whether its pipeline computes two halves of guidance; not where the model takes the scale itself."""
        return not self.config.get("guidance_embeds", False)

    def samples_with(self, sampler: Sampler | None) -> bool:
        """Whether its pipeline can have a sampler in place of its own: not every one is for noise of its kind."""
        try:
            return sampler is None or scheduler_for(self, getattr(diffusers, self.scheduler)(), sampler) is not None
        except ValueError:
            return False

    def meta(self) -> Any:
        """The model on the meta device: shapes without memory."""
        with torch.device("meta"):
            return self._made()

    def _made(self) -> Any:
        own = {"sample_size": self.latent} if self.is_unet else {}
        return getattr(diffusers, self.kind)(**own, **self.config).eval()

    def costs(self, options: Options | None = None) -> CostModel:
        """Its cost model."""
        return CostModel(self.meta(), self.latent, self.latent, options or Options(), self.text)

    def random(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> Any:
        """The model with small random weights, made in place so that it needs its own memory only once."""
        with init_empty_weights(include_buffers=False):  # what a transformer knows of positions is no weight
            model = self._made().to(dtype)
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty_like(p, device=device))
        model.to(device)
        generator = torch.Generator(device).manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.ndim > 1:
                    p.normal_(0.0, p[0].numel() ** -0.5, generator=generator)
                else:
                    p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return model

    def example(self, batch: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Arguments of one call: of a UNet (batch, 4, latent, latent) noise, 77 text tokens, and SDXL's size conditions; of a transformer as its pipelines give them."""
        if not self.is_unet:
            return example_call(self.meta(), self.latent, self.latent, self.text, batch, dtype, device)
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
    """A geometry by name: sd15 (512 px), sd2 (512 px), sd2-768, sdxl, sd35, flux and pixart (1024 px), qwen_image (1328 px), embedded, embedded_dit.

    Raises:
        ValueError: There is none of that name.
    """
    if name in EMBEDDED_MODELS:
        return _read(name, EMBEDDED_MODELS[name])
    if name not in _PUBLISHED:
        raise ValueError(f"geometry is {shown(name)}; allowed are {', '.join(NAMES)}")
    return Geometry(name, *_PUBLISHED[name])


def unet_geometry(name: str) -> Geometry:
    """`geometry`, of a UNet. Raises ValueError for a transformer's too."""
    found = geometry(name)
    if not found.is_unet:
        unets = (other for other in NAMES if geometry(other).is_unet)
        raise ValueError(f"geometry is {name!r}, a transformer; allowed are the UNets {', '.join(unets)} (dato bench transformer measures transformers)")
    return found


def _read(name: str, folder: Path) -> Geometry:
    """Of a model that ships."""
    file = next(file for part in DENOISERS if (file := folder / part / "config.json").is_file())
    config = json.loads(file.read_text(encoding="utf-8"))
    kind, side = config["_class_name"], config["sample_size"]
    given = {k: v for k, v in config.items() if not k.startswith("_") and not (k == "sample_size" and kind == "UNet2DConditionModel")}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
    return Geometry(name, given, side, kind, scheduler, _TEXT.get(name))


_TEXT = {"embedded_dit": 12 + 256}
"""Text tokens of what ships: its tokenizer's, and the zeros that a pipeline without T5 puts there for it."""
