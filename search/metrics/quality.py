"""Metrics over extracted features and per-image scores: FID, KID, Inception Score, CLIP score, plug-ins.

KID and the Inception Score are computed by torchmetrics. The FID is computed here (`search.metrics.frechet`): torchmetrics takes the
eigenvalues of an (F, F) matrix that is not symmetric, which with 2,048 features is seconds for one value, and an interval is twenty more.
Both agree to a relative 1e-6, which a test holds.

Every value comes with a 95 % interval over the choice of generated images (`search.metrics.intervals`), by groups of images that are the
same for every strategy, so that the differences between strategies have intervals too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from search.metrics.feature_net import FeatureNet, QualityError, extract
from search.metrics.features import load_features
from search.metrics.frechet import frechet, frechet_of_parts
from search.metrics.intervals import Groups, Value, without_each
from search.metrics.moments import Moments

__all__ = ["FeatureNet", "Fid", "Groups", "ImageScorer", "Kid", "QualityError", "Value", "extract", "inception_score", "load_features", "load_scorer", "mean_score"]

PLUGIN_GROUP = "dato.metrics"


class FewImagesWarning(UserWarning):
    """A covariance that cannot have full rank: there are fewer images than features."""


class _Given(nn.Module):
    """Hands torchmetrics features that are already extracted."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, num_features) float64."""
        return features.double()


class Fid:
    """FID of feature sets against one reference, whose statistics are computed once.

    Args:
        reference: (N, F) features of the real images, or their `Moments`.
    """

    def __init__(self, reference: torch.Tensor | Moments) -> None:
        self.reference = reference if isinstance(reference, Moments) else Moments.of(reference)
        count, features = self.reference.count, len(self.reference.mean)
        if 2 < count <= features:
            warnings.warn(
                FewImagesWarning(f"the FID's reference has {count} images for {features} features, so its covariance is singular: "
                f"give more than {features} real images (or data.num_reference_images), and compare values of this reference only"), stacklevel=2,
            )

    def __call__(self, features: torch.Tensor) -> float:
        """FID of (N, F) features. Raises `QualityError` for NaN features, another F, or fewer than two images."""
        return frechet(self.reference, features)

    def value(self, features: torch.Tensor, groups: Groups) -> Value:
        """FID of (N, F) features, in the order of their images' indices, with its interval; raises as the FID alone."""
        count = len(features)
        value, *left_out = frechet_of_parts(self.reference, features, [torch.arange(count), *without_each(groups.of(count))])
        return Value.around(value, left_out)


