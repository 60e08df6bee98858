"""Samplers by name, and how a pipeline's scheduler is exchanged for another."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DPM++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""Samplers as the field names them, and the schedulers that they are in diffusers."""


def exchange_scheduler(scheduler: Any, name: str, **settings: Any) -> Any:
    """The diffusers scheduler `name` for the model that `scheduler` is for.

    Where the model's configuration is silent, latents are not clipped: they have no bounds, and diffusers' default, meant for
    pixels, would cut DDIM's off at 1.
    """
    kind = getattr(diffusers, name)
    if "clip_sample" in inspect.signature(kind.__init__).parameters and "clip_sample" not in scheduler.config:
        settings["clip_sample"] = False
    return kind.from_config(scheduler.config, **settings)
