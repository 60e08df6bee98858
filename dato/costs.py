"""Multiply-accumulates of every action of a UNet or transformer, and the speedup that a strategy's arithmetic allows, sampler and guidance counted.

Counted by PyTorch's own flop counter (convolutions, linear layers, attention's matrix products, and the similarity of
Eq. 9) on a copy of the model on the meta device: shapes only, nothing is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from diffusers import UNet2DConditionModel

from dato.call_plan import plan_calls
from dato.options import Options
from dato.strategy import FULL, Step, Strategy
from dato.transformer.macs import TransformerMacs
from dato.unet.macs import UNetMacs


class _Macs(Protocol):
    """What counts the calls of one kind of model."""

    def require(self, step: Step) -> None: ...

    def depths(self) -> int: ...

    def count(self, step: Step) -> int: ...


@dataclass
class CostModel:
    """MACs of one call of a UNet or transformer per sample, by action.

    Args:
        model: Any UNet2DConditionModel, or a transformer that dato accelerates; only its configuration is read.
        height: Rows of the latent, before a transformer or its pipeline makes patches of it.
        width: Columns of the latent.
        options: How tokens are chosen.
        text: Text tokens, which a transformer's blocks compute too; None for as many as the pipelines of its family give at most.

    Raises:
        ValueError: A transformer of another family.
    """

    model: Any
    height: int
    width: int
    options: Options = field(default_factory=Options)
    text: int | None = None

    def __post_init__(self) -> None:
        kind = UNetMacs if isinstance(self.model, UNet2DConditionModel) else TransformerMacs
        self._counter: _Macs = kind(self.model, self.height, self.width, self.options, self.text)
        self._known: dict[tuple[int, float], int] = {}

    @property
    def depths(self) -> tuple[int, ...]:
        """The model's cache depths: from 0, which replays, to `FULL`, and without the number that stands for this."""
        return (*(d for d in range(self._counter.depths()) if d != FULL), FULL)

    def macs(self, step: Step) -> int:
        """MACs of a call at this depth and ratio, one sample: one half of a guided batch.

        Raises:
            ValueError: The model does not have this depth, or no layer to prune in.
        """
        self._counter.require(step)
        if step.cache_depth == 0:
            return 0
        key = (step.cache_depth, step.prune_ratio)
        if key not in self._known:
            self._known[key] = self._counter.count(step)
        return self._known[key]

    def share(self, step: Step) -> float:
        """MACs of a call over those of a full one without pruning. Raises what `macs` raises."""
        return self.macs(step) / self.macs(Step(FULL))

    def strategy_macs(self, strategy: Strategy, extra_calls: int = 0, guided: bool = True) -> int:
        """MACs of a run, one image: of a guided step two samples, in one call or two, or the conditional one alone.

        Args:
            strategy: Whose calls are counted as they really are: the first of each half is full.
            extra_calls: Calls that its sampler makes beyond one a step: 1 for PNDM, and one less than it has steps for a sampler of second order.
            guided: Whether the pipeline guides.

        Raises:
            ValueError: The model does not have a depth of the strategy, or no sampler makes so many calls.
        """
        plans = plan_calls(strategy, len(strategy) + extra_calls, order=2 if extra_calls > 1 else 1, guided=guided)
        return sum(self.macs(p.step) * (2 if guided and p.step.guidance == "both" else 1) for p in plans)

    def limit(self, strategy: Strategy, extra_calls: int = 0, guided: bool = True, plain_calls: int | None = None) -> float:
        """Unaccelerated MACs over this strategy's: the speedup that arithmetic alone allows.

        Args:
            strategy: As for `strategy_macs`.
            extra_calls: As for `strategy_macs`, of the strategy's sampler.
            guided: Whether the pipeline guides.
            plain_calls: Calls of the unaccelerated run, such as 51 of 50 steps with PNDM; None for as many as this strategy's. For a
                strategy with a sampler or a number of steps of its own they are those of what it stands in for.
        """
        calls = len(strategy) + extra_calls if plain_calls is None else plain_calls
        return calls * (2 if guided else 1) * self.macs(Step(FULL)) / self.strategy_macs(strategy, extra_calls, guided)
