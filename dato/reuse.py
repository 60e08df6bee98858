"""What the calls of a run keep for later ones, and which later calls can use it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from dato.strategy import FULL, Step


class Kind(NamedTuple):
    """What a call is given; what is kept of one kind says nothing to another.

    Attributes:
        batch: Rows.
        size: Rows and columns of the latent.
        dtype: Of the latent.
        device: Of the latent.
        guided: Whether the batch is [uncond, cond]; None where that is not known.
    """

    batch: int
    size: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    guided: bool | None

    @classmethod
    def of(cls, sample: torch.Tensor, guided: bool | None) -> Kind:
        """Of a call with a (B, C, h, w) sample."""
        return cls(len(sample), (int(sample.shape[-2]), int(sample.shape[-1])), sample.dtype, sample.device, guided)


@dataclass(eq=False)
class Kept:
    """What calls of one kind have left for later calls of this kind.

    Attributes:
        kind: What these calls were given.
        features: (B, C, h', w') that a shallow call at depth d starts from, by depth d.
        precomputed: What shallow calls at depth d have in common, made of `features` once, by depth d.
        prediction: (B, C, h, w), the last one.
        compared: The last two outputs that DiffScore compares, the older first.
    """

    kind: Kind
    features: dict[int, torch.Tensor] = field(default_factory=dict)
    precomputed: dict[int, Any] = field(default_factory=dict)
    prediction: torch.Tensor | None = None
    compared: deque[torch.Tensor] = field(default_factory=lambda: deque(maxlen=2))

    def fitting(self, kind: Kind) -> Kept:
        """What of this is of use to a call of a kind: all, the conditional half where guidance was switched off since, or nothing."""
        if kind == self.kind:
            return self
        if self.kind == kind._replace(batch=2 * kind.batch, guided=True) and kind.guided is False:
            # The batch has lost its first half, the unconditional one.
            prediction = None if self.prediction is None else self.prediction.chunk(2)[1]
            features = {d: x.chunk(2)[1] for d, x in self.features.items()}
            return Kept(kind, features, prediction=prediction, compared=deque((x.chunk(2)[1] for x in self.compared), maxlen=2))
        return Kept(kind)

    def possible(self, step: Step) -> Step:
        """The step, or where what it would reuse is not there a full call: the first, and after a change of batch or size."""
        there = self.prediction is not None if step.cache_depth == 0 else step.cache_depth == FULL or step.cache_depth in self.features
        return step if there else Step(FULL, step.prune_ratio)

    def add(self, features: dict[int, torch.Tensor], prediction: torch.Tensor, compared: torch.Tensor) -> None:
        """Keep what a call computed, in the place of what it makes stale."""
        self.features.update(features)
        for depth in features:
            self.precomputed.pop(depth, None)
        self.prediction = prediction
        self.compared.append(compared)
