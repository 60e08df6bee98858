"""Multiply-accumulates of every action of a UNet, and the speedup that a strategy's arithmetic allows, sampler and guidance counted.

Counted by PyTorch's own flop counter (convolutions, linear layers, attention's matrix products, and the similarity of
Eq. 9) on a copy of the UNet on the meta device: shapes only, nothing is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from dato import pruning
from dato.call_arguments import bind_call
from dato.call_plan import plan_calls
from dato.options import Options, patch_side, token_grid
from dato.strategy import FULL, Step, Strategy
from dato.unet.attention import chosen_layers, prune_layer
from dato.unet.shallow import run_shallow
from dato.unet.units import Layout, unit_output


@dataclass
class CostModel:
    """MACs of one UNet call per sample, by action.

    Args:
        unet: Any UNet2DConditionModel; only its configuration is read.
        height: Rows of the latent.
        width: Columns of the latent.
        options: How tokens are chosen.
    """

    unet: UNet2DConditionModel
    height: int
    width: int
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        with torch.device("meta"):
            self._meta = UNet2DConditionModel.from_config(self.unet.config).eval()
            self._layout = Layout.of(self._meta)
            self._call = self._example()
        self._layers = chosen_layers(self._layout, self.options, prunes=False)
        self._known: dict[tuple[int, float], int] = {}

    def macs(self, step: Step) -> int:
        """MACs of a call at this depth and ratio, one sample: one half of a guided batch.

        Raises:
            ValueError: The UNet does not have this depth, or no layer to prune in.
        """
        self._layout.require_depth(step.cache_depth)
        if step.prune_ratio and not self._layers:
            chosen_layers(self._layout, self.options)
        if step.cache_depth == 0:
            return 0
        key = (step.cache_depth, step.prune_ratio)
        if key not in self._known:
            self._known[key] = self._count(step)
        return self._known[key]

    def strategy_macs(self, strategy: Strategy, extra_calls: int = 0, guided: bool = True) -> int:
        """MACs of a run, one image: of a guided call two samples, or the conditional one alone.

        Args:
            strategy: Whose calls are counted as they really are: the first of each half is full.
            extra_calls: Calls that its sampler makes beyond one a step: 1 for PNDM, and one less than it has steps for a sampler of second order.
            guided: Whether the pipeline guides.

        Raises:
            ValueError: The UNet does not have a depth of the strategy, or no sampler makes so many calls.
        """
        plans = plan_calls(strategy, len(strategy) + extra_calls, order=2 if extra_calls > 1 else 1, guided=guided)
        return sum(self.macs(p.step) * (2 if guided and p.step.guidance == "both" else 1) for p in plans)

    def limit(self, strategy: Strategy, extra_calls: int = 0, guided: bool = True, plain_calls: int | None = None) -> float:
        """Unaccelerated MACs over this strategy's: the speedup that arithmetic alone allows.

        Args:
            strategy: As for `strategy_macs`.
            extra_calls: As for `strategy_macs`, of the strategy's sampler.
            guided: Whether the pipeline guides.
            plain_calls: UNet calls of the unaccelerated run, such as 51 of 50 steps with PNDM; None for as many as this strategy's. For a
                strategy with a sampler or a number of steps of its own they are those of what it stands in for.
        """
        calls = len(strategy) + extra_calls if plain_calls is None else plain_calls
        return calls * (2 if guided else 1) * self.macs(Step(FULL)) / self.strategy_macs(strategy, extra_calls, guided)

    def _count(self, step: Step) -> int:
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

        for layer, downsample in self._layers.values():
            handles += prune_layer(layer, partial(planner, downsample))
        cached: list[torch.Tensor] = []
        depth = step.cache_depth
        try:
            if depth != FULL:
                handle = self._layout.outputs[depth].last.register_forward_hook(lambda _m, _a, output: cached.append(unit_output(output)))
                with torch.no_grad():
                    self._meta(**self._call)
                handle.remove()
                plans.clear()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                if depth == FULL:
                    self._meta(**self._call)
                else:
                    run_shallow(self._layout, depth, cached[0], bind_call(self._meta, (), self._call))
        finally:
            for handle in handles:
                handle.remove()
        return int(counter.get_total_flops()) // 2

    def _example(self) -> dict[str, object]:
        config = self._meta.config
        width = config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else config.cross_attention_dim[0]
        call: dict[str, object] = {
            "sample": torch.zeros(1, config.in_channels, self.height, self.width),
            "timestep": torch.zeros(1),
            "encoder_hidden_states": torch.zeros(1, 77, config.encoder_hid_dim or width),
        }
        if config.addition_embed_type == "text_time":
            embedding = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            call["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, embedding), "time_ids": torch.zeros(1, 6)}
        return call
