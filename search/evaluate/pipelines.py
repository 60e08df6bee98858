"""Pipelines by name or local path."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.import_utils import is_invisible_watermark_available

from dato.files import user_path
from dato.scheduler import exchange_scheduler
from search.evaluate.model_spec import ModelError, ModelSpec

EMBEDDED = Path(__file__).parents[1] / "embedded" / "pipeline"


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


def check_model(spec: ModelSpec) -> None:
    """Refuse a local folder that is not a pipeline, before anything is started."""
    path = EMBEDDED if spec.path == "embedded" else user_path(spec.path)
    local = spec.path == "embedded" or os.path.exists(path) or path.is_absolute() or spec.path.startswith((".", "~"))
    if local and not os.path.isfile(path / "model_index.json"):
        what = "does not exist" if not os.path.exists(path) else "has no model_index.json"
        raise ModelError(f"model.path is {spec.path!r}, which {what}; give 'embedded', a folder in diffusers' layout, or a hub id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'")
    if not local and spec.path.count("/") != 1:
        raise ModelError(f"model.path is {spec.path!r}, neither a folder here nor a hub id (owner/name); give 'embedded' or one of these")


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
    source = _source(spec)
    try:
        without = {} if as_published else _without(source)
        pipe = DiffusionPipeline.from_pretrained(source, dtype=getattr(torch, spec.dtype), use_safetensors=True, **without)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"cannot load model.path {spec.path!r}: {str(error).strip().splitlines()[0]}") from error
    if spec.scheduler:
        pipe.scheduler = exchange_scheduler(pipe.scheduler, spec.scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)  # what convolutions run fastest in, on CPUs and GPUs
    return pipe.to(device)


def left_out(spec: ModelSpec) -> list[str]:
    """What `load_pipeline` leaves out of a model for measuring, in words. Raises `ModelError` where the model is not there."""
    try:
        config = DiffusionPipeline.load_config(_source(spec))
        found = [_CHECKS["safety_checker"]] if (config.get("safety_checker") or [None])[0] else []
        takes_watermark = "add_watermarker" in inspect.signature(_pipeline_class(config)).parameters
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load model.path {spec.path!r}: {str(error).strip().splitlines()[0]}") from error
    return found + ([_CHECKS["watermarker"]] if takes_watermark and is_invisible_watermark_available() else [])


def _source(spec: ModelSpec) -> str:
    path = user_path(spec.path)
    return str(EMBEDDED) if spec.path == "embedded" else str(path) if os.path.exists(path) else spec.path


def _without(source: str) -> dict[str, Any]:
    """The arguments that load a pipeline without what `left_out` names."""
    config = DiffusionPipeline.load_config(source)
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


def _pipeline_class(config: Mapping[str, Any]) -> type:
    found = getattr(diffusers, str(config.get("_class_name")), None)
    return found if isinstance(found, type) else DiffusionPipeline


def weights_digest(spec: ModelSpec) -> str | None:
    """SHA-256 of the UNet's weight files of a local model; None for a hub id, whose files are not here."""
    folder = (EMBEDDED if spec.path == "embedded" else user_path(spec.path)) / "unet"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                whole.update(chunk)
    return whole.hexdigest()
