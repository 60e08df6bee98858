"""Multiply-accumulates of one call of a transformer, by cache depth."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dato.options import Options
from dato.strategy import FULL, Step
from dato.transformer.blocks import Blocks
from dato.transformer.example import example_call
from dato.transformer.refusals import refuse_pruning, require_family


class TransformerMacs:
    """Counts on a copy of a transformer on the meta device, in a call of the whole of it: linear layers and attention's matrix products.

    Args:
        model: A transformer that dato accelerates; only its configuration is read.
        height: Rows of the latent.
        width: Columns of the latent.
        options: How tokens are chosen.
        text: Text tokens; None for as many as the pipelines of its family give at most.

    Raises:
        ValueError: A transformer of another family.
    """

    def __init__(self, model: Any, height: int, width: int, options: Options, text: int | None = None) -> None:
        require_family(model)
        with torch.device("meta"):
            self._meta = type(model).from_config(model.config).eval()
            self._call = example_call(self._meta, height, width, text)
        self._blocks = Blocks.of(self._meta)

    def require(self, step: Step) -> None:
        """Raise ValueError for a depth that the transformer does not have, and for a ratio."""
        self._blocks.require_depth(step.cache_depth)
        if step.prune_ratio:
            refuse_pruning(type(self._meta).__name__)

    def depths(self) -> int:
        """How many depths there are, 0 included and `FULL` not."""
        return len(self._blocks)

    def count(self, step: Step) -> int:
        """MACs of a call at a step's depth, not 0, one sample."""
        before, after = self._counted
        return (before[step.cache_depth if step.cache_depth != FULL else -1] + after) // 2

    @cached_property
    def _counted(self) -> tuple[list[int], int]:
        """Flops of a full call before each block and after the last one, and of what comes after the blocks: a call at a depth makes those before that block, and these."""
        before: list[int] = []
        counter = FlopCounterMode(display=False)
        handles = [block.register_forward_pre_hook(lambda *_: before.append(int(counter.get_total_flops()))) for block in self._blocks.modules()]
        handles.append(self._blocks.modules()[-1].register_forward_hook(lambda *_: before.append(int(counter.get_total_flops()))))
        try:
            with torch.no_grad(), counter:
                self._meta(**self._call)
        finally:
            for handle in handles:
                handle.remove()
        return before, int(counter.get_total_flops()) - before[-1]
