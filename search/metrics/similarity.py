"""Is it still the same picture? Images of one prompt and seed, accelerated and not, compared by pixels and by features.

PSNR, SSIM, MS-SSIM and LPIPS need both images at once, and are taken on the worker that makes them. The feature distance needs
only the features that the FID is taken on: no image is generated or read for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from scipy.special import stdtrit
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from search.measurements import Measurement
from search.metrics.feature_net import QualityError
from search.metrics.intervals import Value

DISTANCE = "feature distance"
HIGHER_IS_CLOSER = {"psnr": True, "ssim": True, "ms-ssim": True, "lpips": False, DISTANCE: False}
"""Every way to compare a pair of images, by the name before its colon."""
PSNR_OF_EQUAL = 100.0
"""dB that a pair of equal images counts as, where PSNR is infinite, and the most that any pair does."""
_PIXELS = 1 << 21
"""Pixels compared at once: SSIM holds fifteen floats for each."""
_SCALE_IMAGES = 2000
"""Most images that a feature distance's scale is taken from: every pair of them is compared."""


def is_similarity(metric: str) -> bool:
    """Whether a metric compares an image with the unaccelerated one of the same prompt and seed."""
    return metric.partition(":")[0] in HIGHER_IS_CLOSER


def direction(metric: str) -> str:
    """Which way a similarity is better, in words."""
    return "higher is closer" if HIGHER_IS_CLOSER[metric.partition(":")[0]] else "lower is closer"


def check_similarity(names: Sequence[str], key: str) -> None:
    """Refuse names that `load_similarity` does not know, without reading any weights. Raises `QualityError` that names the key."""
    for name in names:
        kind, _, source = name.partition(":") if isinstance(name, str) else ("", "", "")
        if kind not in ("psnr", "ssim", "ms-ssim", "lpips") or (source and kind != "lpips"):
            raise QualityError(f"{key} holds {name!r}; allowed are psnr, ssim, ms-ssim and lpips:<weight file>")
        if kind == "lpips" and not source:
            from search.metrics.lpips import ADVICE

            raise QualityError(f"{key} holds lpips without its network's weights; {ADVICE}")
    if len(set(names)) < len(names):
        raise QualityError(f"{key} is {list(names)}; name each once")


