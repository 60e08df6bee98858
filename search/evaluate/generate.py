"""Images from prompts and seeds, the same whatever the batch size, worker or order; and only images that the pipeline really made."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dato.denoiser import denoiser_name
from dato.strategy import FULL, Strategy
from search.data.datasets import Data
from search.evaluate.pipelines import ModelSpec


class ImageError(ValueError):
    """Images that are none: NaN, infinite, outside [0, 1], or blackened by a safety checker. The message says whose fault it is and what to do."""


@dataclass(frozen=True)
class Batch:
    """Generated images and how long they took.

    Attributes:
        images: (B, 3, H, W) uint8.
        seconds: Wall time of the pipeline's call.
        parts: Seconds of it in text_encoder, unet or transformer, and vae.
    """

    images: torch.Tensor
    seconds: float
    parts: dict[str, float]


@dataclass
class _Watch:
    """What is seen of one call of the pipeline: seconds by part, and what the VAE's decoder was given and gave."""

    parts: dict[str, float] = field(default_factory=dict)
    decoded: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


def generate(
    pipe: Any, model: ModelSpec, data: Data, indices: Sequence[int], steps: int | None = None, strategy: Strategy | None = None, warm_up: bool = False
) -> Batch:
    """Generate the images of the given indices in one call of the pipeline.

    Each image's noise comes from a generator seeded with its own index, so that it does not depend on its batch. Images are
    looked at before they become bytes, which NaN would do as black and infinity as white.

    Args:
        pipe: Loaded.
        model: What it is.
        data: Prompts.
        indices: Of the images.
        steps: Sampler steps of a whole run, of which image-to-image makes the last; None for the model's.
        strategy: That accelerates the pipeline, for what an error says; None where none does.
        warm_up: Nobody will look at the images: so few steps that they need not be any.

    Raises:
        ImageError: An image is not finite, has values outside [0, 1], or was replaced by a safety checker.
    """

    def call(**more: Any) -> Any:
        return pipe(
            [data.prompt(i) for i in indices],
            num_inference_steps=steps or model.steps,
            **_guidance(pipe, model, len(indices)),
            height=model.height,
            width=model.width,
            generator=[torch.Generator().manual_seed(i) for i in indices],
            output_type="np",
            **more,
        )

    with _stopwatch(pipe) as seen:
        _synchronize(pipe)
        start = time.perf_counter()
        output = call()
        _synchronize(pipe)
        seconds = time.perf_counter() - start
    if warm_up:
        return Batch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), seconds, seen.parts)
    images = output.images
    bad = _not_finite(images, seen, len(indices))
    if bad.any():
        raise ImageError(_explain([i for i, b in zip(indices, bad, strict=True) if b], seen, call, pipe, model, strategy))
    if any(flagged := getattr(output, "nsfw_content_detected", None) or []):
        chosen = [i for i, f in zip(indices, flagged, strict=True) if f]
        raise ImageError(f"images {_short(chosen)} were replaced by the pipeline's safety checker; measure without it: pipe.safety_checker = None, which search.evaluate.pipelines.load_pipeline does")
    return Batch(to_bytes(images), seconds, seen.parts)


def _guidance(pipe: Any, model: ModelSpec, images: int) -> dict[str, Any]:
    """How a pipeline is told the guidance scale: where its transformer takes none itself, by a call of its own for an empty prompt."""
    taken, config = inspect.signature(pipe.__call__).parameters, getattr(getattr(pipe, "transformer", None), "config", {})
    if "true_cfg_scale" in taken and not config.get("guidance_embeds", False):
        return {"true_cfg_scale": model.guidance, "negative_prompt": [" "] * images}
    return {"guidance_scale": model.guidance}


_DENOISERS = {"unet": "UNet"}
"""How what denoises is called in messages, where not as in pipelines."""


def to_bytes(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) float in [0, 1] to (B, 3, H, W) uint8. Raises `ImageError` for what is no image: a cast would make one of anything."""
    if not np.isfinite(images).all():
        raise ImageError("images are not finite; see model.dtype")
    least, most = float(images.min()), float(images.max())
    if least < -1e-3 or most > 1 + 1e-3:
        raise ImageError(f"the pipeline's images have values from {least:.3g} to {most:.3g}; expected 0 to 1, as diffusers' image processor gives them: see do_normalize in the pipeline's image_processor")
    pixels = (images.clip(0, 1) * 255).round().astype(np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _not_finite(images: np.ndarray, seen: _Watch, count: int) -> np.ndarray:
    """(count,) which images are not finite, looking at the decoder's output too: the image processor makes white of infinity."""
    bad = ~np.isfinite(images).reshape(count, -1).all(1)
    for part in range(2):
        flags = [~torch.isfinite(pair[part].float()).flatten(1).all(1) for pair in seen.decoded]
        found = torch.cat([f.cpu() for f in flags]).numpy() if flags else np.zeros(count, dtype=bool)
        # Tiles of an image are decoded one by one: then all images of the batch are suspects.
        bad = bad | (found if len(found) == count else np.full(count, found.any()))
    return bad


