"""What a search generates and compares with: prompts by image index, and real reference images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from dato.files import FileError, read_lines, require_file, user_path, written
from search.data.imagenet import balanced, find_labelled, prompts_of, read_classes, take
from search.data.images import MAX_BYTES, DataError, find_images, kinds, read_image, stream_images
from search.fields import check, limited

__all__ = ["FRESH_OFFSET", "REFERENCE_OFFSET", "Data", "DataError", "DataSpec"]

FRESH_OFFSET = 1_000_000
"""Image indices from here on are never used by a search: they validate its winners."""
REFERENCE_OFFSET = 2_000_000
"""Image indices from here on are those of the unaccelerated pipeline's own images, where they are the reference."""
OWN_REFERENCES = 500
"""How many these are, where data.num_reference_images does not say."""
CAPTIONS = Path(__file__).parent / "captions.txt"
"""Captions of our own, one a line; lines that begin with # say so and are none."""
_KEYS = {
    "digits": (),
    "folder": ("prompts",),
    "imagenet": ("classes", "labels", "template"),
    "coco": ("captions", "count"),
    "prompts": ("prompts", "num_reference_images"),
}
"""The keys that each kind has besides those of real images, which all but digits and prompts have."""
_IMAGE_KEYS = ("images", "image_size", "num_reference_images", "statistics", "on_unreadable")
_NEEDED = {"folder": ("prompts",), "prompts": ("prompts",), "imagenet": ("images",), "coco": ("captions", "images")}
_WHAT = {
    "prompts": "a text file, one prompt a line; for kind 'prompts' also captions or imagenet, which ship",
    "images": "a folder of real images",
    "captions": "COCO's captions_*.json",
}


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Prompts and reference images."""

    name: str
    """Short name, for titles."""
    kind: str = limited(among=("digits", "folder", "imagenet", "coco", "prompts"))
    """"digits" (the embedded default), "folder", "imagenet", "coco", or "prompts": prompts and no real images."""
    prompts: str | None = None
    """For a folder: a text file with one prompt a line; for prompts also "captions" or "imagenet", which ship."""
    images: str | None = None
    """The real images: any folder, searched recursively; ImageNet's synset folders or flat validation set; COCO's folder."""
    image_size: int | None = limited(None, least=1, most=65536)
    """Short side and centre crop of the reference images, in pixels; None leaves them as they are."""
    classes: str | None = None
    """For ImageNet: a csv with the columns index, synset, name; None for the one that ships."""
    labels: str | None = None
    """For ImageNet's flat validation set: a line for each image, its name and its synset or class index."""
    template: str | None = None
    """For ImageNet: the prompt, with {} where the class's name goes; None for "a photo of a {}"."""
    captions: str | None = None
    """For COCO: the official caption file."""
    count: int | None = limited(None, least=1)
    """For COCO: how many prompts, one an image; None for all."""
    num_reference_images: int | None = limited(None, least=2)
    """How many real images, of ImageNet equally from every class; None for all. For prompts: of the pipeline's own, None for 500."""
    statistics: str | None = None
    """A .npz with mu and sigma (pytorch-fid's format) in place of the real images' features."""
    on_unreadable: str = limited("fail", among=("fail", "skip"))
    """"fail" or "skip": what a real image that cannot be read does. Skipped ones are listed and counted in the record."""

    def __post_init__(self) -> None:
        check(self, "data", DataError)
        allowed = {"name", "kind", *_KEYS[self.kind], *(_IMAGE_KEYS if self.kind not in ("digits", "prompts") else ())}
        for field in fields(self):
            if field.name not in allowed and getattr(self, field.name) != field.default:
                raise DataError(f"data.{field.name} is {written(getattr(self, field.name))}, which data of kind {self.kind!r} does not have; set it to {written(field.default)}")
        needed = _NEEDED.get(self.kind, ())
        if self.kind == "folder" and not self.statistics:
            needed = ("prompts", "images")
        if missing := [key for key in needed if not getattr(self, key)]:
            what = " and ".join(f"data.{key} ({_WHAT[key]})" for key in needed)
            raise DataError(f"data.{missing[0]} is not given; set data.{missing[0]}=<...>: data of kind {self.kind!r} needs {what}")

    @property
    def own_reference(self) -> int:
        """How many of the unaccelerated pipeline's own images are the reference; 0 where real images are."""
        return (self.num_reference_images or OWN_REFERENCES) if self.kind == "prompts" else 0


