"""Does a strategy fit this pipeline? Compares what the strategy's provenance says with the pipeline at hand."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dato.denoiser import denoiser_name, denoiser_of
from dato.strategy import Strategy, StrategyError

_UNET_KEYS = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "layers_per_block",
    "transformer_layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "num_attention_heads",
    "addition_embed_type",
    "use_linear_projection",
)
_TRANSFORMER_KEYS = (
    "patch_size",
    "in_channels",
    "out_channels",
    "num_layers",
    "num_single_layers",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "cross_attention_dim",
    "caption_channels",
    "caption_projection_dim",
    "pooled_projection_dim",
    "dual_attention_layers",
    "guidance_embeds",
)
_KEYS = {"unet": _UNET_KEYS, "transformer": _TRANSFORMER_KEYS}
_NOUNS = {"unet": "UNet", "transformer": "transformer"}
_SCHEDULER_KEYS = ("prediction_type", "timestep_spacing", "use_karras_sigmas", "algorithm_type", "solver_order", "skip_prk_steps")
_SAMPLED = 64  # values of each tensor that a fingerprint takes: tens of milliseconds for a UNet of any size
_NARROWER = {torch.float32: (torch.float32, torch.float16, torch.bfloat16)}


class ProvenanceError(StrategyError):
    """A strategy that was made for another kind of model: the message says what differs and what to do."""


class ProvenanceWarning(UserWarning):
    """A strategy that runs here, but whose measured figures were not measured on this."""


def describe(pipe: Any) -> dict[str, Any]:
    """What `check` compares, as plain data: the architecture and weights of the UNet or transformer, and the sampler."""
    name, scheduler = denoiser_name(pipe) or "unet", getattr(pipe, "scheduler", None)
    config = getattr(getattr(pipe, name), "config", {})
    return {
        "pipeline": type(pipe).__name__,
        name: {k: _plain(config[k]) for k in _KEYS[name] if k in config},
        "weights": fingerprints(getattr(pipe, name)),
        "scheduler": {"class": type(scheduler).__name__, **{k: _plain(v) for k, v in _settings(scheduler).items()}},
    }


def check(pipe: Any, strategy: Strategy, scheduler: Any = None) -> None:
    """Compare a strategy's provenance with a pipeline, and the scheduler that it will run with (None: its own). A strategy without provenance is not compared.

    Another architecture cannot use it: the strategy's depths and prices are those of another network. Other weights,
    another sampler or another number of steps can, so these are a `ProvenanceWarning`.

    Raises:
        ProvenanceError: The UNet or transformer has another architecture.
    """
    model, sampler = _mapping(strategy.provenance, "model"), _mapping(strategy.provenance, "sampler")
    if not model and not sampler:
        return
    searched = str(model.get("path") or "another model")
    name = denoiser_name(pipe) or "unet"
    config, was = getattr(getattr(pipe, name), "config", {}), next((other for other in _KEYS if _mapping(model, other)), name)
    known = _mapping(model, name)
    different = [f"{k} is {_short(config.get(k))} here and was {_short(known[k])}" for k in _KEYS[name] if k in known and _plain(config.get(k)) != _plain(known[k])]
    different = [f"it is a {_NOUNS[was]} and this is a {_NOUNS[name]}"] if was != name else different
    if different:
        raise ProvenanceError(
            f"this strategy was found for {searched}, whose {_NOUNS[was]} is another: {'; '.join(different)}. Load {searched}, or search "
            "on this model (dato search model.path=...). To run it without its figures: dataclasses.replace(strategy, provenance={})"
        )
    notes = [*_weights(pipe, model, searched), *_scheduler(scheduler if scheduler is not None else pipe.scheduler, sampler), *_steps(strategy, sampler)]
    if notes:
        warnings.warn(
            f"the strategy runs here, but its measured quality and speed are not this pipeline's: {'; '.join(notes)}. "
            "Measure it here (dato search model.path=...), or match the above",
            ProvenanceWarning,
            stacklevel=3,
        )


def fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 over names, shapes and evenly spaced values of all weights, by precision: the model's own and narrower ones.

    A fingerprint is the same on every device, and with LoRA layers added but not merged. Empty where weights are quantised
    or not loaded.
    """
    named = {_clean(n): p.detach() for n, p in model.named_parameters() if "lora_" not in n}
    if not named or any(p.is_meta or not p.is_floating_point() or p.element_size() < 2 for p in named.values()):
        return {}
    widest = max((p.dtype for p in named.values()), key=lambda d: d.itemsize)
    found = {}
    for dtype in _NARROWER.get(widest, (widest,)):
        whole = hashlib.sha256()
        for name in sorted(named):
            values = _sample(named[name]).to(dtype).cpu().contiguous()
            whole.update(f"{name} {tuple(named[name].shape)}".encode())
            whole.update(values.view(torch.uint8).numpy().tobytes())
        found[str(dtype).removeprefix("torch.")] = whole.hexdigest()
    return found


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(0, tensor.numel(), max(1, tensor.numel() // _SAMPLED), device=tensor.device)[:_SAMPLED]
    # Indexed, not flattened: a channels_last weight would be copied whole.
    return tensor[torch.unravel_index(positions, tensor.shape)] if tensor.dim() else tensor.reshape(1)


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "").replace(".base_layer", "")


def _weights(pipe: Any, model: Mapping[str, Any], searched: str) -> list[str]:
    known = _mapping(model, "weights")
    if not known:
        return []
    here = fingerprints(denoiser_of(pipe))
    common = [d for d in ("float32", "float16", "bfloat16") if d in known and d in here]
    if not common or known[common[0]] == here[common[0]]:
        return []
    return [f"the {_NOUNS[denoiser_name(pipe) or 'unet']}'s weights are {here[common[0]][:12]} ({common[0]}) and were {str(known[common[0]])[:12]}, those of {searched}"]


def _scheduler(scheduler: Any, sampler: Mapping[str, Any]) -> list[str]:
    settings = _mapping(sampler, "settings")
    searched, here = settings.get("class"), type(scheduler).__name__
    if not searched:
        return []
    if searched != here:
        return [f"the sampler is {here} and was {searched}: pipe.scheduler = diffusers.{searched}.from_config(pipe.scheduler.config)"]
    own = _settings(scheduler)
    different = [k for k in _SCHEDULER_KEYS if k in settings and k in own and _plain(own[k]) != settings[k]]
    return [f"the sampler's {k} is {own[k]!r} and was {settings[k]!r}" for k in different]


def _steps(strategy: Strategy, sampler: Mapping[str, Any]) -> list[str]:
    steps = sampler.get("steps")
    if not isinstance(steps, int) or steps == len(strategy):
        return []
    return [f"it has {len(strategy)} steps and was measured with {steps}: run num_inference_steps={steps} with the strategy as it was exported"]


def _settings(scheduler: Any) -> dict[str, Any]:
    config = getattr(scheduler, "config", {})
    return {k: config[k] for k in _SCHEDULER_KEYS if k in config}


def _mapping(notes: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = notes.get(key)
    return found if isinstance(found, Mapping) else {}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    return str(_plain(value))[:120]
