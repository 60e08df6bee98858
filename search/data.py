"""What a search generates and compares with: prompts by image index, and real reference images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

FRESH_OFFSET = 1_000_000
"""Image indices from here on are never used by a search: they validate its winners."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class DataError(ValueError):
    """Prompts or images that cannot be used: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Prompts and reference images."""

    name: str
    """Short name, for titles."""
    kind: str
    """"digits" (the embedded default) or "folder"."""
    prompts: str | None = None
    """For a folder: a text file with one prompt a line."""
    images: str | None = None
    """For a folder: the real images, searched recursively."""
    image_size: int | None = None
    """For a folder: short side and centre crop of the reference images, in pixels; None leaves them as they are."""

    def __post_init__(self) -> None:
        if self.kind not in ("digits", "folder"):
            raise DataError(f"data.kind is {self.kind!r}; allowed are 'digits' and 'folder'")
        if self.kind == "folder" and not (self.prompts and self.images):
            raise DataError("data.kind 'folder' needs data.prompts (a text file, one prompt a line) and data.images (a folder of real images)")


class Data:
    """The prompts and reference images of a `DataSpec`. Raises `DataError` where they cannot be read."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        if spec.kind == "digits":
            from search.embedded import digits  # scikit-learn is read only where its digits are used

            count = 10 * len(digits.TEMPLATES)
            self.prompts = [digits.prompt(i % 10, i // 10) for i in range(count)]
        else:
            self.prompts = _read_prompts(Path(spec.prompts or ""))
            self._paths = _find_images(Path(spec.images or ""))

    def prompt(self, index: int) -> str:
        """The prompt of image `index`: they come in turn, from another start for fresh indices."""
        return self.prompts[index % len(self.prompts)]

    def reference(self, batch: int = 50) -> Iterator[torch.Tensor]:
        """The real images, (B, 3, H, W) uint8, at most `batch` of one size at a time."""
        if self.spec.kind == "digits":
            from search.embedded import digits

            images, _ = digits.load_split(reference=True)
            yield from (images * 255).round().to(torch.uint8).split(batch)
            return
        for path in self._paths:
            yield _read_image(path, self.spec.image_size)[None]


def _read_prompts(path: Path) -> list[str]:
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.prompts is {str(path)!r}, which cannot be read ({error}); give a UTF-8 text file, one prompt a line") from None
    if not prompts:
        raise DataError(f"data.prompts {str(path)!r} holds no prompt; give one a line")
    return prompts


def _find_images(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise DataError(f"data.images is {str(folder)!r}, which holds {len(found)} images ({', '.join(SUFFIXES)}); a FID needs at least 2")
    return found


def _read_image(path: Path, size: int | None) -> torch.Tensor:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} is not a readable image ({error}); repair or remove it") from None
    if size:
        upright = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
