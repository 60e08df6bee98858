"""Feature nets by name: what a Frechet distance, a kernel distance or an Inception Score is taken on."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

NAMES = "'embedded', 'inception', 'inception:<weight file>', 'clip' and 'clip:<folder or hub id>'"


class FeatureNet(Protocol):
    """Maps (B, 3, H, W) uint8 images to (B, num_features) features."""

    num_features: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of the images."""
        ...


class QualityError(ValueError):
    """A metric that cannot be computed: the message says why and what to do."""


def load_features(name: str, device: torch.device | str = "cpu") -> FeatureNet:
    """A feature net by name, on a device.

    Args:
        name: "embedded" (ships with the package), "inception" (downloaded once, or "inception:<weight file>"), or
            "clip:<folder or hub id>" (image features of a CLIP model; "clip" alone is openai/clip-vit-base-patch32).
        device: Where it computes; images are moved there.

    Raises:
        QualityError: The name is unknown, or the weights cannot be loaded.
    """
    kind, _, source = name.partition(":")
    net: nn.Module
    if name == "embedded":
        from search.embedded.features import load_digit_features  # only the default needs it

        net = load_digit_features()
    elif kind == "inception":
        net = _load_inception(source or None)
    elif kind == "clip":
        from search.clip import load_clip  # transformers takes seconds to import

        net = load_clip(source or None)
    else:
        raise QualityError(f"protocol.features is {name!r}; allowed are {NAMES}")
    return net.to(device)  # type: ignore[return-value]


def _load_inception(path: str | None) -> nn.Module:
    from search.inception import WEIGHTS_URL, load_inception

    try:
        return load_inception(path)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        given = f"the weight file {path!r}" if path else "the Inception weights"
        raise QualityError(
            f"{given} cannot be loaded ({str(error).partition(chr(10))[0] or type(error).__name__}); download {WEIGHTS_URL} and set "
            f"protocol.features=inception:/path/to/{Path(WEIGHTS_URL).name}"
        ) from None


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
