"""Real image files as they come: greyscale, CMYK, 16 bits, rotated by EXIF, truncated, of any size."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

Image.init()  # all of Pillow's formats, and not the five that it begins with
FORMATS = sorted(set(Image.OPEN) - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""What Pillow draws by itself: those it only recognises, and those that run another program, are no images here."""
SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO"))
MAX_BYTES = 1 << 30
"""Of a file of prompts, labels, classes or captions; COCO's largest has 91 MB."""


class DataError(ValueError):
    """Prompts or images that cannot be used: the message says what was given, what is allowed and what to do."""


def find_images(folder: Path, key: str = "data.images", others: list[Path] | None = None) -> list[Path]:
    """`walk_images`. Raises `DataError` for fewer than two."""
    others = [] if others is None else others
    found = walk_images(folder, key, others)
    if len(found) < 2:
        also = f" and {kinds(others)}" if others else ""
        raise DataError(f"{key} is {str(folder)!r}, which holds {len(found)} images that Pillow reads (.jpg, .png, .tif and more){also}; a FID needs at least 2")
    return found


def walk_images(folder: Path, key: str = "data.images", others: list[Path] | None = None) -> list[Path]:
    """Every image file below a folder, linked folders too, in the order of their paths. What is reached twice, through a link, counts once.

    Args:
        folder: Where to look.
        key: What it was given as, for messages.
        others: Takes the files whose suffix is no image's, but for hidden ones.

    Raises:
        DataError: The folder, or one below it, cannot be read, or a link leads nowhere: images would be missing without a word.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{key} is {str(folder)!r}, where {error.filename} cannot be read ({error.strerror}); give a folder of images that you may read") from None

    if os.path.isdir(folder):
        _once(folder, seen, refuse)
    for base, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(f for f in folders if _once(Path(base) / f, seen, refuse))
        for path in (Path(base) / f for f in files):
            if path.suffix.lower() in SUFFIXES:
                found.append(path)
            else:
                require_target(path, folder, key)
                if others is not None and not path.name.startswith("."):
                    others.append(path)
    return each_once(found)


def require_target(path: Path, folder: Path, key: str = "data.images") -> None:
    """Refuse a link that leads nowhere: it may be a whole folder, on a disk that is not there. Raises `DataError`."""
    if path.is_symlink() and not os.path.exists(path):
        raise DataError(f"{key} is {str(folder)!r}, where {path} is a link to {os.readlink(path)!r}, which is not there; mount its disk, mend the link, or remove it")


def each_once(paths: Iterable[Path]) -> list[Path]:
    """Sorted, without links to files that are there already: as themselves, or through another link."""
    first: dict[str, Path] = {}
    folders: dict[Path, str] = {}
    for linked, path in sorted((p.is_symlink(), p) for p in paths):
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        first.setdefault(os.path.realpath(path) if linked else os.path.join(folders[path.parent], path.name), path)
    return sorted(first.values())


def kinds(files: Sequence[Path]) -> str:
    """How many files there are of each suffix, in words."""
    counts = Counter(p.suffix.lower() or "without suffix" for p in files)
    listed = [f"{count} {kind}" for kind, count in counts.most_common(6)]
    return ", ".join(listed) + (" and others" if len(counts) > len(listed) else "")


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
        with Image.open(path, formats=FORMATS) as image:
            image.load()  # a truncated file opens, and fails only here
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # more than 8 bits a pixel, which convert would clip at 255
                upright = Image.fromarray(_eight_bits(np.asarray(upright), path))
            rgb = upright.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise DataError(f"{path} is not a readable image ({str(error) or type(error).__name__})") from None
    if size:
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def _eight_bits(pixels: np.ndarray, path: Path) -> np.ndarray:
    """(H, W) uint8 of 16 bits a pixel. Raises `DataError` for more, whose range is not known."""
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"{path} has {pixels.dtype} pixels from {pixels.min():g} to {pixels.max():g}; save it with 8 or 16 bits a pixel")
    return (pixels.astype(np.int64) >> 8).astype(np.uint8)


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
                raise unreadable_error(len(paths), [str(error), *_messages(paths[number + 1 :])]) from None
            unreadable.append(str(error))
            continue
        if waiting and (waiting[0].shape != image.shape or len(waiting) == batch):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)


def glance(paths: Sequence[Path], whole: int) -> list[str]:
    """Messages about images that cannot be read, as far as a look tells: at each file's header, and at up to `whole` of them, evenly spread, to their ends.

    An empty file, or a web page that is called .jpg, shows in its header; an image that was cut off does not.
    """
    every = max(1, -(-len(paths) // max(1, whole)))
    return [message for number, path in enumerate(paths) for message in (_messages([path]) if number % every == 0 else _header_messages(path))]


def _messages(paths: Iterable[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            read_image(path)
        except DataError as error:
            found.append(str(error))
    return found


def _header_messages(path: Path) -> list[str]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return [f"{path} is no file"]
        with Image.open(path, formats=FORMATS):
            return []
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        return [f"{path} is not a readable image ({str(error) or type(error).__name__})"]


def unreadable_error(total: int, found: Sequence[str]) -> DataError:
    """One error for all images that cannot be read, so that a data set is repaired in one go."""
    rest = f", and {len(found) - 10} more" if len(found) > 10 else ""
    listed = "; ".join(found[:10])
    return DataError(f"{len(found)} of {total} real images cannot be used: {listed}{rest}. Repair or remove them, or set data.on_unreadable=skip, which counts them")
