"""The feature net of the embedded default: a small digit classifier whose 32 penultimate activations a FID is taken on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).parent / "features.safetensors"


class DigitFeatures(nn.Module):
    """A four-layer convolutional classifier of 40 x 40 digits; its forward returns features, `logits` the classes.

    `num_features` is the attribute by which torchmetrics learns the feature size of a custom net.
    """

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((1, 16), (16, 32), (32, 48), (48, 64)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.GroupNorm(8, c_out), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, self.num_features))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.num_features, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) images, uint8 or float in [0, 1], to (B, 32) float32 features."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return self.body(x.mean(1, keepdim=True) * 2 - 1)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) images to (B, 10) class logits."""
        return self.head(self.forward(images))


def load_digit_features() -> DigitFeatures:
    """Load the shipped feature net, in eval mode on the CPU."""
    net = DigitFeatures()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(False)
