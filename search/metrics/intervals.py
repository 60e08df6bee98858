"""Values with 95 % intervals over the choice of images: a jackknife that leaves out groups of images in turn.

Prompts come in turn, so that a set of generated images is balanced over the prompts' classes, and so is every set that it is
compared with. Resampling images one by one would break that balance and overstate the spread many times; groups of whole
turns keep it (`dato bench intervals` measures how often an interval covers what other images give).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit

LEAST_TURNS = 4
"""With fewer turns of the prompts there are too few balanced groups for an interval."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which images are left out together.

    Attributes:
        turn: After how many images the prompts' classes come round again; None where prompts have no known order.
        most: Groups at most; below 2 there are no intervals. Each is one more computation of the metric.
    """

    turn: int | None = None
    most: int = 20

    def of(self, count: int) -> torch.Tensor:
        """(count,) int64, each image's group, images in the order of their indices; empty where there are no intervals.

        Groups are runs of images one after another: of whole turns where there are at least `LEAST_TURNS` of them, the rest of a
        turn with the last group.
        """
        position = torch.arange(count)
        turns = count // self.turn if self.turn else 0
        if self.most < 2 or count < 4:
            return position[:0]
        if self.turn and turns >= LEAST_TURNS:
            each = math.ceil(turns / self.most)
            return (position // self.turn // each).clamp(max=turns // each - 1)
        return position * min(self.most, count // 2) // count


@dataclass(frozen=True, kw_only=True)
class Value:
    """A metric's value.

    Attributes:
        value: The metric on all images.
        low: Lower end of its 95 % interval over the choice of images; NaN without one.
        high: Upper end.
        left_out: The metric without each group of images in turn; the same groups for everything measured on the same images.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    left_out: tuple[float, ...] = ()

    @classmethod
    def around(cls, value: float, left_out: Sequence[float]) -> Value:
        """Value +- Student's t times the jackknife's standard error (Efron and Stein 1981; groups: Shao and Tu 1995, Section 2.3)."""
        groups = len(left_out)
        if groups < 2:
            return cls(value=value)
        found = torch.tensor(list(left_out), dtype=torch.float64)
        error = float(((groups - 1) / groups * (found - found.mean()).square().sum()).sqrt())
        half = float(stdtrit(groups - 1, 0.975)) * error
        return cls(value=value, low=value - half, high=value + half, left_out=tuple(left_out))

    def minus(self, other: Value) -> Value:
        """The difference, with its own interval where both were measured on the same images, group by group."""
        if len(self.left_out) != len(other.left_out):
            return Value(value=self.value - other.value)
        return Value.around(self.value - other.value, [a - b for a, b in zip(self.left_out, other.left_out, strict=True)])


def without_each(groups: torch.Tensor) -> list[torch.Tensor]:
    """For each group of `Groups.of`, the positions of all images that are not in it."""
    return [torch.nonzero(groups != g).flatten() for g in range(int(groups.max()) + 1)] if len(groups) else []