class Data:
    """The prompts and reference images of a `DataSpec`. Raises `DataError` where they cannot be read.

    Attributes:
        prompts: In turn, one an image.
        paths: The real images' files; none for digits.
        turn: After how many images the prompts' classes come round again; a prompt is a class of its own where nothing else is known.
        unreadable: Messages about real images that were skipped, once `reference` went over them.
        left_out: Files beside the real images that are no images, by their suffix.
    """

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.paths: list[Path] = []
        self.unreadable: list[str] = []
        self.left_out: list[Path] = []
        if spec.kind == "digits":
            from search.embedded import digits  # scikit-learn is read only where its digits are used

            count = 10 * len(digits.TEMPLATES)
            self.prompts = [digits.prompt(i % 10, i // 10) for i in range(count)]
        elif spec.kind == "imagenet":
            classes = read_classes(spec.classes)
            found = find_labelled(user_path(spec.images or ""), spec.labels, classes, self.left_out)
            self.prompts = prompts_of(found, classes, spec.template or "a photo of a {}")
            self.paths = balanced(found, spec.num_reference_images)
        elif spec.kind == "coco":
            from search.data.coco import read_captions

            self.prompts, paths = read_captions(spec.captions or "", spec.images or "", spec.count)
            self.paths = take(paths, spec.num_reference_images)
        elif spec.kind == "prompts" and spec.prompts == "captions":
            self.prompts = [p for p in _read_prompts(CAPTIONS) if not p.startswith("#")]
        elif spec.kind == "prompts" and spec.prompts == "imagenet":
            known = read_classes(None)
            self.prompts = prompts_of({synset: [] for synset in known}, known, "a photo of a {}")
        else:
            self.prompts = _read_prompts(user_path(spec.prompts or ""))
            if spec.images:
                self.paths = take(find_images(user_path(spec.images), others=self.left_out), spec.num_reference_images)
        self.turn = 10 if spec.kind == "digits" else len(self.prompts)

    def prompt(self, index: int) -> str:
        """The prompt of image `index`: they come in turn.

        Fresh indices begin in the middle of the list: up to half as many images as there are prompts share none with a search.
        Those of a reference go over the whole list evenly, however many there are.
        """
        if index >= REFERENCE_OFFSET and (count := self.spec.own_reference):
            return self.prompts[(index - REFERENCE_OFFSET) * len(self.prompts) // count % len(self.prompts)]
        start = len(self.prompts) // 2 - FRESH_OFFSET if index >= FRESH_OFFSET else 0
        return self.prompts[(index + start) % len(self.prompts)]

    def reference_in_words(self, count: int | None = None) -> str:
        """What a FID is measured against, for whoever reads one; `count` of the real images could be read, None for all."""
        spec = self.spec
        if own := spec.own_reference:
            listed = spec.prompts if spec.prompts in ("captions", "imagenet") else Path(spec.prompts or "").name
            return f"{own} images of the unaccelerated pipeline, seeds {REFERENCE_OFFSET} to {REFERENCE_OFFSET + own - 1}, prompts {listed}"
        if spec.statistics:
            return f"the statistics in {spec.statistics}"
        if count is None:
            count = len(_digits()) if spec.kind == "digits" else len(self.paths)
        return f"{count} real images of {spec.images or spec.name}" + (f", without {kinds(self.left_out)} there" if self.left_out else "")

    @property
    def preprocessing(self) -> str:
        """What is done to the real images, for keys of what is computed from them."""
        return f"upright RGB, size={self.spec.image_size}, bicubic, on_unreadable={self.spec.on_unreadable}"

    def reference(self, batch: int = 50) -> Iterator[torch.Tensor]:
        """The real images, (B, 3, H, W) uint8, at most `batch` of one size at a time."""
        if self.spec.kind == "digits":
            yield from _digits().split(batch)
            return
        self._need_images()
        skipped: list[str] | None = [] if self.spec.on_unreadable == "skip" else None
        self.unreadable = skipped if skipped is not None else []
        yield from stream_images(self.paths, self.spec.image_size, batch, skipped)

    def reference_content(self) -> Iterator[bytes]:
        """The real images' bytes in pieces, for a digest of them."""
        if self.spec.kind == "digits":
            yield _digits().numpy().tobytes()
            return
        self._need_images()
        for path in self.paths:
            try:
                require_file(path)
                yield f"|{path.stat().st_size}|".encode()
                with path.open("rb") as file:
                    while piece := file.read(1 << 20):
                        yield piece
            except (OSError, FileError) as error:  # which `reference` reports, or skips
                yield f"|{error}|".encode()

    def real(self, index: int) -> torch.Tensor:
        """(3, H, W) uint8, the real image of an index; they come in turn."""
        if self.spec.kind == "digits":
            images = _digits()
            return images[index % len(images)]
        self._need_images()
        return read_image(self.paths[index % len(self.paths)], self.spec.image_size)

    def _need_images(self) -> None:
        if self.spec.own_reference:
            raise DataError("data of kind 'prompts' have no real images; give data=folder data.prompts=... data.images=<a folder of real images> for what needs some")
        if not self.paths:
            raise DataError("these data have statistics only; give data.images (a folder of real images) for what needs the images themselves")


def _digits() -> torch.Tensor:
    from search.embedded import digits

    images, _ = digits.load_split(reference=True)
    return (images * 255).round().to(torch.uint8)


def _read_prompts(path: Path) -> list[str]:
    try:
        prompts = [line for line in read_lines(path, MAX_BYTES) if line]
    except FileError as error:
        raise DataError(f"data.prompts is {str(path)!r}, which cannot be read ({error}); give a UTF-8 text file, one prompt a line") from None
    if not prompts:
        raise DataError(f"data.prompts {str(path)!r} holds no prompt; give one a line")
    return prompts
