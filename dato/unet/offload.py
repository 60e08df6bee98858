"""Group offloading's weights, at hand while a shallow call needs them.

diffusers loads a group of blocks in the forward of its blocks and of the model (`diffusers.hooks.group_offloading`, 0.42),
which shallow calls do not go through: they run the blocks' own modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dato.offload_group import group_of


class AtHand:
    """One group at a time, as in the model's own forward."""

    def __init__(self) -> None:
        self._group: Any = None

    def enter(self, block: Any) -> None:
        """Have the weights of a block's group on their device; the group before it goes back."""
        group = group_of(block)
        if group is self._group:
            return
        self.leave()
        if group is not None:
            self._group = group
            load(group)

    def leave(self) -> None:
        """Send the group back to where it is kept."""
        group, self._group = self._group, None
        if group is not None:
            group.offload_()


@contextmanager
def at_hand(unet: Any) -> Iterator[AtHand | None]:
    """The weights that a UNet keeps beside its blocks, and blocks as they are entered; None where nothing is offloaded."""
    own = group_of(unet)
    if own is None and all(group_of(block) is None for block in (*unet.down_blocks, *unet.up_blocks)):
        yield None
        return
    blocks = AtHand()
    if own is not None:
        load(own)
    try:
        yield blocks
    finally:
        blocks.leave()
        if own is not None:
            own.offload_()


def load(group: Any) -> None:
    """Load a group and wait until it is there: nothing else waits for a side stream here."""
    group.onload_()
    if group.stream is not None:
        group.stream.synchronize()
