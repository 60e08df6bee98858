"""LPIPS against values of torchmetrics 1.9 on torchvision 0.28's networks, which are not installed here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.metrics.feature_net import QualityError
from search.metrics.lpips import BACKBONES
from search.metrics.similarity import load_similarity


def weights(name: str) -> dict[str, torch.Tensor]:
    """Weights of the size of a trained network's, from a formula: the same on every machine."""
    layers = torch.nn.Sequential(*BACKBONES[name].layers()).state_dict(prefix="features.")
    return {
        k: (torch.arange(v.numel(), dtype=torch.float64) * 0.7 + 1).sin().mul(2 / v[0].numel() ** 0.5 if v.ndim > 1 else 0.1).view(v.shape).float()
        for k, v in layers.items()
    }


def images() -> tuple[torch.Tensor, torch.Tensor]:
    i = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32)
    return (i * 7 % 256).to(torch.uint8), (i * 7 % 256 + i // 1024 * 5).clamp(max=255).to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("AlexNet", [8.282985800178722e-05, 0.0017629275098443031]),
        ("VGG-16", [0.0006722080870531499, 0.016024893149733543]),
        ("SqueezeNet 1.1", [6.899208983668359e-06, 0.0004199514223728329]),
    ],
)
def test_values_are_those_of_torchmetrics_on_torchvisions_networks(tmp_path: Path, name: str, wanted: list[float]) -> None:
    # A published file holds a classifier too, which LPIPS has no use for.
    torch.save({**weights(name), "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "net.pth")
    lpips = load_similarity(f"lpips:{tmp_path / 'net.pth'}")
    first, second = images()
    assert lpips(first, second).tolist() == pytest.approx(wanted, rel=1e-3)
    assert lpips(first, first).tolist() == [0, 0]
    assert lpips(second, first).tolist() == pytest.approx(wanted, rel=1e-3)
    least = BACKBONES[name].least
    assert lpips(first[..., :least, :least], second[..., :least, :least]).shape == (2,)
    with pytest.raises(QualityError, match=f"images of at least {least} pixels a side"):
        lpips(first[..., : least - 1, :], second[..., : least - 1, :])


def test_without_usable_weights_it_says_what_to_download(tmp_path: Path) -> None:
    other, torn, pickled = tmp_path / "other.pth", tmp_path / "torn.pth", tmp_path / "pickled.pth"
    torch.save({"features.0.weight": torch.zeros(3, 3)}, other)
    torn.write_bytes(b"PK")
    torch.save(torch.nn.Linear(1, 1), pickled)  # an object would run code when it is loaded
    for source, what in ((other, "holds none of torchvision's"), (torn, "cannot be loaded"), (pickled, "cannot be loaded"), ("/nowhere.pth", "cannot be loaded")):
        with pytest.raises(QualityError, match=what) as raised:
            load_similarity(f"lpips:{source}")
        assert "alexnet-owt-7be5be79.pth" in str(raised.value)
        assert "lpips:/path/to/" in str(raised.value)
