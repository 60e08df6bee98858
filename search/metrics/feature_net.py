"""What a Frechet distance, a kernel distance or an Inception Score is taken on: features of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn


class FeatureNet(Protocol):
    """Maps (B, 3, H, W) uint8 images to (B, num_features) features."""

    num_features: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of the images."""
        ...


class QualityError(ValueError):
    """A metric that cannot be computed: the message says why and what to do."""


def class_logits(net: FeatureNet, features: torch.Tensor) -> torch.Tensor:
    """(N, classes) logits that a classifier's own last layer gives (N, num_features) features. Raises `QualityError`."""
    classify = getattr(net, "classify", None) or getattr(net, "head", None)
    if classify is None:
        raise QualityError(f"{type(net).__name__} classifies nothing, so it has no Inception Score; use protocol.features=inception")
    with torch.inference_mode():
        return classify(features.to(device_of(net))).float().cpu()


def device_of(net: object) -> torch.device:
    """Where a net computes; the CPU for anything that is no module."""
    first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


@torch.inference_mode()
def extract(net: FeatureNet, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """(N, num_features) float32 features of batches of (B, 3, H, W) uint8 images, on the CPU."""
    device = device_of(net)
    return torch.cat([net(batch.to(device)).float().cpu() for batch in batches])
