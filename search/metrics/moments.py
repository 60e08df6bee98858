"""Mean and covariance of features as statistics that merge, in float64.

Letters: N images, F features.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import torch

from dato.files import read_bytes, user_path
from search.metrics.feature_net import QualityError

_MAX_BYTES = 1 << 30
"""Of a statistics file; with 8,192 features it has half as many."""


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
            mu, sigma, count = _read_statistics(user_path(path))
        except (OSError, EOFError, KeyError, TypeError, ValueError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise QualityError(f"{str(path)!r} holds no statistics ({error}); give a .npz with mu and sigma, as pytorch-fid writes them") from None
        if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
            raise QualityError(f"{str(path)!r}: expected mu (F,) and sigma (F, F), but they had shapes {tuple(mu.shape)} and {tuple(sigma.shape)}")
        if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
            raise QualityError(f"{str(path)!r}: mu or sigma is not finite; make the file again")
        _check_covariance(sigma, path)
        sigma = (sigma + sigma.T) / 2
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


def _read_statistics(path: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """mu, sigma and count of a file, which is read whole: a device or pipe is none, and a small file that unpacks to a huge one is refused."""
    content = read_bytes(path, _MAX_BYTES)
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        if sum(member.file_size for member in packed.infolist()) > _MAX_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_BYTES} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = [np.asarray(file[k]) for k in ("mu", "sigma")]
        for name, array in zip(("mu", "sigma"), arrays, strict=True):
            if array.dtype.kind not in "fiu":
                raise ValueError(f"{name} holds {array.dtype}, not real numbers")
        count = np.asarray(file["count"]) if "count" in file else np.asarray(2)
    if count.ndim or count.dtype.kind not in "iu" or count < 2:
        raise ValueError(f"count is {count.tolist()!r}, not a number of at least 2 images")
    mu, sigma = (torch.from_numpy(a.astype(np.float64)) for a in arrays)
    return mu, sigma, int(count)


def _check_covariance(sigma: torch.Tensor, path: Path | str) -> None:
    """Refuse (F, F) that is no covariance, beyond the rounding of float32: its distance would be a number, and a wrong one."""
    scale = sigma.abs().max()
    apart = (sigma - sigma.T).abs().max()
    if apart > 1e-5 * scale:
        raise QualityError(
            f"{str(path)!r}: sigma is not symmetric (entries that should be equal differ by up to {float(apart):.3g}), so it is no covariance; "
            "write all of it, np.cov(features, rowvar=False), not a triangle or a Cholesky factor"
        )
    # Cholesky's factorisation exists where no eigenvalue is negative; rounding may make small ones negative.
    shifted = (sigma + sigma.T) / 2 + torch.eye(len(sigma), dtype=sigma.dtype) * max(1e-5 * float(sigma.trace()), 1e-300)
    if torch.linalg.cholesky_ex(shifted).info:
        raise QualityError(f"{str(path)!r}: sigma has negative eigenvalues, so it is no covariance; make it with np.cov(features, rowvar=False)")


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