def _explain(bad: Sequence[int], seen: _Watch, call: Callable[..., Any], pipe: Any, model: ModelSpec, strategy: Strategy | None) -> str:
    """Where the numbers went wrong, at which action of the strategy, and the likely fix."""
    part = denoiser_name(pipe) or "unet"
    given_bad = any(not torch.isfinite(given.float()).all() for given, _ in seen.decoded)
    finite = _finite_steps(call, pipe) if given_bad else []
    acting = strategy if strategy and strategy.canonical() != Strategy.full(model.steps) else None
    what = f"images {_short(bad)} of {f'strategy {acting.digest}' if acting else 'the unaccelerated pipeline'} are not finite (NaN or infinite)"
    if not given_bad or (finite and all(finite)):
        fix = (
            "the VAE overflows in float16: give the model's folder a VAE that does not (for SDXL madebyollin/sdxl-vae-fp16-fix), set force_upcast in its "
            "vae/config.json, or use model.dtype=bfloat16 or float32"
            if model.dtype == "float16"
            else f"the VAE itself is broken in {model.dtype}: load the model's vae folder again, or exchange it"
        )
        return f"{what}: the latents are finite, what the VAE makes of them is not; {fix}"
    if acting:
        fix = "nothing is to be mended where the unaccelerated pipeline's images are finite: this strategy fails"
        fix += ", unless model.dtype=bfloat16 or float32 has the range that float16 lacks" if model.dtype == "float16" else ""
    elif model.dtype == "float16":
        fix = f"the {_DENOISERS.get(part, part)} overflows in float16: use model.dtype=bfloat16 or float32"
    else:
        fix = f"check model.scheduler, model.steps and model.guidance, then the files of the model's {part} folder"
    return f"{what}: the latents are not finite{_where(finite, acting)}; {fix}"


def _finite_steps(call: Callable[..., Any], pipe: Any) -> list[bool]:
    """Whether the latents are finite after each step, from a second run off the clock; empty where the pipeline does not tell."""
    found: list[bool] = []
    if "latents" in (getattr(pipe, "_callback_tensor_inputs", None) or ()):

        def note(_pipe: Any, _step: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            found.append(bool(torch.isfinite(kept["latents"].float()).all()))
            return kept

        call(callback_on_step_end=note)
    return found


def _where(finite: Sequence[bool], strategy: Strategy | None) -> str:
    """The first step whose latents are not finite, and what the strategy does there."""
    if not finite:
        return ""
    first, calls = finite.index(False), len(finite)
    where = f" from step {first + 1} of {calls} on"
    if strategy is None:
        return where
    # Image-to-image follows the last entries, PNDM's extra call the first.
    step = strategy[max(0, len(strategy) - calls + first) if calls <= len(strategy) + 1 else first * len(strategy) // calls]
    done = {FULL: "computed in full", 0: "replayed"}.get(step.cache_depth, f"computed to cache depth {step.cache_depth}")
    done += " in the conditional half alone" if step.guidance == "cond" else ""
    return f"{where}, which is {done}" + (f" at prune ratio {step.prune_ratio:g}" if step.prune_ratio else "") + (f" and order {step.order}" if step.order else "")


def _short(indices: Sequence[int]) -> str:
    return f"{list(indices[:5])}" + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")


@contextmanager
def _stopwatch(pipe: Any) -> Iterator[_Watch]:
    """Adds up the time inside the text encoders, the UNet or transformer and the VAE's decoder, and keeps what goes through the decoder."""
    seen = _Watch()
    handles = []
    denoiser = denoiser_name(pipe) or "unet"
    encoders = [("text_encoder", getattr(pipe, key, None)) for key in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    for name, module in (*encoders, (denoiser, getattr(pipe, denoiser)), ("vae", pipe.vae.decoder)):
        seen.parts.setdefault(name, 0.0)
        if module is None:
            continue
        begun: list[float] = []

        def before(_module: Any, _args: Any, begun: list[float] = begun) -> None:
            _synchronize(pipe)
            begun.append(time.perf_counter())

        def after(_module: Any, args: Any, output: Any, name: str = name, begun: list[float] = begun) -> None:
            _synchronize(pipe)
            seen.parts[name] += time.perf_counter() - begun.pop()
            if name == "vae":
                seen.decoded.append((args[0] if args else output, output))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _synchronize(pipe: Any) -> None:
    if pipe.device.type == "cuda":
        torch.cuda.synchronize(pipe.device)
