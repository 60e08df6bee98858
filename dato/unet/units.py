"""A UNet2DConditionModel as its list of input and output units.

Units are numbered as in the original latent-diffusion code: l = 0 is conv_in, then each resnet with its attention, then
each downsampler. Output unit l consumes the skip of input unit l. At depth d the units with l >= d are not run: output
unit d - 1 starts from the cached result of output unit d (arXiv 2312.00858, Section 3; arXiv 2501.00375, Eq. 4-5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from dato.strategy import FULL, StrategyError


@dataclass(frozen=True)
class Unit:
    """One input or output unit: a resnet with its attention, or conv_in, or a downsampler.

    Attributes:
        body: conv_in, a resnet or a downsampler.
        attention: The transformer after a resnet, if any.
        upsampler: Ends an output unit that is the last of its resolution.
        downsample: Side of the latent over side of the unit's token grid: 1, 2, 4, ...
        block: The up or down block it belongs to (None for conv_in).
        timed: Whether the body takes the time embedding, as a resnet does.
    """

    body: nn.Module
    downsample: int
    attention: nn.Module | None = None
    upsampler: nn.Module | None = None
    block: Any = None
    timed: bool = False

    @property
    def last(self) -> nn.Module:
        """The module whose output is the unit's output."""
        return self.upsampler or self.attention or self.body


@dataclass(frozen=True)
class Layout:
    """The input units, in order, and the output units by the input unit whose skip they consume."""

    unet: UNet2DConditionModel
    inputs: tuple[Unit, ...]
    outputs: tuple[Unit, ...]

    @classmethod
    def of(cls, unet: UNet2DConditionModel) -> Layout:
        """Read the layout off a UNet. Raises TypeError or ValueError for a model that is not of this family."""
        if not isinstance(unet, UNet2DConditionModel):
            inner = next((name for name, m in unet.named_modules() if isinstance(m, UNet2DConditionModel)), None) if isinstance(unet, nn.Module) else None
            way_out = "its units are not known" if inner is None else f"give the pipeline the UNet that it wraps, pipe.unet = pipe.unet.{inner}, which is used as it is"
            raise TypeError(f"expected a diffusers UNet2DConditionModel, but got {type(unet).__name__}: {way_out}")
        _refuse_family(unet)
        inputs = [Unit(unet.conv_in, 1)]
        factor = 1
        for block in unet.down_blocks:
            attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
            inputs += [Unit(r, factor, attention=a, block=block, timed=True) for r, a in zip(block.resnets, attentions, strict=True)]
            for sampler in block.downsamplers or ():
                factor *= 2
                inputs.append(Unit(sampler, factor, block=block))
        outputs = []
        for block in unet.up_blocks:
            attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
            units = [Unit(r, factor, attention=a, block=block, timed=True) for r, a in zip(block.resnets, attentions, strict=True)]
            if block.upsamplers:
                end = units[-1]
                units[-1] = Unit(end.body, factor, end.attention, block.upsamplers[0], block, timed=True)
                factor //= 2
            outputs += units
        if len(inputs) != len(outputs) or factor != 1:
            raise ValueError(
                f"this UNet has {len(inputs)} input units and {len(outputs)} output units; caching by depth needs one "
                "output unit for each input unit, as Stable Diffusion v1, v2 and XL have"
            )
        return cls(unet, tuple(inputs), tuple(reversed(outputs)))

    def __len__(self) -> int:
        return len(self.inputs)

    def modules(self) -> list[nn.Module]:
        """Every module of the units."""
        return [m for u in (*self.inputs, *self.outputs) for m in (u.body, u.attention, u.upsampler) if m is not None]

    def require_depth(self, depth: int) -> None:
        """Raise `StrategyError` for a cache depth that this UNet does not have."""
        if depth != FULL and depth >= len(self):
            raise StrategyError(
                f"cache_depth {depth} is beyond this UNet, which has {len(self)} units; allowed are 0 to {len(self) - 1}, or {FULL} to compute everything"
            )

    def self_attentions(self) -> dict[str, tuple[nn.Module, int]]:
        """Every self-attention layer by its module name, with its downsample."""
        found: dict[int, int] = {}
        for unit in (*self.inputs, *self.outputs):
            for block in getattr(unit.attention, "transformer_blocks", ()):
                found[id(block.attn1)] = unit.downsample
        return {name: (m, found[id(m)]) for name, m in self.unet.named_modules() if id(m) in found}


def _refuse_family(unet: UNet2DConditionModel) -> None:
    # Blocks of Kandinsky 2 and DeepFloyd IF have other attentions, and resnets in the place of samplers.
    for name, block in (*unet.down_blocks.named_children(), *unet.up_blocks.named_children()):
        parts = (
            (getattr(block, "attentions", None) or (), Transformer2DModel),
            (getattr(block, "downsamplers", None) or (), Downsample2D),
            (getattr(block, "upsamplers", None) or (), Upsample2D),
        )
        for modules, kind in parts:
            for module in modules:
                if not isinstance(module, kind):
                    raise ValueError(
                        f"block {name} of this UNet is a {type(block).__name__} with {type(module).__name__}, where {kind.__name__} is needed: "
                        "caching by depth needs the blocks of Stable Diffusion v1, v2 and XL"
                    )


def unit_output(output: Any) -> torch.Tensor:
    """The tensor of a unit's module: transformers return a tuple or an output object, the others a tensor."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample
