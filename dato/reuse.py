"""What the calls of a run keep for later ones, which later calls can use it, and how: as it is, or extrapolated."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from dato.call_plan import CallPlan
from dato.strategy import FULL, Step


class Kind(NamedTuple):
    """What a call is given; what is kept of one kind says nothing to another.

    Attributes:
        batch: Rows.
        size: Rows and columns of the latent.
        dtype: Of the latent.
        device: Of the latent.
        guided: Whether the batch is [uncond, cond]; None where that is not known.
        text: Tokens of text that go through a transformer's blocks beside the image's.
    """

    batch: int
    size: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    guided: bool | None
    text: int = 0

    @classmethod
    def of(cls, sample: torch.Tensor, guided: bool | None, text: int = 0) -> Kind:
        """Of a call with a (B, C, h, w) sample, or a packed one of (B, N, C)."""
        return cls(len(sample), (int(sample.shape[-2]), int(sample.shape[-1])), sample.dtype, sample.device, guided, text)

    @property
    def conditional(self) -> Kind:
        """Of the conditional half of a guided batch."""
        return self._replace(batch=self.batch // 2, guided=False)


class Needs(NamedTuple):
    """How many values later calls look back on, of the (unconditional, conditional) half.

    Attributes:
        reused: Of what calls at a depth reuse, by depth.
        compared: Of what DiffScore compares.
    """

    reused: Mapping[int, tuple[int, int]]
    compared: tuple[int, int]


def needs_after(plans: Sequence[CallPlan]) -> list[Needs]:
    """After each call of a plan, what the calls after it look back on at most."""
    found: list[Needs] = []
    needs = Needs({}, (0, 0))
    for plan in reversed(plans):
        found.append(needs)
        step, (reused, compared) = plan.step, needs
        both = step.guidance == "both"
        if step.cache_depth != FULL:
            uncond, cond = reused.get(step.cache_depth, (0, 0))
            count = step.order + 1
            reused = {**reused, step.cache_depth: (max(uncond, count if both else 0), max(cond, count))}
        if step.cache_depth and step.prune_ratio:
            compared = (2 if both else compared[0], 2)
        needs = Needs(reused, compared)
    return found[::-1]


@dataclass(eq=False)
class Computed:
    """A tensor that a call computed.

    Attributes:
        at: When: a timestep.
        tensor: (B, ...), or of the conditional half (B / 2, ...).
        alone: Whether it is the conditional half alone.
    """

    at: float
    tensor: torch.Tensor
    alone: bool

    @property
    def cond(self) -> torch.Tensor:
        """The conditional half."""
        return self.tensor if self.alone else self.tensor.chunk(2)[1]

    @property
    def uncond(self) -> torch.Tensor:
        """The unconditional half."""
        return self.tensor.chunk(2)[0]


class History:
    """What calls have computed of one thing, the last one last. Each half of a guided batch has a history of its own."""

    def __init__(self, values: Sequence[Computed] = ()) -> None:
        self.values = list(values)

    def add(self, at: float, tensor: torch.Tensor, alone: bool) -> None:
        """Note what a call computed."""
        self.values.append(Computed(at, tensor, alone))

    def serves(self, guidance: str) -> bool:
        """Whether it has a value of each half that a step with this guidance needs."""
        return bool(self._last(1, guidance == "both"))

    def trim(self, uncond: int, cond: int) -> None:
        """Drop all but the last values of each half, so many."""
        kept = [*self._last(uncond, whole=True), *self._last(cond)]
        self.values = [v for v in self.values if v in kept]

    def conditional(self) -> History:
        """That of the conditional half alone, as of a batch that is not guided."""
        return History([Computed(v.at, v.cond, alone=False) for v in self.values])

    def last(self, count: int, guidance: str) -> list[torch.Tensor]:
        """The last values of what a step with this guidance computes, the last one first; fewer where a half has fewer."""
        cond = self._last(count)
        if guidance == "cond":
            return [v.cond for v in cond]
        whole = self._last(count, whole=True)
        return [v.tensor for v in cond] if cond == whole else [torch.cat([u.uncond, c.cond]) for u, c in zip(whole, cond, strict=False)]

    def reused(self, at: float, guidance: str, order: int) -> tuple[torch.Tensor, bool]:
        """What a step reuses at a timestep, by `extrapolate`, each half from its own last order + 1 values, and whether it is extrapolated at all."""
        cond = self._last(order + 1)
        if guidance == "cond":
            return extrapolate(at, [(v.at, v.cond) for v in cond])
        whole = self._last(order + 1, whole=True)
        if cond == whole:  # the same calls computed both halves
            return extrapolate(at, [(v.at, v.tensor) for v in cond])
        (first, a), (second, b) = extrapolate(at, [(v.at, v.uncond) for v in whole]), extrapolate(at, [(v.at, v.cond) for v in cond])
        return torch.cat([first, second]), a or b

    def _last(self, count: int, whole: bool = False) -> list[Computed]:
        """The last values, or of those with both halves, the last one first; of several at one timestep the last."""
        found: dict[float, Computed] = {}
        for value in reversed(self.values):
            if len(found) == count:
                break
            if not (whole and value.alone):
                found.setdefault(value.at, value)
        return list(found.values())


def extrapolate(at: float, points: Sequence[tuple[float, torch.Tensor]]) -> tuple[torch.Tensor, bool]:
    """The polynomial through points, at another place (Lagrange's form), and whether it is more than one of them.

    Its weights are Python floats, and the sum is made in float32 at least: weights of alternating signs and sizes beyond 1 would
    magnify what half precision rounds in every term. Only the result is rounded to the points' own precision.

    Args:
        at: The place.
        points: Places, distinct, and the tensors there, all of one shape. One of them alone is returned as it is.
    """
    places = [place for place, _ in points]
    weights = [math.prod((at - other) / (place - other) for other in places if other != place) for place in places]
    (weight, first), *rest = [(w, tensor) for w, (_, tensor) in zip(weights, points, strict=True) if w]
    if not rest:
        return first, False
    total = weight * first.to(torch.promote_types(first.dtype, torch.float32))
    for w, tensor in rest:
        total.add_(tensor, alpha=w)
    return total.to(first.dtype), True


@dataclass(eq=False)
class Kept:
    """What calls of one kind have left for later calls of this kind.

    Attributes:
        kind: What these calls were given.
        values: What a call at depth d reuses, by depth d: predictions, (B, C, h, w), at 0, and the (B, C, h', w') features that a
            shallow call starts from.
        precomputed: What shallow calls have in common, made of the last features once, by depth and guidance.
        compared: The outputs that DiffScore compares, by the place of their call: PLMS repeats a timestep.
    """

    kind: Kind
    values: defaultdict[int, History] = field(default_factory=lambda: defaultdict(History))
    precomputed: dict[tuple[int, str], Any] = field(default_factory=dict)
    compared: History = field(default_factory=History)

    def fitting(self, kind: Kind) -> Kept:
        """What of this is of use to a call of a kind: all, the conditional half where guidance was switched off since, or nothing."""
        if kind == self.kind:
            return self
        if self.kind == kind._replace(batch=2 * kind.batch, guided=True) and kind.guided is False:
            # The batch has lost its first half, the unconditional one.
            values = {depth: history.conditional() for depth, history in self.values.items()}
            return Kept(kind, defaultdict(History, values), compared=self.compared.conditional())
        return Kept(kind)

    def possible(self, step: Step) -> Step:
        """The step, or where what it would reuse is not there a full one: the first of each half, and after a change of batch or size."""
        there = step.cache_depth == FULL or (step.cache_depth in self.values and self.values[step.cache_depth].serves(step.guidance))
        return step if there else Step(FULL, step.prune_ratio, step.guidance)

    def add(self, place: int, timestep: float, features: Mapping[int, torch.Tensor], prediction: torch.Tensor, compared: torch.Tensor, alone: bool) -> None:
        """Keep what the call at a place computed, of both halves or of the conditional one alone."""
        for depth, tensor in {0: prediction, **features}.items():
            self.values[depth].add(timestep, tensor, alone)
        for key in [k for k in self.precomputed if k[0] in features]:
            del self.precomputed[key]  # it was made of what these replace
        self.compared.add(place, compared, alone)

    def trim(self, needs: Needs) -> None:
        """Drop what no later call looks back on."""
        for depth, history in self.values.items():
            history.trim(*needs.reused.get(depth, (0, 0)))
        self.compared.trim(*needs.compared)

    def tensors(self) -> list[torch.Tensor]:
        """All that calls computed and is kept, some of it twice."""
        return [v.tensor for history in (*self.values.values(), self.compared) for v in history.values]
