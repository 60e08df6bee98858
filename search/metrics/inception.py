"""The Inception v3 of the FID (Szegedy et al. 2015, as TensorFlow published it), without torchvision.

Layers are named as in the weight file that torchmetrics, torch-fidelity and pytorch-fid share
(``weights-inception-2015-12-05-6726825d.pth``, 1,008 classes), and images are resized as TensorFlow 1 did: features are
those of ``torch_fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dato.files import require_file, user_path

WEIGHTS_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SIDE = 299
CLASSES = 1008


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    # TensorFlow leaves the padding out of the average.
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: 1 x 1, 5 x 5, double 3 x 3, pooling."""

    def __init__(self, c_in: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(c_in, 64, 1)
        self.branch5x5_1 = Convolution(c_in, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(c_in, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(c_in, pool, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, 35, 35) to (B, 224 + pool, 35, 35)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(c_in, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, 35, 35) to (B, 480 + c_in, 17, 17)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """17 x 17: 1 x 1, 7 x 7 in two, double 7 x 7, pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        across, down = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Convolution(768, 192, 1)
        self.branch7x7_1 = Convolution(768, width, 1)
        self.branch7x7_2 = Convolution(width, width, **across)  # type: ignore[arg-type]
        self.branch7x7_3 = Convolution(width, 192, **down)  # type: ignore[arg-type]
        self.branch7x7dbl_1 = Convolution(768, width, 1)
        self.branch7x7dbl_2 = Convolution(width, width, **down)  # type: ignore[arg-type]
        self.branch7x7dbl_3 = Convolution(width, width, **across)  # type: ignore[arg-type]
        self.branch7x7dbl_4 = Convolution(width, width, **down)  # type: ignore[arg-type]
        self.branch7x7dbl_5 = Convolution(width, 192, **across)  # type: ignore[arg-type]
        self.branch_pool = Convolution(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 768, 17, 17) to the same."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(768, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(768, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 768, 17, 17) to (B, 1280, 8, 8)."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """8 x 8, with split 3 x 3; the last one of the published graph pools by maximum instead of average."""

    def __init__(self, c_in: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Convolution(c_in, 320, 1)
        self.branch3x3_1 = Convolution(c_in, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Convolution(c_in, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Convolution(c_in, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, 8, 8) to (B, 2048, 8, 8)."""
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Maps (B, 3, H, W) uint8 images to (B, 2048) features; `classify` maps features to class logits."""

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 of any size to (B, 2048)."""
        x = (resize_like_tensorflow(images.float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 2048) features to (B, 1008) logits without bias, which the Inception Score is defined on."""
        return features @ self.fc.weight.T


def resize_like_tensorflow(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize (B, C, H, W) bilinearly as TensorFlow 1 did: pixel i comes from i * size / side, without half-pixel centres."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = torch.arange(side, device=images.device, dtype=torch.float32) * (size / side)
        low = place.floor().long()
        high = (low + 1).clamp(max=size - 1)
        weight = (place - low).view(-1, 1) if axis == 2 else place - low
        images = torch.lerp(images.index_select(axis, low), images.index_select(axis, high), weight)
    return images


def load_inception(path: str | None = None) -> Inception:
    """The net with its published weights, from a local file or downloaded once. Raises OSError, RuntimeError or KeyError."""
    if path is None:
        state = torch.hub.load_state_dict_from_url(WEIGHTS_URL, map_location="cpu", check_hash=True, progress=False, weights_only=True)
    else:
        require_file(user_path(path))
        state = torch.load(user_path(path), map_location="cpu", weights_only=True)
    net = Inception()
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)
