"""scikit-learn's handwritten digits as 40 x 40 images with prompts.

The data set is UCI's "Optical Recognition of Handwritten Digits" test set: 1,797 scans of 8 x 8 pixels and 16 grey
levels, which scikit-learn ships inside its wheel. Nothing is downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGE_SIZE = 40
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "the digit {} written by hand", "a photo of a handwritten {}", "the number {} in ink")
REFERENCE_COUNT = 500
"""Digits held out of training: the real images that a FID is measured against."""


def render(scans: torch.Tensor) -> torch.Tensor:
    """Enlarge 8 x 8 scans to smooth white strokes on black.

    A margin of one pixel is added, the image is enlarged bicubically, and a smooth step sharpens the strokes.

    Args:
        scans: (B, 8, 8), values in [0, 1].

    Returns:
        (B, 3, 40, 40) float32 in [0, 1], three equal channels.
    """
    padded = F.pad(scans[:, None].float(), (1, 1, 1, 1))
    large = F.interpolate(padded, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    t = ((large - 0.2) / 0.6).clamp(0, 1)
    return (t * t * (3 - 2 * t)).expand(-1, 3, -1, -1).contiguous()


def scan(images: torch.Tensor) -> torch.Tensor:
    """Reduce (B, 3, H, W) images in [0, 1] to (B, 8, 8) scans: the inverse of `render` up to its sharpening."""
    small = F.interpolate(images.float().mean(1, keepdim=True), size=(10, 10), mode="area")
    return small[:, 0, 1:9, 1:9]


def load_split(reference: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The training digits (1,297) or the held-out reference digits (500), stratified by class with a fixed seed.

    Returns:
        Images (B, 3, 40, 40) in [0, 1] and labels (B,) int64.
    """
    digits = load_digits()
    train, held_out = train_test_split(
        range(len(digits.target)), test_size=REFERENCE_COUNT, random_state=0, stratify=digits.target
    )
    rows = held_out if reference else train
    return render(torch.from_numpy(digits.images[rows] / 16.0)), torch.from_numpy(digits.target[rows]).long()


def prompt(label: int, template: int = 0) -> str:
    """The prompt of a class, such as "a handwritten seven"."""
    return TEMPLATES[template % len(TEMPLATES)].format(WORDS[label])
