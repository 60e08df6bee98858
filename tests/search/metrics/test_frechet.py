"""The Frechet distance against torchmetrics and scipy, with fewer, as many and more images than features."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from search.metrics.feature_net import QualityError
from search.metrics.frechet import frechet, frechet_of_parts
from search.metrics.intervals import Groups, without_each
from search.metrics.moments import Moments
from search.metrics.quality import Fid

FEATURES = 96


class Given(nn.Module):
    """Hands torchmetrics its features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.double()


def features(count: int, seed: int, size: int = FEATURES, shift: float = 0.0) -> torch.Tensor:
    """Correlated and of unequal sizes, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(-torch.arange(size) / (size / 6))
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) / size**0.5
    return (torch.randn(count, size, generator=generator) * spread) @ mixing + shift


def by_torchmetrics(real: torch.Tensor, made: torch.Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(made, real=False)
    return float(metric.compute())


def by_scipy(real: torch.Tensor, made: torch.Tensor) -> float:
    a, b = real.double().numpy(), made.double().numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(scipy.linalg.sqrtm(ca @ cb))))


@pytest.mark.parametrize("count", [2, 3, 20, FEATURES - 1, FEATURES, FEATURES + 1, 400])
def test_it_is_torchmetrics_and_scipys(count: int) -> None:
    real, made = features(1000, 0), features(count, 1, shift=0.1)
    found = frechet(Moments.of(real), made)
    assert found == pytest.approx(by_torchmetrics(real, made), rel=1e-6)
    assert found == pytest.approx(by_scipy(real, made), rel=1e-4), "scipy's root of a singular product is less exact"
    assert Fid(real)(made) == found == Fid(real).value(made, Groups()).value


@pytest.mark.parametrize("count", [20, FEATURES, 400])
@pytest.mark.filterwarnings("ignore::search.metrics.quality.FewImagesWarning")
def test_a_singular_reference_and_equal_means(count: int) -> None:
    few = features(40, 0)
    made = features(count, 1)
    assert frechet(Moments.of(few), made) == pytest.approx(by_torchmetrics(few, made), rel=1e-6)
    level = made - made.mean(0) + few.mean(0)
    assert frechet(Moments.of(few), level) == pytest.approx(by_torchmetrics(few, level), rel=1e-6)
    scale = float(Moments.of(few).covariance.trace())
    assert abs(frechet(Moments.of(few), few)) < 1e-6 * scale, "of a set to itself"
    assert abs(frechet(Moments.of(features(400, 2)), features(400, 2))) < 1e-6 * scale


@pytest.mark.parametrize("count", [40, FEATURES, FEATURES + 4, 400])
def test_of_parts_it_is_what_it_is_of_each_part_alone(count: int) -> None:
    reference, made = Moments.of(features(1000, 0)), features(count, 1, shift=0.1)
    parts = [*without_each(Groups().of(count)), torch.arange(5), torch.tensor([7, 3, 1])]
    found = frechet_of_parts(reference, made, parts)
    assert found == pytest.approx([frechet(reference, made[part]) for part in parts], rel=1e-8)
    assert Fid(reference).value(made, Groups()).left_out == pytest.approx(found[:-2], rel=1e-12)


def test_what_has_no_distance_is_refused() -> None:
    reference = Moments.of(features(200, 0))
    with pytest.raises(QualityError, match="got 1 images"):
        frechet_of_parts(reference, features(5, 1), [torch.arange(5), torch.arange(1)])
    with pytest.raises(QualityError, match="the reference has 96 features, the images 4"):
        frechet(reference, torch.zeros(9, 4))
    with pytest.raises(QualityError, match="finite: False"):
        frechet(reference, torch.full((9, FEATURES), torch.inf))


def test_a_value_with_its_interval_takes_less_than_torchmetrics_one_value() -> None:
    """With more features than images, as a search on Inception has; the interval is twenty more values."""
    real, made = features(800, 0, 768), features(200, 1, 768)
    fid = Fid(real)
    took = []
    for measure in (lambda: fid.value(made, Groups()), lambda: by_torchmetrics(real, made)):
        began = time.process_time()
        measure()
        took.append(time.process_time() - began)
    assert took[0] < took[1]
