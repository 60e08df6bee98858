"""Real image files as they come: greyscale, CMYK, 16 bits, rotated by EXIF, truncated, of any size."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_BYTES = 1 << 30
"""Of a file of prompts, labels, classes or captions; COCO's largest has 91 MB."""
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


class DataError(ValueError):
    """Prompts or images that cannot be used: the message says what was given, what is allowed and what to do."""


def find_images(folder: Path, key: str = "data.images") -> list[Path]:
    """Every image file below a folder, linked folders too, in the order of their paths. Raises `DataError` for fewer than two."""
    found = walk_images(folder, key)
    if len(found) < 2:
        raise DataError(f"{key} is {str(folder)!r}, which holds {len(found)} images ({', '.join(SUFFIXES)}); a FID needs at least 2")
    return found


def walk_images(folder: Path, key: str = "data.images") -> list[Path]:
    """Every image file below a folder, in the order of their paths. A folder that is reached twice, through a link, counts once.

    Raises:
        DataError: The folder, or one below it, cannot be read: images would be missing without a word.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{key} is {str(folder)!r}, where {error.filename} cannot be read ({error.strerror}); give a folder of images that you may read") from None

    for base, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(f for f in folders if _once(Path(base) / f, seen, refuse))
        found += [Path(base) / f for f in files if Path(f).suffix.lower() in SUFFIXES]
    return sorted(found)


def _once(folder: Path, seen: set[tuple[int, int]], refuse: Callable[[OSError], None]) -> bool:
    try:
        there = folder.stat()
    except OSError as error:
        refuse(error)
        return False
    new = (there.st_dev, there.st_ino) not in seen
    seen.add((there.st_dev, there.st_ino))
    return new


def read_image(path: Path, size: int | None = None) -> torch.Tensor:
    """(3, H, W) uint8, upright, in RGB; with a size, resized bicubically and cropped at the centre to a square of that side.

    Raises:
        DataError: The file is no whole image.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise DataError(f"{path} is no file")
        with Image.open(path) as image:
            image.load()  # a truncated file opens, and fails only here
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel, which convert would clip at 255
                upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            rgb = upright.convert("RGB")
    except _UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable image ({str(error) or type(error).__name__})") from None
    if size:
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def stream_images(paths: Sequence[Path], size: int | None, batch: int, unreadable: list[str] | None) -> Iterator[torch.Tensor]:
    """(B, 3, H, W) uint8 batches of consecutive images of one size, at most `batch` of them in memory.

    Args:
        paths: The images.
        size: See `read_image`.
        batch: Images in a batch at most.
        unreadable: Takes the message of every image that cannot be read; None raises `DataError` with all of them.
    """
    waiting: list[torch.Tensor] = []
    for number, path in enumerate(paths):
        try:
            image = read_image(path, size)
        except DataError as error:
            if unreadable is None:
                raise _unreadable_error(paths, number, str(error)) from None
            unreadable.append(str(error))
            continue
        if waiting and (waiting[0].shape != image.shape or len(waiting) == batch):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)


def _unreadable_error(paths: Sequence[Path], first: int, message: str) -> DataError:
    """One error for all of them, so that a data set is repaired in one go."""
    found = [message]
    for path in paths[first + 1 :]:
        try:
            read_image(path)
        except DataError as error:
            found.append(str(error))
    rest = f", and {len(found) - 10} more" if len(found) > 10 else ""
    listed = "; ".join(found[:10])
    return DataError(f"{len(found)} of {len(paths)} real images cannot be used: {listed}{rest}. Repair or remove them, or set data.on_unreadable=skip, which counts them")
