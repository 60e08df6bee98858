"""Other tools that run a UNet in their way: what they put on its forwards is looked for, and refused by name.

Shallow calls run the UNet's own parts, so what another tool wraps around a block or the whole is not run in them, and a tool that
answers from a cache of its own fills ours with what does not belong there. What moves or casts weights, and what is on single
layers, as LoRA scripts do, is as harmless as it is everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from dato.hooked_model import HOOK, foreign_forwards, held_forward

_HARMLESS = ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")
_WAYS_OUT = {"DeepCache": "DeepCache is on: call helper.disable() first", "cache_dit": "cache-dit is on: call cache_dit.disable_cache(pipe) first"}


def refuse_other_tools(unet: Any, modules: Iterable[nn.Module], wrapped: bool = False) -> None:
    """Raise ValueError where another tool has replaced or wrapped the forward of a UNet or of one of its parts.

    Args:
        unet: The UNet.
        modules: It and all of its modules.
        wrapped: Whether a forward of others is around that of the whole and calls ours, which does no harm.
    """
    for module in modules:
        own = module.__dict__
        if "_diffusers_hook" in own:
            for name, hook in own["_diffusers_hook"].hooks.items():
                if name != HOOK and hasattr(hook, "new_forward") and type(hook).__module__ not in _HARMLESS:
                    raise ValueError(_refusal(unet, module, type(hook), name))
        if ("forward" in own or "_old_forward" in own) and own["_modules"] and not (wrapped and module is unet):
            found = foreign_forwards(module)
            if found and not (module is unet and held_forward(unet) is not None):
                raise ValueError(_refusal(unet, module, found[0]))
    for module in filter(None, (unet, *unet.down_blocks, unet.mid_block, *unet.up_blocks)):
        forward = type(module).forward
        if not str(getattr(forward, "__globals__", {}).get("__name__")).startswith("diffusers."):
            raise ValueError(_refusal(unet, module, forward))


def described(module: nn.Module) -> str:
    """The forward of others on a model, by its module and name."""
    return ", ".join(_name(f) for f in foreign_forwards(module)[:1])


def _name(made: Any) -> str:
    code = getattr(made, "__code__", None)  # where functools.wraps was used, the name is that of what is wrapped
    if code is not None:
        return f"{made.__globals__.get('__name__')}.{code.co_qualname}"
    kind = made if isinstance(made, type) else type(made)
    return f"{kind.__module__}.{kind.__qualname__}"


def _refusal(unet: Any, module: nn.Module, made: Any, hook: str | None = None) -> str:
    where = next((f"{name} ({type(m).__name__})" for name, m in unet.named_modules() if m is module and name), "the UNet itself")
    way_out = next((way for package, way in _WAYS_OUT.items() if _name(made).startswith(package)), None)
    if hook is not None:
        way_out = f'Take it off first, diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.unet).remove_hook("{hook}")'
    return (
        f"another tool runs parts of this UNet in its own way: {_name(made)} is in the place of the forward of {where}, and a strategy knows neither when it "
        f"answers from a cache nor what shallow calls leave out of it. {way_out or 'Remove that tool first, so that this forward is the own one of its class'}, "
        "or call dato.disable(pipe)"
    )
