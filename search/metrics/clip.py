"""CLIP (arXiv 2103.00020) from transformers: image features, and how well an image fits its prompt.

Images are prepared here with tensors alone, because transformers' own image processor needs torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, CLIPModel

from search.metrics.feature_net import QualityError, device_of

DEFAULT = "openai/clip-vit-base-patch32"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Clip(nn.Module):
    """Maps (B, 3, H, W) uint8 images to (B, num_features) image features; `score` compares them with prompts."""

    higher_is_better = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.num_features: int = model.config.projection_dim
        self._side: int = model.config.vision_config.image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 to (B, num_features)."""
        pixels = prepare(images.to(device_of(self)), self._side).to(self.model.dtype)
        return _projected(self.model.get_image_features(pixel_values=pixels))

    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, num_features) of the prompts, cut to the model's length."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device_of(self))
        return _projected(self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]))

    @torch.inference_mode()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """(B,) CLIP scores: 100 times the cosine of image and prompt, as torchmetrics' CLIPScore averages them."""
        a = F.normalize(self(images).float(), dim=1)
        b = F.normalize(self.text_features(prompts).float(), dim=1)
        return (100 * (a * b).sum(1)).cpu()


def _projected(output: Any) -> torch.Tensor:
    # transformers 5 returns an output object where earlier versions returned the tensor.
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def prepare(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, H, W) uint8 to CLIP's input: short side to `side` bicubically, centre crop, normalised."""
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    x = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False).round().clamp(0, 255) / 255
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = x[..., top : top + side, left : left + side]
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def load_clip(source: str | None = None) -> Clip:
    """A CLIP model from a local folder or the hub. Raises `QualityError`."""
    name = source or DEFAULT
    try:
        model = CLIPModel.from_pretrained(name, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise QualityError(f"CLIP {name!r} cannot be loaded ({str(error).strip().splitlines()[0]}); give a folder or a hub id, such as {DEFAULT}") from None
    return Clip(model.eval().requires_grad_(False), tokenizer)
