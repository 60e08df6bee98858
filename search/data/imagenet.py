"""ImageNet-1k from a local folder: synset folders, or the flat validation set with its label file."""

from __future__ import annotations

import csv
import io
import os
import random
import re
from collections import defaultdict
from pathlib import Path

from dato.files import FileError, read_lines, read_text, user_path
from search.data.images import MAX_BYTES, SUFFIXES, DataError, each_once, require_target, walk_images

CLASSES = Path(__file__).parent / "imagenet_classes.csv"
"""index, synset and name of the 1,000 classes."""
_SYNSET = re.compile(r"n\d{8}$")


def read_classes(path: str | None) -> dict[str, tuple[int, str]]:
    """Index and name of every class by its synset, from a csv with the columns index, synset and name."""
    file = user_path(path) if path else CLASSES
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file, MAX_BYTES), newline="")))
        found = {row["synset"]: (int(row["index"]), row["name"]) for row in rows}
    except FileError as error:
        raise DataError(f"data.classes is {str(path)!r}, which cannot be read ({error}); give a csv with the columns index,synset,name, or null for the one that ships") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"data.classes {str(path)!r} is no class file ({error}); its columns must be index,synset,name") from None
    if not found:
        raise DataError(f"data.classes {str(path)!r} names no class; give a csv with the columns index,synset,name")
    return found


def find_labelled(folder: Path, labels: str | None, classes: dict[str, tuple[int, str]], others: list[Path] | None = None) -> dict[str, list[Path]]:
    """The images of every class by synset, sorted by name.

    Args:
        folder: Holds a folder for each synset, or, with `labels`, the images themselves.
        labels: A file with a line for each image: its name, then its synset or class index; Kaggle's
            ``LOC_val_solution.csv`` and Caffe's ``val.txt`` are such files.
        classes: From `read_classes`.
        others: See `walk_images`.
    """
    if not os.path.isdir(folder):
        raise DataError(f"data.images is {str(folder)!r}, which is no folder; give the folder of ImageNet's images")
    found = _by_label_file(folder, labels, classes, others) if labels else _by_synset_folder(folder, classes, others)
    images = [path for paths in found.values() for path in paths]
    if twice := len(images) - len(each_once(images)):
        raise DataError(f"data.images is {str(folder)!r}, where {twice} images are in two classes through links; remove the links, so that an image has one class")
    if len(images) < 2:
        raise DataError(f"data.images is {str(folder)!r}, where fewer than 2 images of known classes were found; a FID needs at least 2")
    return dict(sorted(found.items()))


def _by_synset_folder(folder: Path, classes: dict[str, tuple[int, str]], others: list[Path] | None) -> dict[str, list[Path]]:
    try:
        named = sorted(p for p in folder.iterdir() if _SYNSET.match(p.name))
    except OSError as error:
        raise DataError(f"data.images is {str(folder)!r}, which cannot be read ({error.strerror}); give a folder that you may read") from None
    for path in named:
        require_target(path, folder)
    folders = [p for p in named if p.is_dir()]
    if not folders:
        raise DataError(
            f"data.images is {str(folder)!r}, which holds no folder named after a synset, such as n01440764; "
            "for the flat validation set give data.labels as well: a file with a line for each image, its name and its synset or class index"
        )
    unknown = [p.name for p in folders if p.name not in classes]
    if unknown:
        raise DataError(f"data.images has folders of {len(unknown)} synsets that the class file does not name, such as {unknown[0]}; give data.classes")
    return {p.name: files for p in folders if (files := walk_images(p, others=others))}


def _by_label_file(folder: Path, labels: str, classes: dict[str, tuple[int, str]], others: list[Path] | None) -> dict[str, list[Path]]:
    by_index = {str(index): synset for synset, (index, _) in classes.items()}
    files: dict[str, list[Path]] = defaultdict(list)
    for path in walk_images(folder, others=others):
        files[path.stem].append(path)
    found: dict[str, dict[Path, None]] = defaultdict(dict)
    missing: list[str] = []
    try:
        lines = read_lines(user_path(labels), MAX_BYTES)
    except FileError as error:
        raise DataError(f"data.labels is {labels!r}, which cannot be read ({error}); give a text file with a line for each image: name, synset or class index") from None
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":  # Kaggle's heading
            continue
        if len(words) < 2:
            raise DataError(
                f"data.labels {labels!r}, line {number}: expected an image's name and its synset or class index, but got {line!r}; the development "
                "kit's bare numbers count classes in an order of their own: use Caffe's val.txt or Kaggle's LOC_val_solution.csv"
            )
        synset = words[1] if words[1] in classes else by_index.get(words[1])
        if synset is None:
            raise DataError(f"data.labels {labels!r}, line {number}: {words[1]!r} is neither a synset nor an index of the class file")
        stem = Path(words[0]).stem if Path(words[0]).suffix.lower() in SUFFIXES else words[0]
        there = [p for p in files[stem] if p.name == Path(words[0]).name] or files[stem]
        if len(there) > 1:
            raise DataError(f"data.labels {labels!r}, line {number}: {words[0]!r} is the name of {len(there)} images, {there[0]} and {there[1]}; keep the one that is meant")
        if there:
            found[synset][there[0]] = None
        else:
            missing.append(words[0])
    if missing:
        raise DataError(f"data.labels {labels!r} names {len(missing)} images that are not in {str(folder)!r}, such as {missing[0]}; give the folder that holds them")
    return {synset: sorted(paths) for synset, paths in found.items()}


def prompts_of(found: dict[str, list[Path]], classes: dict[str, tuple[int, str]], template: str) -> list[str]:
    """A prompt for every class that has images, in a fixed random order: the first 500 are of all kinds, not all animals."""
    if "{}" not in template:
        raise DataError(f"data.template is {template!r}; it needs {{}} where the class's name goes, such as 'a photo of a {{}}'")
    return [template.format(classes[synset][1]) for synset in shuffled(list(found))]


def balanced(found: dict[str, list[Path]], count: int | None) -> list[Path]:
    """`count` images, as equally from every class as they come: the first of each, then the second of each. None: all."""
    order = shuffled(list(found))
    rounds = max(map(len, found.values()))
    every = [found[synset][i] for i in range(rounds) for synset in order if i < len(found[synset])]
    return take(every, count)


def take(paths: list[Path], count: int | None) -> list[Path]:
    """The first `count` of the images. Raises `DataError` where there are not as many."""
    if count is not None and count > len(paths):
        raise DataError(f"data.num_reference_images is {count}, but only {len(paths)} real images were found; give fewer, or null for all")
    return paths if count is None else paths[:count]


def shuffled(names: list[str]) -> list[str]:
    """The names in a random order that is always the same."""
    order = sorted(names)
    random.Random(0).shuffle(order)
    return order
