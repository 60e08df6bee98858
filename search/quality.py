"""Frechet distance between generated and real images, by torchmetrics, on a feature net chosen by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance


class FeatureNet(Protocol):
    """Maps (B, 3, H, W) uint8 images to (B, num_features) features."""

    num_features: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of the images."""
        ...


class QualityError(ValueError):
    """A metric that cannot be computed: the message says why and what to do."""


def load_features(name: str) -> FeatureNet:
    """A feature net by name: "embedded" (ships with the package) or "inception" (extra ``inception``)."""
    if name == "embedded":
        from search.embedded.features import load_digit_features  # only the default needs it

        return load_digit_features()
    if name == "inception":
        try:
            metric = FrechetInceptionDistance(feature=2048)
        except (ModuleNotFoundError, ImportError) as error:
            raise QualityError(f"quality.features 'inception' is not installed ({error}); pip install 'dato-search[inception]'") from None
        metric.inception.num_features = 2048
        return metric.inception
    raise QualityError(f"quality.features is {name!r}; allowed are 'embedded' and 'inception'")


@torch.inference_mode()
def extract(net: FeatureNet, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """(N, num_features) float32 features of batches of (B, 3, H, W) uint8 images, on the CPU."""
    return torch.cat([net(batch).float().cpu() for batch in batches])


class _Features(nn.Module):
    """Hands torchmetrics features that are already extracted."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, num_features) float64."""
        return features.double()


class Fid:
    """FID of feature sets against one reference set, whose statistics are computed once."""

    def __init__(self, reference: torch.Tensor) -> None:
        self._metric: Any = FrechetInceptionDistance(feature=_Features(reference.shape[1]), reset_real_features=False)
        self._metric.update(reference, real=True)

    def __call__(self, features: torch.Tensor) -> float:
        """FID of (N, num_features) features. Raises `QualityError` for NaN features or fewer than two images."""
        if len(features) < 2 or not torch.isfinite(features).all():
            raise QualityError(f"FID needs at least 2 images with finite features; got {len(features)} images, finite: {bool(torch.isfinite(features).all())}")
        self._metric.reset()
        self._metric.update(features, real=False)
        return float(self._metric.compute())

    def interval(self, features: torch.Tensor, resamples: int, seed: int = 0) -> tuple[float, float]:
        """95 % interval over the choice of generated images: FID +- 1.96 bootstrap standard deviations.

        Not the bootstrap's percentiles: resampling repeats images, which shifts every resampled FID upwards.
        """
        value = self(features)
        if resamples < 2:
            return float("nan"), float("nan")
        generator = torch.Generator().manual_seed(seed)
        draws = [self(features[torch.randint(len(features), (len(features),), generator=generator)]) for _ in range(resamples)]
        spread = 1.96 * float(torch.tensor(draws).std())
        return value - spread, value + spread
