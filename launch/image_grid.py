"""Rows and grids of images as PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw


def write_row(path: Path, images: torch.Tensor) -> None:
    """Write (B, 3, H, W) uint8 images side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.png")
    Image.fromarray(torch.cat(list(images), dim=2).permute(1, 2, 0).numpy()).save(partial)
    partial.replace(path)


def grid(rows: Sequence[tuple[str, Path | Image.Image]], scale: int = 1) -> Image.Image:
    """Rows of images under each other, each with its label on the left: the same prompt and seed in a column.

    Args:
        rows: Label, and PNG file or picture.
        scale: Enlargement of small images, without smoothing.
    """
    if not rows:
        raise ValueError("a grid needs at least one row of images; evaluate something first")
    opened = [(label, (Image.open(row) if isinstance(row, Path) else row).convert("RGB")) for label, row in rows]
    pictures = [(label, p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST)) for label, p in opened]
    margin = 8 + max(round(ImageDraw.Draw(p).textlength(label)) for label, p in pictures)
    sheet = Image.new("RGB", (margin + max(p.width for _, p in pictures), sum(p.height + 4 for _, p in pictures)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for label, picture in pictures:
        draw.text((4, top + picture.height // 2 - 5), label, fill="black")
        sheet.paste(picture, (margin, top))
        top += picture.height + 4
    return sheet


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
