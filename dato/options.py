"""How tokens are chosen, and on which grids."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal

from dato import scoring
from dato.step import PATCH

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How tokens of a UNet are chosen; the defaults are what the paper describes and what its code does by default. With a transformer others are refused."""

    diff_source: Literal["noise", "feature"] = "noise"
    """What Eq. 6 compares: the UNet's predictions, or the features of its last output unit."""
    use_score: bool = True
    """False: base tokens are drawn at random in every call (the "w/o DiffScore" of Table 4)."""
    align: scoring.Align = "cond"
    """Whose base tokens the other guidance half takes (Eq. 8); "none" is the "w/o alignment" of Table 3."""
    plan_per: Literal["call", "layer"] = "call"
    """Plan once a call for all layers of one resolution, or anew in every layer."""
    patch: int = PATCH
    """Side of a patch in tokens."""
    max_downsample: int | None = None
    """Prune where latent side / token grid side is at most this; None: the layers of the finest grid only."""
    layers: tuple[str, ...] | None = None
    """Prune only in layers whose module name starts with one of these, such as "up_blocks.3"; None: in all of them."""
    score_noise: float = 0.0
    """Standard deviation of noise added to DiffScore, in units of the score's own."""
    seed: int = 0
    """Seeds the private generator behind every random choice; the global generator is never touched."""
    compile: str | None = None
    """A mode of torch.compile, such as "default": each distinct action becomes one graph. None: nothing is compiled."""

    def __post_init__(self) -> None:
        for name, allowed in (("diff_source", ("noise", "feature")), ("align", ("cond", "uncond", "none")), ("plan_per", ("call", "layer"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(map(repr, allowed))}")
        if self.compile not in (None, *COMPILE_MODES):
            raise ValueError(f"compile is {self.compile!r}; allowed are None, {', '.join(map(repr, COMPILE_MODES))}")
        if not isinstance(self.use_score, bool):
            raise ValueError(f"use_score is {self.use_score!r}; allowed are True and False")
        for name in ("seed", "patch", "max_downsample"):
            value = getattr(self, name)
            if _whole(value):
                object.__setattr__(self, name, int(value))  # of numpy, for instance
        if not _whole(self.seed):
            raise ValueError(f"seed is {self.seed!r}; allowed are integers")
        if not _whole(self.patch) or self.patch < PATCH:
            raise ValueError(f"patch is {self.patch!r}; allowed are integers from {PATCH}: a prune ratio may reach 1 - 1/{PATCH}^2")
        if self.max_downsample is not None and (not _whole(self.max_downsample) or self.max_downsample < 1):
            raise ValueError(f"max_downsample is {self.max_downsample!r}; allowed are integers from 1, or None for the finest layers only")
        if self.layers is not None and (not isinstance(self.layers, tuple) or not self.layers or not all(isinstance(x, str) and x for x in self.layers)):
            raise ValueError(f'layers is {self.layers!r}; allowed are a tuple of module names or their beginnings, such as ("up_blocks.3",), or None for all')
        noise: Any = self.score_noise
        if isinstance(noise, bool) or not isinstance(noise, numbers.Real) or not 0 <= float(noise) < math.inf:
            raise ValueError(f"score_noise is {noise!r}; allowed is 0 <= score_noise < infinity")


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def token_grid(latent: tuple[int, int], downsample: int) -> tuple[int, int]:
    """Rows and columns of the tokens at a downsample: each downsampler halves a side, rounded up."""
    height, width = latent
    for _ in range(downsample.bit_length() - 1):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def patch_side(options: Options, height: int, width: int) -> int | None:
    """Side of a patch on a token grid: the chosen one, or the grid's own where that is less; None where there is no room for two
    tokens in a patch, so that nothing is pruned."""
    side = min(options.patch, height, width)
    return side if side >= PATCH else None