class Similarity(Protocol):
    """Compares images pair by pair."""

    def __call__(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(B,) values of two (B, 3, H, W) uint8 sets of images."""
        ...


def load_similarity(name: str, device: torch.device | str = "cpu") -> Similarity:
    """A way to compare pairs of images by name: "psnr", "ssim", "ms-ssim" or "lpips:<weight file>".

    Args:
        name: SSIM and MS-SSIM have the window and the constants of their papers (11 pixels, Gaussian of 1.5).
        device: Where it computes; images are moved there.

    Raises:
        QualityError: The name is unknown, or the weights cannot be loaded.
    """
    check_similarity([name], "a metric")
    kind, _, source = name.partition(":")
    if kind == "lpips":
        from search.metrics.lpips import load_lpips

        return _Paired(name, load_lpips(source).to(device), device)
    return _Paired(name, {"psnr": _psnr, "ssim": _ssim, "ms-ssim": _ms_ssim}[kind], device)


class _Paired:
    """Checks sizes and values, and goes through a batch a few images at a time."""

    def __init__(self, name: str, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], device: torch.device | str) -> None:
        self._name, self._function, self._device = name, function, device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        if images.shape != others.shape:
            raise QualityError(f"{self._name} compares images of one size; got {tuple(images.shape)} and, unaccelerated, {tuple(others.shape)}")
        count = max(1, _PIXELS // images[0].numel())
        pairs = zip(images.to(self._device).split(count), others.to(self._device).split(count), strict=True)
        values = torch.cat([self._function(a.float() / 127.5 - 1, b.float() / 127.5 - 1).float().cpu() for a, b in pairs])
        if not torch.isfinite(values).all():
            raise QualityError(f"{self._name} of {int((~torch.isfinite(values)).sum())} of {len(values)} images is not finite; look at these images, or leave it out")
        return values


def _psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return peak_signal_noise_ratio(a, b, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)).clamp(max=PSNR_OF_EQUAL)


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    _check_side(a, 11, "ssim", "leave it out")
    found = structural_similarity_index_measure(a / 2 + 0.5, b / 2 + 0.5, data_range=1.0, reduction="none")
    return found if isinstance(found, torch.Tensor) else found[0]


def _ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    _check_side(a, 176, "ms-ssim", "use ssim")
    return multiscale_structural_similarity_index_measure(a / 2 + 0.5, b / 2 + 0.5, data_range=1.0, reduction="none", normalize="relu")


def _check_side(images: torch.Tensor, least: int, name: str, fix: str) -> None:
    if min(images.shape[-2:]) < least:
        raise QualityError(f"{name} needs images of at least {least} pixels a side; these have {tuple(images.shape[-2:])}: {fix}")


def mean_with_interval(values: torch.Tensor) -> Value:
    """Mean of (N,) per-image values with its 95 % interval over the choice of images, by Student's t; none of fewer than two.

    Each value compares a pair of images of one prompt and seed, so that what both share is in no interval. Images count one by one:
    on the embedded model nearly all of the values' variance, 87 to 99 %, is within the prompts' classes.
    """
    x = values.double()
    if len(x) < 2:
        return Value(value=float(x.mean()))
    spread = float(stdtrit(len(x) - 1, 0.975)) * float(x.std()) / len(x) ** 0.5
    return Value(value=float(x.mean()), low=float(x.mean()) - spread, high=float(x.mean()) + spread)


@dataclass(frozen=True, eq=False)
class PlainFeatures:
    """Features of the unaccelerated images, and how far apart they are. Sent to whoever measures: two tensors, whatever N is.

    Attributes:
        indices: (N,) int64, of the images, ascending.
        features: (N, F), in their order.
        scale: Mean Euclidean distance between two different ones of them: what 1.0 is in a feature distance.
    """

    indices: torch.Tensor
    features: torch.Tensor
    scale: float

    @classmethod
    def of(cls, indices: Sequence[int], features: torch.Tensor) -> PlainFeatures | None:
        """From (N, F) features; None where they are of no, of one, or of all the same images, which have no distance."""
        if len(indices) != len(features) or len(features) < 2:
            return None
        of = torch.tensor(list(indices))
        order = of.argsort()
        x = features[order]
        scale = float(torch.pdist(x[:_SCALE_IMAGES].double()).mean())
        return cls(of[order], x, scale) if 0 < scale < float("inf") else None

    @classmethod
    def of_shards(cls, shards: Sequence[Any]) -> PlainFeatures | None:
        """From the shards of the unaccelerated pipeline; None where they do not tell which images they are of."""
        if not shards or not all(knows_images(s) for s in shards):
            return None
        return cls.of([i for s in shards for i in s.indices], torch.cat([s.features for s in shards]))

    def distances(self, indices: Sequence[int], features: torch.Tensor) -> torch.Tensor:
        """(N,) distances of (N, F) features of the same images made in another way. Raises `QualityError` for images that are not among these."""
        wanted = torch.tensor(list(indices), dtype=torch.int64)
        places = torch.searchsorted(self.indices, wanted).clamp(max=len(self.indices) - 1)
        missing = wanted[self.indices[places] != wanted].tolist()
        if missing or len(indices) != len(features):
            raise QualityError(f"a feature distance needs the unaccelerated images of the same indices; {len(missing)} of {len(indices)} are missing, such as {missing[:1]}")
        return (features.double() - self.features[places].double()).norm(dim=1) / self.scale


def knows_images(shard: Any) -> bool:
    """Whether a worker's result has features and tells of which images."""
    indices: list[int] = getattr(shard, "indices", [])
    return bool(indices) and len(indices) == len(shard.features)


def feature_distance(shards: Sequence[Any], plain: PlainFeatures | None) -> Value | None:
    """How far a strategy's images are from the unaccelerated ones of the same prompts and seeds: 0 for the same, 1 for unrelated ones.

    The Euclidean distance between the features of the two images, divided by the mean Euclidean distance between two different
    unaccelerated images, as a mean over images. Lower is closer. None where shards do not tell which images they are of.
    """
    if plain is None or not shards or not all(knows_images(s) for s in shards):
        return None
    return mean_with_interval(torch.cat([plain.distances(s.indices, s.features) for s in shards]))


def with_distance(measurement: Measurement, shards: Sequence[Any], plain: PlainFeatures | None) -> Measurement:
    """A measurement with its feature distance, where that can be computed."""
    found = feature_distance(shards, plain) if measurement.ok else None
    if found is None:
        return measurement
    return replace(measurement, feature_distance=found.value, feature_distance_low=found.low, feature_distance_high=found.high)
