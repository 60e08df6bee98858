"""LPIPS (arXiv 1801.03924), version 0.1, without torchvision.

The networks are AlexNet, VGG-16 and SqueezeNet 1.1 as torchvision publishes them: the same layers in the same order, so that
its weight files load by name. The linear heads are those of the authors' repository (BSD 2-clause), which torchmetrics ships;
values are those of ``torchmetrics.functional.image.learned_perceptual_image_patch_similarity``, which needs torchvision itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchmetrics.functional.image
from torch import nn

from dato.files import require_file, user_path
from search.metrics.feature_net import QualityError

# ImageNet's mean and deviation for values in [-1, 1], as LPIPS rounds them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Fire(nn.Module):
    """SqueezeNet's block: a 1 x 1 convolution, then 1 x 1 and 3 x 3 side by side."""

    def __init__(self, c_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, 2 * expanded, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def alexnet() -> list[nn.Module]:
    """torchvision's ``alexnet().features`` up to the last layer that LPIPS reads."""
    pool = nn.MaxPool2d(3, 2)
    return [
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool, nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    ]  # fmt: skip


def vgg16() -> list[nn.Module]:
    """torchvision's ``vgg16().features`` up to the last layer that LPIPS reads."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers


def squeezenet() -> list[nn.Module]:
    """torchvision's ``squeezenet1_1().features``."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return [
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool, Fire(128, 32, 128), Fire(256, 32, 128), pool,
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    ]  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A network that LPIPS has heads for.

    Attributes:
        heads: Name of its heads in torchmetrics.
        layers: Makes its layers.
        taps: Layers whose outputs are compared, by index.
        least: Smallest side of an image in pixels.
        url: Its published weights.
    """

    heads: str
    layers: Callable[[], list[nn.Module]]
    taps: Sequence[int]
    least: int
    url: str


_PUBLISHED = "https://download.pytorch.org/models/"
BACKBONES = {
    "AlexNet": Backbone("alex", alexnet, (1, 4, 7, 9, 11), 31, f"{_PUBLISHED}alexnet-owt-7be5be79.pth"),
    "VGG-16": Backbone("vgg", vgg16, (3, 8, 15, 22, 29), 16, f"{_PUBLISHED}vgg16-397923af.pth"),
    "SqueezeNet 1.1": Backbone("squeeze", squeezenet, (1, 4, 7, 9, 10, 11, 12), 17, f"{_PUBLISHED}squeezenet1_1-b8a52dc0.pth"),
}
ADVICE = f"download {BACKBONES['AlexNet'].url} and name it as lpips:/path/to/{Path(BACKBONES['AlexNet'].url).name}"


class Lpips(nn.Module):
    """Maps two (B, 3, H, W) images in [-1, 1] to (B,) distances, 0 for equal ones.

    Args:
        backbone: Which network; weights are loaded by `load_lpips`.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = nn.Sequential(*backbone.layers())
        path = Path(torchmetrics.functional.image.__file__).parent / "lpips_models" / f"{backbone.heads}.pth"
        heads = torch.load(path, map_location="cpu", weights_only=True)
        self.heads = nn.ParameterList(heads[f"lin{k}.model.1.weight"] for k in range(len(backbone.taps)))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(B,) distances. Raises `QualityError` for images that are too small for the network."""
        if min(images.shape[-2:]) < self.backbone.least:
            raise QualityError(f"lpips by {self.backbone.heads} needs images of at least {self.backbone.least} pixels a side; these have {tuple(images.shape[-2:])}")
        x = (torch.cat([images, others]) - self.shift) / self.scale
        total = torch.zeros(len(images), device=x.device)
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.backbone.taps:
                unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
                first, second = unit.chunk(2)
                total = total + nn.functional.conv2d((first - second).square(), next(heads)).mean((1, 2, 3))
        return total


def load_lpips(path: str) -> Lpips:
    """LPIPS on a network that torchvision published, told from its weight file. Raises `QualityError`."""
    if not path:
        raise QualityError(f"the metric lpips needs a network's weights, which are not loaded from the internet: {ADVICE}")
    try:
        require_file(user_path(path))
        state = torch.load(user_path(path), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError, EOFError) as error:
        raise QualityError(f"the weight file {path!r} of lpips cannot be loaded ({str(error).partition(chr(10))[0] or type(error).__name__}); {ADVICE}") from None
    state = {k: v for k, v in state.items() if k.startswith("features.")} if isinstance(state, dict) else {}
    for backbone in BACKBONES.values():
        net = Lpips(backbone)
        wanted = {k: v.shape for k, v in net.features.state_dict(prefix="features.").items()}
        if {k: getattr(v, "shape", None) for k, v in state.items()} == wanted:
            net.features.load_state_dict({k.removeprefix("features."): v for k, v in state.items()})
            return net.eval().requires_grad_(False)
    raise QualityError(f"the weight file {path!r} of lpips holds none of torchvision's {', '.join(BACKBONES)}; {ADVICE}")
