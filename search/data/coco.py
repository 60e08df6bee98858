"""MS COCO captions: the official annotation file and its folder of images."""

from __future__ import annotations

import os
import random
from pathlib import Path

from dato.files import FileError, decode, parse_json, read_bytes, user_path
from search.data.images import MAX_BYTES, DataError


def read_captions(captions: str, folder: str, count: int | None) -> tuple[list[str], list[Path]]:
    """Prompts, one an image and in a fixed random order, and every image file of the annotation file.

    The prompt of an image is its caption of the lowest id. COCO-30k is count=30000 of ``captions_val2014.json``; the 5,000
    prompts of ``captions_val2017.json`` are count=null.

    Args:
        captions: ``captions_*.json`` with ``images`` (id, file_name) and ``annotations`` (id, image_id, caption).
        folder: Of the images.
        count: How many prompts; None for one of every image.

    Raises:
        DataError: The file is no caption file, or images are missing.
    """
    path, root = user_path(captions), user_path(folder)
    try:
        text = decode(read_bytes(path, MAX_BYTES))
    except FileError as error:
        raise DataError(f"data.captions is {captions!r}, which cannot be read ({error}); give COCO's captions_val2014.json or captions_val2017.json") from None
    try:
        content = parse_json(text)
        files = {int(row["id"]): str(row["file_name"]) for row in content["images"]}
        first: dict[int, tuple[int, str]] = {}
        for row in content["annotations"]:
            image, candidate = int(row["image_id"]), (int(row["id"]), str(row["caption"]).strip())
            if candidate[1]:
                first[image] = min(first.get(image, candidate), candidate)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"data.captions {captions!r} is no COCO caption file ({type(error).__name__}: {error}); it needs images (id, file_name) and annotations (id, image_id, caption)") from None
    stray = sorted(set(first) - set(files))
    if stray:
        raise DataError(f"data.captions {captions!r}: {len(stray)} captions are of images that it does not list, such as {stray[0]}; download it again")
    missing = [name for name in files.values() if not os.path.isfile(root / name)]
    if missing:
        raise DataError(f"{len(missing)} of the {len(files)} images of data.captions are not in data.images {folder!r}, such as {missing[0]}; give the folder that holds them")
    order = sorted(first)
    random.Random(0).shuffle(order)
    if count is not None and count > len(order):
        raise DataError(f"data.count is {count}, but {captions!r} captions only {len(order)} images; give fewer, or null for all")
    if not order:
        raise DataError(f"data.captions {captions!r} holds no caption; give COCO's captions_val2014.json or captions_val2017.json")
    return [first[i][1] for i in order[:count]], list(dict.fromkeys(root / files[i] for i in sorted(files)))
