"""Images from prompts and seeds, the same whatever the batch size, worker or order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from search.data import Data
from search.models import ModelSpec


@dataclass(frozen=True)
class Batch:
    """Generated images and how long they took.

    Attributes:
        images: (B, 3, H, W) uint8.
        seconds: Wall time of the pipeline's call.
        parts: Seconds of it in text_encoder, unet and vae.
    """

    images: torch.Tensor
    seconds: float
    parts: dict[str, float]


def generate(pipe: Any, model: ModelSpec, data: Data, indices: Sequence[int], steps: int | None = None) -> Batch:
    """Generate the images of the given indices in one call of the pipeline.

    Each image's noise comes from a generator seeded with its own index, so that it does not depend on its batch.
    """
    generators = [torch.Generator().manual_seed(i) for i in indices]
    with _stopwatch(pipe) as parts:
        _synchronize(pipe)
        start = time.perf_counter()
        images = pipe(
            [data.prompt(i) for i in indices],
            num_inference_steps=steps or model.steps,
            guidance_scale=model.guidance,
            height=model.height,
            width=model.width,
            generator=generators,
            output_type="np",
        ).images
        _synchronize(pipe)
        seconds = time.perf_counter() - start
    pixels = torch.from_numpy((images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    return Batch(pixels, seconds, parts)


@contextmanager
def _stopwatch(pipe: Any) -> Iterator[dict[str, float]]:
    """Adds up the time inside the text encoder, the UNet and the VAE's decoder."""
    parts: dict[str, float] = {}
    handles = []
    for name, module in (("text_encoder", pipe.text_encoder), ("unet", pipe.unet), ("vae", pipe.vae.decoder)):
        parts[name] = 0.0
        begun: list[float] = []

        def before(_module: Any, _args: Any, begun: list[float] = begun) -> None:
            _synchronize(pipe)
            begun.append(time.perf_counter())

        def after(_module: Any, _args: Any, _output: Any, name: str = name, begun: list[float] = begun) -> None:
            _synchronize(pipe)
            parts[name] += time.perf_counter() - begun.pop()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def _synchronize(pipe: Any) -> None:
    if pipe.device.type == "cuda":
        torch.cuda.synchronize(pipe.device)
