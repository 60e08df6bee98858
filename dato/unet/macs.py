"""Multiply-accumulates of one call of a UNet, by action."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from dato import pruning
from dato.call_arguments import bind_call
from dato.options import Options, patch_side, token_grid
from dato.strategy import FULL, Step
from dato.unet.attention import chosen_layers, prune_layer
from dato.unet.shallow import run_shallow
from dato.unet.units import Layout, unit_output

TEXT = 77
"""Text tokens of a call."""


class UNetMacs:
    """Counts on a copy of a UNet on the meta device: convolutions, linear layers, attention's matrix products, and the similarity of Eq. 9.

    Args:
        unet: Any UNet2DConditionModel; only its configuration is read.
        height: Rows of the latent.
        width: Columns of the latent.
        options: How tokens are chosen.
        text: Text tokens; None for 77.
    """

    def __init__(self, unet: UNet2DConditionModel, height: int, width: int, options: Options, text: int | None = None) -> None:
        self.height, self.width, self.options, self.text = height, width, options, text or TEXT
        with torch.device("meta"):
            self._meta = UNet2DConditionModel.from_config(unet.config).eval()
            self._layout = Layout.of(self._meta)
            self._call = self._example()
        self._layers = chosen_layers(self._layout, options, prunes=False)

    def require(self, step: Step) -> None:
        """Raise ValueError for a depth that the UNet does not have, and for a ratio where it has no layer to prune in."""
        self._layout.require_depth(step.cache_depth)
        if step.prune_ratio and not self._layers:
            chosen_layers(self._layout, self.options)

    def depths(self) -> int:
        """How many depths there are, 0 included and `FULL` not."""
        return len(self._layout)

    def count(self, step: Step) -> int:
        """MACs of a call at a step's depth, not 0, and ratio, one sample."""
        # Matrix products cost the same whichever tokens are chosen; these are simply the first of each patch.
        handles: list[RemovableHandle] = []
        plans: dict[int, pruning.PrunePlan] = {}

        def planner(downsample: int, tokens: torch.Tensor) -> pruning.PrunePlan | None:
            total = tokens.shape[1]
            num_prune = int(step.prune_ratio * total + 1e-9)
            height, width = token_grid((self.height, self.width), downsample)
            patch = patch_side(self.options, height, width)
            if not num_prune or patch is None:
                return None
            if self.options.plan_per == "layer" or downsample not in plans:
                base = (height // patch) * (width // patch)
                plans[downsample] = pruning.plan(tokens, torch.zeros(1, base, dtype=torch.int64, device="meta"), num_prune)
            return plans[downsample]

        depth = step.cache_depth
        kept = None if depth == FULL else self._kept[depth]
        for layer, downsample in self._layers.values():
            handles += prune_layer(layer, partial(planner, downsample))
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                if kept is None:
                    self._meta(**self._call)
                else:
                    run_shallow(self._layout, depth, kept, bind_call(self._meta, (), self._call))
        finally:
            for handle in handles:
                handle.remove()
        return int(counter.get_total_flops()) // 2

    @cached_property
    def _kept(self) -> dict[int, torch.Tensor]:
        """What a call at each depth begins with."""
        kept: dict[int, torch.Tensor] = {}

        def keep(depth: int, _module: Any, _args: Any, output: Any) -> None:
            kept[depth] = unit_output(output)

        handles = [unit.last.register_forward_hook(partial(keep, depth)) for depth, unit in enumerate(self._layout.outputs)]
        with torch.no_grad():
            self._meta(**self._call)
        for handle in handles:
            handle.remove()
        return kept

    def _example(self) -> dict[str, object]:
        config = self._meta.config
        width = config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else config.cross_attention_dim[0]
        call: dict[str, object] = {
            "sample": torch.zeros(1, config.in_channels, self.height, self.width),
            "timestep": torch.zeros(1),
            "encoder_hidden_states": torch.zeros(1, self.text, config.encoder_hid_dim or width),
        }
        if config.addition_embed_type == "text_time":
            embedding = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            call["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, embedding), "time_ids": torch.zeros(1, 6)}
        return call
