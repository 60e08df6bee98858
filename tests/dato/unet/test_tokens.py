"""Tools that change the tokens of the layers that prune: noticed, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tomesd
import torch

import dato
from dato import Strategy
from tests.dato.conftest import PRUNED, SHALLOW, STEPS, run
from tests.dato.unet.naive import changing, close, naive


class TestTokens:
    @pytest.mark.parametrize("when", ["before", "after", "within"])
    def test_merged_ones_are_refused_with_what_to_remove(self, make: Callable[[], Any], when: str) -> None:
        pipe = make()
        with dato.accelerate(pipe, PRUNED):
            expected = run(pipe)
        merge = lambda p: tomesd.apply_patch(p, ratio=0.5)  # noqa: E731
        if when == "before":
            merge(pipe)
        dato.enable(pipe, PRUNED)
        if when == "after":
            merge(pipe)
        with pytest.raises(ValueError, match=r"attn1 is given 2 x 128 tokens, where this call has 2 x 256, on a grid of 16 x 16.*tomesd.remove_patch\(pipe\).*prune_ratio 0"):
            run(pipe, **(changing(1, merge) if when == "within" else {}))
        tomesd.remove_patch(pipe)
        assert torch.equal(run(pipe), expected)

    def test_merging_beside_caching_alone_goes_on_working(self, make: Callable[[], Any]) -> None:
        pipe, other = make(), make()
        for p in (pipe, other):
            tomesd.apply_patch(p, ratio=0.5, use_rand=False)
        plain = run(pipe)
        with dato.accelerate(pipe, Strategy.full(STEPS)):
            assert torch.equal(run(pipe), plain)
        expected, _ = naive(other, SHALLOW)
        with dato.accelerate(pipe, SHALLOW):
            assert close(run(pipe), expected)

    def test_tiles_in_the_batch_are_refused(self, make: Callable[[], Any]) -> None:
        pipe = make()
        pipe.unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1.register_forward_hook(lambda _m, _a, out: out.unflatten(1, (4, -1)).flatten(0, 1))
        with dato.accelerate(pipe, PRUNED), pytest.raises(ValueError, match=r"given 8 x 64 tokens, where this call has 2 x 256.*remove the tool that merges, splits or tiles"):
            run(pipe)
