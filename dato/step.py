"""One sampler step of a strategy: what is computed, reused and pruned in it; and when two ways to write steps do the same."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dato.files import shown
from dato.schema import FULL, MAX_DEPTH, StrategyError

GUIDANCE = ("both", "cond")
"""What of a guided call is computed: both halves of its batch [uncond, cond], or the conditional half alone."""
ORDERS = (0, 1, 2)
"""Orders of the polynomial through the last values, by which what is reused is extrapolated; 0 takes the last value."""
PATCH = 2
"""Side of the patches that hold one base token each, in tokens; it bounds the prune ratio below 1 - 1/PATCH^2."""


@dataclass(frozen=True, slots=True)
class Step:
    """One sampler step.

    Attributes:
        cache_depth: Units of a UNet or blocks of a transformer that are recomputed: 0 for none (the last prediction is replayed), `FULL` for all of them.
        prune_ratio: Share of the tokens that self-attention skips, in [0, 1 - 1/PATCH^2).
        guidance: "both" halves of a guided batch, or "cond": the conditional half alone, which then is the guided prediction (limited
            guidance, arXiv 2404.07724). Without effect where the pipeline does not guide.
        order: Of the polynomial over the timestep that continues what is reused, the prediction or the cached features, from the last
            computed ones (TaylorSeer, arXiv 2503.06923): 0 reuses the last one as it is. Without effect where nothing is reused.
    """

    cache_depth: int
    prune_ratio: float = 0.0
    guidance: str = "both"
    order: int = 0

    def __post_init__(self) -> None:
        depth, ratio, order = self.cache_depth, self.prune_ratio, self.order
        if not isinstance(self.guidance, str) or self.guidance not in GUIDANCE:
            raise StrategyError(f"guidance is {typed(self.guidance)}; allowed are 'both' halves of the batch, and 'cond' for the conditional half alone")
        if isinstance(order, bool) or not isinstance(order, numbers.Integral) or order not in ORDERS:
            raise StrategyError(f"order is {typed(order)}; allowed are 0 (what is reused stays as it was), 1 and 2 (it is extrapolated)")
        if isinstance(depth, bool) or not isinstance(depth, numbers.Integral) or not 0 <= depth <= MAX_DEPTH:
            raise StrategyError(f"cache_depth is {typed(depth)}; allowed are the integers 0 to {MAX_DEPTH}, where {FULL} computes everything, also of deeper models")
        limit = 1 - 1 / PATCH**2
        if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 0 <= ratio < limit:
            raise StrategyError(
                f"prune_ratio is {typed(ratio)}; allowed is 0 <= prune_ratio < {limit}: "
                f"one base token of every {PATCH} x {PATCH} patch always stays"
            )
        # numpy's numbers are taken as what they say: a float32 of 0.3 is 0.3, not 0.30000001192092896.
        exact = float(ratio) if isinstance(ratio, float | int) or "." not in str(ratio) else float(str(ratio))
        object.__setattr__(self, "cache_depth", int(depth))
        object.__setattr__(self, "order", int(order))
        object.__setattr__(self, "prune_ratio", exact + 0.0)  # -0.0 + 0.0 is 0.0: equal steps have one digest


def canonical_steps(steps: Sequence[Step], inert: Sequence[int], guided: bool, one_call: bool) -> tuple[Step, ...]:
    """Steps that do the same as others, written one way.

    Args:
        steps: Of a whole run.
        inert: Depths at which nothing is pruned, so that the ratio becomes 0.
        guided: Whether the pipeline guides; where it does not, the guidance becomes "both".
        one_call: Whether the sampler makes one call a step, each at a timestep of its own. Then it is known what a call finds kept:
            where it is nothing of a half that it needs, it is full, and no order is larger than there are values for.
    """
    found: list[Step] = []
    for i, s in enumerate(steps):
        guidance = s.guidance if guided else "both"
        before = [t for t in found if t.cache_depth and (guidance == "cond" or t.guidance == "both")]  # what computed the rarer half
        depth, ratio, order = s.cache_depth, s.prune_ratio, s.order
        if depth == 0 or (depth in inert and i):  # a first call is full, and prunes with its ratio where it computes anything
            ratio = 0.0
        if one_call and not before:
            depth, ratio = FULL, s.prune_ratio if s.cache_depth else 0.0
        if i == 0 or depth == FULL:
            order = 0
        elif one_call:
            kept = [t for t in found if extent(t.cache_depth) > extent(depth)]  # computed what is reused here, of the conditional half at least
            order = max(0, min(order, len(kept) - 1))
        found.append(s if (depth, ratio, guidance, order) == (s.cache_depth, s.prune_ratio, s.guidance, s.order) else Step(depth, ratio, guidance, order))
    return tuple(found)


def extent(depth: int) -> float:
    """How much a depth computes, to compare depths by: `FULL`, whatever its number, more than any other."""
    return math.inf if depth == FULL else depth


def depth_name(depth: int) -> str:
    """A cache depth in words."""
    return {FULL: "full", 0: "replayed"}.get(depth, f"depth {depth}")


def step_code(step: Step) -> str:
    """A step in a sign or two: its depth, and after it "'" where the conditional half is alone, and "+" for each order."""
    depth = step.cache_depth
    return ("F" if depth == FULL else f"[{depth}]" if depth > 9 else str(depth)) + ("'" if step.guidance == "cond" else "") + "+" * step.order


def plain_step(step: Step) -> dict[str, Any]:
    """A step as plain data; guidance and order only where they are not the usual ones, as in files of before there were any."""
    usual = {"guidance": "both", "order": 0}
    rest = {key: getattr(step, key) for key, default in usual.items() if getattr(step, key) != default}
    return {"cache_depth": step.cache_depth, "prune_ratio": step.prune_ratio} | rest


def typed(value: Any) -> str:
    """A wrong value with its type, where the value alone does not say it."""
    plain = value is None or type(value) in (bool, int, float, str)
    return shown(value) if plain else f"{shown(value)} of type {type(value).__name__}"
