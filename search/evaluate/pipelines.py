"""Pipelines by name or local path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.import_utils import is_invisible_watermark_available

from dato.denoiser import DENOISERS, denoiser_name
from dato.scheduler import exchange_scheduler
from search.evaluate.components import load_components, merge_lora
from search.evaluate.load_arguments import check_arguments
from search.evaluate.model_files import (
    EMBEDDED,
    added_digests,
    check_model,
    files_digest,
    folder_of,
    pipeline_config,
    pipeline_folder,
    pipeline_source,
)
from search.evaluate.model_spec import ModelError, ModelSpec

__all__ = ["EMBEDDED", "ModelError", "ModelSpec", "added_digests", "check_model", "denoiser_in", "left_out", "load_pipeline", "resolve_device", "weights_digest"]

def resolve_device(device: str) -> torch.device:
    """The torch device of a configured name. Raises `ModelError` where it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"model.device is {device!r}, which this machine does not have ({str(error).splitlines()[0]}); use auto or cpu") from None
    return found


_CHECKS = {"safety_checker": "safety checker", "watermarker": "invisible watermark"}
"""What is added to a pipeline's images, or put in their place, and is no part of making them."""


def load_pipeline(spec: ModelSpec, as_published: bool = False) -> Any:
    """Load the pipeline onto its device, ready to generate.

    Args:
        spec: Which.
        as_published: With the model's own safety checker and watermark, as its users get it. They are left out otherwise: a
            checker's black images would count as the pipeline's, and its time as the pipeline's time.

    Raises:
        ModelError: It cannot be loaded.
    """
    check_model(spec)
    device = resolve_device(spec.device)
    try:
        pipe = _load(spec, as_published)
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"cannot load model.path {spec.path!r}: {str(error).strip().splitlines()[0]}") from error
    merge_lora(pipe, spec)
    if spec.scheduler:
        pipe.scheduler = exchange_scheduler(pipe.scheduler, spec.scheduler)
    pipe.set_progress_bar_config(disable=True)
    if denoiser_name(pipe) == "unet":
        pipe.unet.to(memory_format=torch.channels_last)  # what convolutions run fastest in, on CPUs and GPUs
    return pipe.to(device)


def _load(spec: ModelSpec, as_published: bool) -> Any:
    source = pipeline_source(spec)
    config = pipeline_config(source)
    kind = _pipeline_class(config)
    check_arguments(spec.load, inspect.signature(kind).parameters, kind._get_signature_keys(kind)[0], kind.__name__)
    # A pipeline that was saved without a part, such as Stable Diffusion 3 without its T5, is to be loaded without it.
    absent = {name: None for name, part in config.items() if isinstance(part, list | tuple) and not any(part)}
    without = {**absent, **({} if as_published else _without(config)), **{k: v for k, v in spec.load.items() if v is None}}
    folder = pipeline_folder(source, spec.variant, {*(k for k, v in without.items() if v is None), *spec.components})
    given = {**spec.load, **without, **load_components(spec, config)}
    return DiffusionPipeline.from_pretrained(str(folder), dtype=getattr(torch, spec.dtype), use_safetensors=True, variant=spec.variant, local_files_only=True, **given)


def denoiser_in(spec: ModelSpec) -> tuple[str | None, str]:
    """"unet", "transformer" or None, and the class of the pipeline, before it is loaded. Raises `ModelError` where the model is not there."""
    try:
        config = pipeline_config(pipeline_source(spec))
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load model.path {spec.path!r}: {str(error).strip().splitlines()[0]}") from error
    return next((name for name in DENOISERS if any(config.get(name) or ())), None), str(config.get("_class_name"))


def left_out(spec: ModelSpec) -> list[str]:
    """What `load_pipeline` leaves out of a model for measuring, in words. Raises `ModelError` where the model is not there."""
    try:
        config = pipeline_config(pipeline_source(spec))
        found = [_CHECKS["safety_checker"]] if (config.get("safety_checker") or [None])[0] else []
        takes_watermark = "add_watermarker" in inspect.signature(_pipeline_class(config)).parameters
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load model.path {spec.path!r}: {str(error).strip().splitlines()[0]}") from error
    return found + ([_CHECKS["watermarker"]] if takes_watermark and is_invisible_watermark_available() else [])


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that load a pipeline without what `left_out` names."""
    takes = inspect.signature(_pipeline_class(config)).parameters
    found: dict[str, Any] = {}
    if "safety_checker" in takes:
        found["safety_checker"] = None
        if "requires_safety_checker" in takes:
            found["requires_safety_checker"] = False
        if "feature_extractor" in takes and not (config.get("image_encoder") or [None])[0]:
            found["feature_extractor"] = None  # nothing but the checker uses it
    if "add_watermarker" in takes:
        found["add_watermarker"] = False
    return found


def _pipeline_class(config: Mapping[str, Any]) -> Any:
    found = getattr(diffusers, str(config.get("_class_name")), None)
    return found if isinstance(found, type) else DiffusionPipeline


def weights_digest(spec: ModelSpec) -> str | None:
    """SHA-256 of the weight files of a local model's UNet or transformer; None for a hub id, whose files are not here."""
    folders = [folder for name in DENOISERS if (folder := folder_of(spec, name)) is not None]
    files = next((found for folder in folders if (found := sorted(folder.glob("*.safetensors")))), [])
    return files_digest(files) if files else None
