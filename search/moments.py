"""Mean and covariance of features as statistics that merge, and the Frechet distance of two of them, in float64.

Letters: N images, F features.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import torch

from search.features import QualityError


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of features; merging shards in any order gives the same, up to float64's rounding.

    Attributes:
        count: N. From a file that does not say, 2: the mean and covariance are exact, and nothing can be merged to it.
        mean: (F,) float64.
        scatter: (F, F) float64, the sum of outer products of deviations from the mean.
    """

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Moments:
        """Of (N, F) features. Raises `QualityError` where one is not finite."""
        x = features.double()
        if x.ndim != 2 or not len(x):
            raise QualityError(f"expected features of shape (images, features) with at least one image, but it had shape {tuple(features.shape)}")
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x).all(1)).sum())
            raise QualityError(f"features of {bad} of {len(x)} images are not finite; look at these images, or compute in float32")
        mean = x.mean(0)
        deviations = x - mean
        return cls(len(x), mean, deviations.T @ deviations)

    @classmethod
    def stream(cls, batches: Iterable[torch.Tensor]) -> Moments:
        """Of batches of (B, F) features, one in memory at a time."""
        return merge(cls.of(batch) for batch in batches)

    @classmethod
    def load(cls, path: Path | str) -> Moments:
        """From a ``.npz`` with ``mu`` and ``sigma``, as pytorch-fid writes them. Raises `QualityError`."""
        try:
            with np.load(Path(path).expanduser(), allow_pickle=False) as file:
                mu, sigma = (torch.from_numpy(np.asarray(file[k], dtype=np.float64)) for k in ("mu", "sigma"))
                count = int(file["count"]) if "count" in file else 2
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise QualityError(f"{str(path)!r} holds no statistics ({error}); give a .npz with mu and sigma, as pytorch-fid writes them") from None
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise QualityError(f"{str(path)!r}: expected mu (F,) and sigma (F, F), but they had shapes {tuple(mu.shape)} and {tuple(sigma.shape)}")
        if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
            raise QualityError(f"{str(path)!r}: mu or sigma is not finite; make the file again")
        return cls(count, mu, sigma * (count - 1))

    def save(self, path: Path | str) -> None:
        """Write a ``.npz`` that pytorch-fid reads; a reader never sees half a file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.npz")
        np.savez(partial, mu=self.mean.numpy(), sigma=self.covariance.numpy(), count=np.int64(self.count))
        partial.replace(target)

    @property
    def covariance(self) -> torch.Tensor:
        """(F, F), unbiased. Raises `QualityError` for fewer than two images."""
        if self.count < 2:
            raise QualityError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> torch.Tensor:
        """(F, F) symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def merge(parts: Iterable[Moments]) -> Moments:
    """The moments of all images together (Chan, Golub, LeVeque 1979). Raises `QualityError` where there are none."""
    found = list(parts)
    if not found:
        raise QualityError("there are no features to merge; give at least one batch of images")
    return reduce(_merge_two, found)


def _merge_two(a: Moments, b: Moments) -> Moments:
    if a.mean.shape != b.mean.shape:
        raise QualityError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be merged; take both from one net")
    count, difference = a.count + b.count, b.mean - a.mean
    mean = a.mean + difference * (b.count / count)
    return Moments(count, mean, a.scatter + b.scatter + torch.outer(difference, difference) * (a.count * b.count / count))


def frechet(reference: Moments, other: Moments) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982), with the square root taken symmetrically.

    tr sqrt(A B) is the sum of the square roots of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric; sqrt(A) of the
    reference is computed once. torchmetrics takes the eigenvalues of A B itself, which is the same and slower.
    """
    if reference.mean.shape != other.mean.shape:
        raise QualityError(f"the reference has {len(reference.mean)} features, the images {len(other.mean)}; use the net that made the reference")
    inner = reference.root @ other.covariance @ reference.root
    trace = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    means = (reference.mean - other.mean).square().sum()
    return float(means + reference.covariance.trace() + other.covariance.trace() - 2 * trace)