class Kid:
    """KID (arXiv 1801.01401) of feature sets against real features, averaged over fixed random subsets.

    Args:
        reference: (N, F) features of the real images.
        subsets: How many subsets.
        subset_size: Images in each; no more than there are on either side.
    """

    def __init__(self, reference: torch.Tensor, subsets: int = 100, subset_size: int = 1000) -> None:
        self._reference, self._subsets, self._size = reference, subsets, subset_size

    def value(self, features: torch.Tensor, groups: Groups, seed: int = 0) -> Value:
        """KID with an interval over the choice of the generated images. Raises `QualityError`."""
        size = min(self._size, len(features), len(self._reference))
        if size < 2 or not torch.isfinite(features).all():
            raise QualityError(f"KID needs at least 2 images with finite features on both sides; got {len(features)} and {len(self._reference)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
            metric: Any = KernelInceptionDistance(feature=_Given(features.shape[1]), subsets=self._subsets, subset_size=size).set_dtype(torch.float64)
        metric.update(self._reference, real=True)
        metric.update(features, real=False)
        with torch.random.fork_rng(devices=[]):  # torchmetrics draws subsets from the global generator
            torch.manual_seed(seed)
            mean, _ = metric.compute()
        return Value.around(float(mean), self._left_out(features.double(), groups.of(len(features))))

    def _left_out(self, x: torch.Tensor, groups: torch.Tensor, rows: int = 1000) -> list[float]:
        """The squared MMD without each group of the (N, F) features, but for the reals' own part, which is the same for all.

        Not the spread over subsets: where a subset is as large as the set, it is always the same images.
        """
        left = without_each(groups)
        if not left:
            return []
        reals, weights = self._reference.double(), torch.zeros(len(left), len(x), dtype=torch.float64)
        for row, rest in zip(weights, left, strict=True):
            row[rest] = 1.0
        count, within, across = weights.sum(1), torch.zeros(len(left), dtype=torch.float64), torch.zeros(len(left), dtype=torch.float64)
        for part in torch.arange(len(x)).split(rows):
            kernel = (x[part] @ x.T / x.shape[1] + 1) ** 3
            within += ((weights[:, part] @ kernel) * weights).sum(1) - weights[:, part] @ kernel[torch.arange(len(part)), part]
            across += weights[:, part] @ ((x[part] @ reals.T / x.shape[1] + 1) ** 3).mean(1)
        return (within / (count * (count - 1)) - 2 * across / count).tolist()


def inception_score(logits: torch.Tensor, groups: Groups, splits: int = 10, seed: int = 0) -> Value:
    """Inception Score (arXiv 1606.03498) of (N, classes) logits, averaged over `splits`; higher is better."""
    if len(logits) < splits or not torch.isfinite(logits).all():
        raise QualityError(f"an Inception Score of {splits} splits needs at least {splits} images with finite logits; got {len(logits)}")

    def score(chosen: torch.Tensor) -> float:
        metric: Any = InceptionScore(feature=_Given(logits.shape[1]), splits=splits)
        metric.update(chosen)
        with torch.random.fork_rng(devices=[]):  # torchmetrics shuffles with the global generator
            torch.manual_seed(seed)
            return float(metric.compute()[0])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all")
        warnings.filterwarnings("ignore", message=r"std\(\)")  # the spread over splits is not used, and one split has none
        return Value.around(score(logits), [score(logits[rest]) for rest in without_each(groups.of(len(logits))) if len(rest) >= splits])


def mean_score(scores: torch.Tensor, groups: Groups) -> Value:
    """Mean of (N,) per-image scores with its interval. Raises `QualityError` where one is not finite."""
    x = scores.double()
    if not len(x) or not torch.isfinite(x).all():
        raise QualityError(f"the mean of a score needs finite values; got {len(x)}, of which {int((~torch.isfinite(x)).sum())} are not finite")
    return Value.around(float(x.mean()), [float(x[rest].mean()) for rest in without_each(groups.of(len(x)))])


class ImageScorer(Protocol):
    """Scores images one by one against their prompts, such as CLIP or ImageReward."""

    higher_is_better: bool

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """(B,) scores of (B, 3, H, W) uint8 images."""
        ...


def load_scorer(name: str, device: torch.device | str = "cpu") -> ImageScorer:
    """A scorer by name: "clip", "clip:<folder or hub id>", or a plug-in.

    A plug-in is an entry point of group ``dato.metrics``: a callable that takes the torch device and returns an
    `ImageScorer`.
    """
    kind, _, source = name.partition(":")
    if kind == "clip":
        from search.metrics.clip import load_clip  # transformers takes seconds to import

        return load_clip(source or None).to(device)
    found = entry_points(group=PLUGIN_GROUP)
    if name not in found.names:
        others = "".join(f", {n!r}" for n in sorted(found.names))
        raise QualityError(f"metric is {name!r}; allowed are 'fid', 'kid', 'is', 'psnr', 'ssim', 'ms-ssim', 'lpips:<weight file>', 'clip', 'clip:<folder or hub id>'{others}, or install a plug-in (entry point group {PLUGIN_GROUP})")
    scorer = found[name].load()(torch.device(device))
    if not hasattr(scorer, "higher_is_better") or not callable(getattr(scorer, "score", None)):
        raise QualityError(f"the plug-in metric {name!r} is no ImageScorer: it needs higher_is_better and score(images, prompts)")
    return scorer
