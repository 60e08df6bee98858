"""Statistics that merge, and files that pytorch-fid reads."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.metrics.feature_net import QualityError
from search.metrics.frechet import frechet
from search.metrics.moments import Moments, merge


def features(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator) + 100


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), unique=True, max_size=8), order=st.randoms(use_true_random=False))
def test_shards_merged_in_any_order_are_the_whole(cuts: list[int], order) -> None:  # type: ignore[no-untyped-def]
    whole = features(200)
    shards = [Moments.of(s) for s in torch.tensor_split(whole, sorted(cuts))]
    order.shuffle(shards)
    found, expected = merge(shards), Moments.of(whole)
    assert found.count == 200
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)
    other = features(80, seed=1)
    assert frechet(found, other) == pytest.approx(frechet(expected, other), rel=1e-9)


def test_moments_equal_numpy() -> None:
    x = features(50)
    found = Moments.of(x)
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False))


def test_the_file_is_pytorch_fids_in_both_directions(tmp_path: Path) -> None:
    ours = Moments.of(features(50))
    ours.save(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:  # as pytorch-fid reads it
        mu, sigma = file["mu"][:], file["sigma"][:]
    np.testing.assert_array_equal(mu, ours.mean)
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma)  # as pytorch-fid writes it
    theirs, other = Moments.load(tmp_path / "theirs.npz"), features(30, seed=2)
    assert frechet(theirs, other) == pytest.approx(frechet(ours, other), rel=1e-9)
    assert Moments.load(tmp_path / "ours.npz").count == 50
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_files_that_hold_no_statistics_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "c.npz", mu=np.array([object()]), sigma=np.zeros((1, 1)))
    np.savez(tmp_path / "d.npz", mu=np.full(2, np.nan), sigma=np.zeros((2, 2)))
    for name, message in (("a", "mu and sigma"), ("b", r"\(3,\) and \(2, 2\)"), ("c", "mu and sigma"), ("d", "not finite"), ("e", "mu and sigma")):
        with pytest.raises(QualityError, match=message):
            Moments.load(tmp_path / f"{name}.npz")


def test_unusable_features_are_refused() -> None:
    spoilt = features(5)
    spoilt[2, 1] = torch.nan
    with pytest.raises(QualityError, match="1 of 5 images are not finite"):
        Moments.of(spoilt)
    with pytest.raises(QualityError, match="had shape"):
        Moments.of(torch.zeros(3))
    with pytest.raises(QualityError, match="needs at least 2 images, got 1"):
        _ = Moments.of(features(1)).covariance
    with pytest.raises(QualityError, match="6 and of 4 dimensions"):
        merge([Moments.of(features(5)), Moments.of(features(5, 4))])
    with pytest.raises(QualityError, match="no features to merge"):
        merge([])


def statistics(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "s.npz", **{k: np.asarray(v) for k, v in arrays.items()})
    return folder / "s.npz"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("count", [4, 300])
def test_a_covariance_that_rounding_has_touched_is_read(tmp_path: Path, dtype: type, count: int) -> None:
    x = features(count).numpy().astype(dtype)
    sigma = np.cov(x, rowvar=False).astype(dtype)
    sigma += (1e-6 * np.abs(sigma).max() * np.random.default_rng(0).standard_normal(sigma.shape)).astype(dtype)
    read = Moments.load(statistics(tmp_path, mu=x.mean(0), sigma=sigma))
    assert torch.equal(read.covariance, read.covariance.T)
    np.testing.assert_allclose(read.covariance, sigma, atol=3e-6 * np.abs(sigma).max())


def test_a_sigma_that_is_no_covariance_is_refused(tmp_path: Path) -> None:
    sigma = np.cov(features(50).numpy(), rowvar=False)
    for wrong in (np.triu(sigma), np.tril(sigma), np.linalg.cholesky(sigma)):
        with pytest.raises(QualityError, match=r"sigma is not symmetric .*write all of it, np.cov"):
            Moments.load(statistics(tmp_path, mu=np.zeros(6), sigma=wrong))
    for wrong in (-sigma, sigma - np.eye(6) * np.linalg.eigvalsh(sigma)[3], 1 - np.eye(6)):
        with pytest.raises(QualityError, match="sigma has negative eigenvalues"):
            Moments.load(statistics(tmp_path, mu=np.zeros(6), sigma=wrong))
    assert Moments.load(statistics(tmp_path, mu=np.zeros(6), sigma=np.zeros((6, 6)))).covariance.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1}, "count is 1, not a number of at least 2"),
        ({"count": -5}, "count is -5"),
        ({"count": 2.5}, "count is 2.5"),
        ({"count": [3, 4]}, r"count is \[3, 4\]"),
        ({"count": "many"}, "count is 'many'"),
        ({"sigma": np.eye(3) * 1j}, "sigma holds complex128"),
        ({"mu": ["a", "b", "c"]}, "mu holds <U1"),
        ({"mu": [True, False, True]}, "mu holds bool"),
        ({"mu": [], "sigma": np.zeros((0, 0))}, r"expected mu \(F,\)"),
        ({"sigma": np.full((3, 3), np.inf)}, "not finite"),
    ],
)
def test_statistics_of_the_wrong_kind_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(QualityError, match=message):
        Moments.load(statistics(tmp_path, **{"mu": np.zeros(3), "sigma": np.eye(3), **change}))


def test_what_is_no_statistics_file_is_not_waited_for_and_does_not_unpack_to_gigabytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as packed:
        packed.writestr("mu.npy", b"")
        packed.infolist()[0].file_size = (1 << 30) + 1
    for path, message in {"/dev/zero": "a device", str(tmp_path / "pipe"): "a pipe", str(tmp_path): "a folder", str(tmp_path / "bomb.npz"): "unpacks to more than"}.items():
        with pytest.raises(QualityError, match=message):
            Moments.load(path)
