"""Feature nets by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from search.metrics.feature_net import FeatureNet, QualityError

NAMES = "'embedded', 'inception', 'inception:<weight file>', 'clip' and 'clip:<folder or hub id>'"


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
        from search.metrics.clip import load_clip  # transformers takes seconds to import

        net = load_clip(source or None)
    else:
        raise QualityError(f"protocol.features is {name!r}; allowed are {NAMES}")
    return net.to(device)  # type: ignore[return-value]


def _load_inception(path: str | None) -> nn.Module:
    from search.metrics.inception import WEIGHTS_URL, load_inception

    try:
        return load_inception(path)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        given = f"the weight file {path!r}" if path else "the Inception weights"
        raise QualityError(
            f"{given} cannot be loaded ({str(error).partition(chr(10))[0] or type(error).__name__}); download {WEIGHTS_URL} and set "
            f"protocol.features=inception:/path/to/{Path(WEIGHTS_URL).name}"
        ) from None
