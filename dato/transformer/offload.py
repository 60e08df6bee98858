"""Group offloading, where a call leaves out blocks: a group's weights go back when its last block has run, which may be one of these."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dato.offload_group import group_of


def send_back(blocks: Sequence[nn.Module], left_out: range) -> None:
    """Send the groups back to where they are kept whose last block was left out, and whose first was not."""
    gone = [blocks[place] for place in left_out]
    for place, block in enumerate(blocks):
        group = group_of(block)
        if place not in left_out and group is not None and any(group.offload_leader is module for module in gone):
            group.offload_()


def prefetches(blocks: Sequence[nn.Module]) -> bool:
    """Whether groups load the next one in advance, so that every block has to run."""
    return any(getattr(group_of(block), "stream", None) is not None for block in blocks)
