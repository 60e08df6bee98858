import numpy as np
import pytest
import scipy.linalg
import torch

from search.quality import Fid, QualityError, extract, load_features


def naive_fid(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted in float64, with a matrix square root."""
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb)
    return float(mean + np.trace(ca + cb - 2 * np.real(root)))


@pytest.mark.parametrize("count", [60, 300])
def test_fid_equals_an_independent_computation(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    real = torch.randn(400, 16, generator=generator) * torch.linspace(0.5, 2, 16)
    fake = torch.randn(count, 16, generator=generator) + 0.3
    assert Fid(real)(fake) == pytest.approx(naive_fid(real.double().numpy(), fake.double().numpy()), abs=1e-3)


def test_the_reference_stays_between_computations() -> None:
    generator = torch.Generator().manual_seed(0)
    fid = Fid(torch.randn(200, 8, generator=generator))
    one, other = torch.randn(50, 8, generator=generator), torch.randn(50, 8, generator=generator) + 1
    first = fid(one)
    assert fid(other) > first
    assert fid(one) == first


def test_the_interval_holds_the_value_and_shrinks_with_more_images() -> None:
    generator = torch.Generator().manual_seed(0)
    fid = Fid(torch.randn(400, 4, generator=generator))
    few, many = torch.randn(40, 4, generator=generator) + 1, torch.randn(640, 4, generator=generator) + 1
    (a, b), (c, d) = fid.interval(few, 60), fid.interval(many, 60)
    assert a < fid(few) < b
    assert d - c < (b - a) / 2
    assert fid.interval(few, 60) == (a, b)


def test_unusable_features_are_refused() -> None:
    fid = Fid(torch.randn(20, 4))
    with pytest.raises(QualityError, match="got 1 images"):
        fid(torch.randn(1, 4))
    with pytest.raises(QualityError, match="finite: False"):
        fid(torch.full((5, 4), torch.nan))


def test_feature_nets_by_name() -> None:
    net = load_features("embedded")
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    assert extract(net, [images[:2], images[2:]]).shape == (3, net.num_features)
    with pytest.raises(QualityError, match="allowed are 'embedded' and 'inception'"):
        load_features("clip")
