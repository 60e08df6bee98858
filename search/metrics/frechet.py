"""The Frechet distance of images' features to a reference, of all images and of parts of them, in float64.

Letters: N images, F features, S (F, F) the reference's covariance, X (N, F) the images' features less their mean, C = X^T X / (N - 1)
their covariance.

tr sqrt(S C) is the sum of the square roots of the eigenvalues of S C. Those that are not zero are the eigenvalues of Z Z^T / (N - 1) and of
Z^T Z / (N - 1) with Z = X sqrt(S), whichever is smaller: with fewer images than features an (N, N) matrix, X S X^T, tells all, and needs
no root of S. A part of the images has the same products, centred anew, so that only eigenvalues are computed once for each part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from search.metrics.feature_net import QualityError
from search.metrics.moments import Moments


def frechet(reference: Moments, features: torch.Tensor) -> float:
    """Squared Frechet distance (Dowson and Landau 1982) of the Gaussian of (N, F) features to the reference's. Raises `QualityError`."""
    return frechet_of_parts(reference, features, [torch.arange(len(features))])[0]


def frechet_of_parts(reference: Moments, features: torch.Tensor, parts: Sequence[torch.Tensor]) -> list[float]:
    """`frechet` of some images each, all of them from one pair of products.

    Args:
        reference: What to compare with.
        features: (N, F).
        parts: Positions of the images of each part, at least two.

    Raises:
        QualityError: A feature is not finite, F is another, or a part has fewer than two images.
    """
    x = features.double()
    if x.ndim != 2 or x.shape[1] != len(reference.mean):
        raise QualityError(f"the reference has {len(reference.mean)} features, the images {x.shape[-1]}; use the net that made the reference")
    fewest = min((len(part) for part in parts), default=2)
    if fewest < 2 or not torch.isfinite(x).all():
        raise QualityError(f"FID needs at least 2 images with finite features; got {fewest} images, finite: {bool(torch.isfinite(x).all())}")
    shift = x.mean(0) - reference.mean
    x = x - x.mean(0)
    squares = x.square().sum(1)
    products = _ByImages(reference, x) if len(x) < x.shape[1] else _ByFeatures(reference, x)
    ours = float(reference.covariance.trace())
    found = []
    for part in parts:
        count, mean = len(part), x[part].mean(0)
        theirs = (squares[part].sum() - count * mean.square().sum()) / (count - 1)
        eigenvalues = torch.linalg.eigvalsh(products.of(part)) / (count - 1)
        # So many are not zero at most, and the roots of what rounding makes of the others would add up.
        roots = eigenvalues[-min(count - 1, x.shape[1]) :].clamp(min=0).sqrt().sum()
        found.append(float((shift + mean).square().sum() + ours + theirs - 2 * roots))
    return found


class _ByImages:
    """Z Z^T of parts of the images."""

    def __init__(self, reference: Moments, x: torch.Tensor) -> None:
        self._whole = (x @ reference.covariance) @ x.T

    def of(self, part: torch.Tensor) -> torch.Tensor:
        """(n, n), centred: less the mean of its rows and of its columns."""
        k = self._whole[part][:, part]
        k = k - k.mean(0)
        k = k - k.mean(1, keepdim=True)
        return (k + k.T) / 2


class _ByFeatures:
    """Z^T Z of parts of the images."""

    def __init__(self, reference: Moments, x: torch.Tensor) -> None:
        self._z = x @ reference.root
        self._whole = self._z.T @ self._z

    def of(self, part: torch.Tensor) -> torch.Tensor:
        """(F, F), centred."""
        z = self._z[part]
        if 2 * len(part) > len(self._z):  # fewer are left out than there are
            rest = torch.ones(len(self._z), dtype=torch.bool)
            rest[part] = False
            products = self._whole - self._z[rest].T @ self._z[rest]
        else:
            products = z.T @ z
        mean = z.mean(0)
        products = products - len(part) * torch.outer(mean, mean)
        return (products + products.T) / 2
