"""Self-attention over the kept tokens only: forward hooks around a layer, whatever its processor.

Hooks rather than a wrapping processor: diffusers replaces processors itself when a user switches attention slicing or a
backend on, which would silently end the pruning, and it filters a processor's keyword arguments by its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dato.pruning import PrunePlan

Planner = Callable[[torch.Tensor], PrunePlan | None]
"""From a layer's (B, N, C) tokens to its plan of this call, or None where nothing is pruned."""


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
