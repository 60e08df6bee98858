"""Which part of a pipeline denoises: its UNet or its transformer."""

from __future__ import annotations

from typing import Any

DENOISERS = ("unet", "transformer")
"""As diffusers' pipelines call it."""


def denoiser_name(pipe: Any) -> str | None:
    """"unet" or "transformer"; None where the pipeline has neither."""
    return next((name for name in DENOISERS if getattr(pipe, name, None) is not None), None)


def denoiser_of(pipe: Any) -> Any:
    """The UNet or transformer of a pipeline; None where it has neither."""
    name = denoiser_name(pipe)
    return None if name is None else getattr(pipe, name)
