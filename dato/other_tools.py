"""Other tools that run a model in their way: what they put on its forwards is looked for, and refused by name.

Shallow calls run the UNet's own parts, so what another tool wraps around a block or the whole is not run in them, and a tool that
answers from a cache of its own fills ours with what does not belong there. What moves or casts weights, and what is on single
layers, as LoRA scripts do, is as harmless as it is everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from dato.hooked_model import HOOK, foreign_forwards, held_forward, name_of

_HARMLESS = ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")
_WAYS_OUT = {"DeepCache": "DeepCache is on: call helper.disable() first", "cache_dit": "cache-dit is on, or was: call cache_dit.disable_cache(pipe) first, and del pipe.transformer.forward where it leaves that patched, as it does FLUX's"}


def refuse_other_tools(model: Any, modules: Iterable[nn.Module], parts: Iterable[nn.Module | None], noun: str, wrapped: bool = False) -> None:
    """Raise ValueError where another tool has replaced or wrapped the forward of a model or of one of its parts.

    Args:
        model: The UNet or transformer.
        modules: It and all of its modules.
        parts: Those whose class is to be one of diffusers.
        noun: What the model is called in messages.
        wrapped: Whether a forward of others is around that of the whole and calls ours, which does no harm.
    """
    for module in modules:
        own = module.__dict__
        if "_diffusers_hook" in own:
            for name, hook in own["_diffusers_hook"].hooks.items():
                if name != HOOK and hasattr(hook, "new_forward") and type(hook).__module__ not in _HARMLESS:
                    raise ValueError(_refusal(model, noun, module, type(hook), name))
        if ("forward" in own or "_old_forward" in own) and own["_modules"] and not (wrapped and module is model):
            found = foreign_forwards(module)
            if found and not (module is model and held_forward(model) is not None):
                raise ValueError(_refusal(model, noun, module, found[0]))
    for module in (model, *(part for part in parts if part is not None)):
        forward = type(module).forward
        if not str(getattr(forward, "__globals__", {}).get("__name__")).startswith("diffusers."):
            raise ValueError(_refusal(model, noun, module, forward))


def _refusal(model: Any, noun: str, module: nn.Module, made: Any, hook: str | None = None) -> str:
    where = next((f"{name} ({type(m).__name__})" for name, m in model.named_modules() if m is module and name), f"the {noun} itself")
    way_out = next((way for package, way in _WAYS_OUT.items() if name_of(made).startswith(package)), None)
    if hook is not None:
        way_out = f'Take it off first, diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.{noun.lower()}).remove_hook("{hook}")'
    return (
        f"another tool runs parts of this {noun} in its own way: {name_of(made)} is in the place of the forward of {where}, and a strategy knows neither when it "
        f"answers from a cache nor what shallow calls leave out of it. {way_out or 'Remove that tool first, so that this forward is the own one of its class'}, "
        "or call dato.disable(pipe)"
    )
