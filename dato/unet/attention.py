"""Which self-attention layers see the kept tokens only, and how: forward hooks around a layer, whatever its processor.

Hooks rather than a wrapping processor: diffusers replaces processors itself when a user switches attention slicing or a
backend on, which would silently end the pruning, and it filters a processor's keyword arguments by its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dato.options import Options
from dato.pruning import PrunePlan
from dato.unet.units import Layout

Planner = Callable[[torch.Tensor], PrunePlan | None]
"""From a layer's (B, N, C) tokens to its plan of this call, or None where nothing is pruned."""


def chosen_layers(layout: Layout, options: Options, prunes: bool = True) -> dict[str, tuple[nn.Module, int]]:
    """The self-attention layers that prune, by module name, with their downsample.

    Args:
        layout: Of the UNet.
        options: Which layers are wanted.
        prunes: Whether any call prunes, so that there have to be some.

    Raises:
        ValueError: The options leave no layer, or name one that does not exist.
    """
    layers = layout.self_attentions()
    downsamples = sorted({d for _, d in layers.values()})
    if not layers and prunes:
        raise ValueError("this UNet has no self-attention layer in which tokens could be pruned; use prune_ratio 0")
    limit = options.max_downsample or (downsamples or [1])[0]
    within = {name: layer for name, layer in layers.items() if layer[1] <= limit}
    if not within and prunes:
        raise ValueError(f"max_downsample is {limit}, but this UNet has self-attention layers at {', '.join(map(str, downsamples))} only; allowed are integers from {downsamples[0]}, or None")
    for prefix in options.layers or ():
        named = {name: d for name, (_, d) in layers.items() if name.startswith(prefix)}
        if not named:
            raise ValueError(f"no self-attention layer is named {prefix}...; there are {', '.join(within or layers)}")
        if min(named.values()) > limit:
            raise ValueError(
                f"the self-attention layers named {prefix}... are at downsample {min(named.values())}, and max_downsample leaves those up to "
                f"{limit} only; give Options(max_downsample={min(named.values())}), or layers of these: {', '.join(within)}"
            )
    return {name: layer for name, layer in within.items() if options.layers is None or name.startswith(options.layers)}


def prune_layer(layer: nn.Module, planner: Planner) -> list[RemovableHandle]:
    """Make a self-attention layer see kept tokens only; removing the returned handles undoes it exactly."""
    pruned = _PrunedLayer(planner)
    return [layer.register_forward_pre_hook(pruned.before, with_kwargs=True), layer.register_forward_hook(pruned.after)]


class _PrunedLayer:
    """The two hooks of a layer: methods, so that a deep copy of the layer has hooks of its own."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.active: list[PrunePlan] = []

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.active.clear()
        tokens = args[0] if args else kwargs["hidden_states"]
        plan = self.planner(tokens)
        if plan is None:
            return None
        if kwargs.get("attention_mask") is not None:
            raise ValueError("token pruning cannot follow a self-attention mask: use prune_ratio 0, or dato.disable(pipe)")
        self.active.append(plan)
        kept = plan.prune(tokens)
        return ((kept, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": kept})

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        return self.active.pop().recover(output) if self.active else None
