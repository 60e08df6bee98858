"""The hooks on a UNet's layers by which a call keeps features and prunes tokens."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dato import pruning
from dato.hooked_model import Place, in_place, places_of
from dato.options import Options, token_grid
from dato.refusals import token_mismatch
from dato.runtime import CallState
from dato.strategy import FULL, Step, Strategy
from dato.unet.attention import chosen_layers, prune_layer
from dato.unet.units import Layout, unit_output


class LayerHooks:
    """What a strategy hooks in a UNet as its modules are now: read when it is made, hooked from `attach` until `remove`.

    Args:
        layout: The UNet's units.
        strategy: One entry per sampler step.
        options: How tokens are chosen.

    Attributes:
        pruning: The self-attention layers that prune, by module name, with their downsample.
        modules: The UNet and all modules in it, as they were at `attach`.
        call: The call that is made now, which keeps what the hooks see; None between calls, and then they do nothing.

    Raises:
        StrategyError: The strategy has a depth that the UNet does not have.
        ValueError: The strategy prunes, and the options leave no layer to prune in.
    """

    def __init__(self, layout: Layout, strategy: Strategy, options: Options) -> None:
        for step in strategy:
            layout.require_depth(step.cache_depth)
        self.layout, self.options = layout, options
        self.pruning = chosen_layers(layout, options, any(s.cache_depth and s.prune_ratio for s in strategy))
        self.call: CallState | None = None
        self._captured = {layout.outputs[d].last: d for d in {s.cache_depth for s in strategy} - {0, FULL}}
        self._handles: list[RemovableHandle] = []
        self._places: list[Place] = []
        self.modules: list[nn.Module] = []

    def attach(self) -> None:
        """Hook the layers that keep or prune something, and note where all that a call uses hangs."""
        handles = self._handles
        handles += [module.register_forward_hook(partial(self._capture, depth)) for module, depth in self._captured.items()]
        if self.options.diff_source == "feature":
            handles.append(self.layout.outputs[0].last.register_forward_hook(self._feature))
        for name, (layer, downsample) in self.pruning.items():
            handles += prune_layer(layer, partial(self._plan, name, downsample))
        self.modules = list(self.layout.unet.modules())
        self._places = places_of(self.layout.unet, [*self.layout.modules(), *(layer for layer, _ in self.pruning.values())])

    def remove(self) -> None:
        """Undo `attach`; a second time nothing."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def in_place(self) -> bool:
        """Whether all that was read hangs where it did."""
        return in_place(self._places)

    def downsamples(self, step: Step) -> set[int]:
        """Of the grids on which a call at this step prunes."""
        depths = len(self.layout) if step.cache_depth == FULL else step.cache_depth
        units = (*self.layout.inputs[:depths], *self.layout.outputs[:depths])
        return {u.downsample for u in units if u.attention is not None} & {d for _, d in self.pruning.values()}

    def _capture(self, depth: int, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.call is not None:
            self.call.captures[depth] = unit_output(output).clone()  # FreeU scales its input in place

    def _feature(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.call is not None:
            self.call.features.append(unit_output(output))

    def _plan(self, name: str, downsample: int, tokens: torch.Tensor) -> pruning.PrunePlan | None:
        """The plan of one layer in this call, or None where nothing is pruned. Raises ValueError for other tokens than its grid has."""
        call = self.call
        base = call.bases.get(downsample) if call is not None else None
        if call is None or base is None:
            return None
        batch, total, _ = tokens.shape
        height, width = token_grid(call.kind.size, downsample)
        if total != height * width or batch != call.kind.batch:
            raise ValueError(token_mismatch(self.layout.unet, name, (batch, total), (call.kind.batch, height * width), (height, width)))
        num_prune = math.floor(call.step.prune_ratio * total + 1e-9)
        if num_prune == 0:
            return None
        found = call.plans.get(downsample) if self.options.plan_per == "call" else None
        if found is None:
            found = call.plans[downsample] = pruning.plan(tokens, base, num_prune)
        call.pruned.append((name, num_prune * batch))
        return found
