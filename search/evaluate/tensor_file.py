"""Tensors with notes on disk, as safetensors: a reader never sees half a file, and what is torn is as good as not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a file whole, or not at all. Raises `OSError` where there is no space for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=dict(notes or {}))
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_notes(path: Path) -> dict[str, str] | None:
    """A whole file's notes, without its tensors; None where it is missing or torn."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return None


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """A file's tensors and notes, or None where it is missing or torn."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: torch.as_tensor(file.get_tensor(name)) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
