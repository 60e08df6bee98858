"""What a run did: counted as it goes, read by `dato.status`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dato import summary
from dato.strategy import Strategy


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        strategy: The strategy it followed.
        layers: The self-attention layers that prune.
        calls_by_depth: UNet calls made at each cache depth.
        tokens_pruned: Tokens skipped, by self-attention layer, summed over the calls and over the batch.
        controls_skipped: ControlNet calls that were not made.
        finished: Whether the run came to its last call.
        pipeline: The class of the pipeline that ran: the enabled one, or another that shares its UNet. "" before any run.
    """

    strategy: Strategy
    layers: tuple[str, ...]
    calls_by_depth: Counter[int] = field(default_factory=Counter)
    tokens_pruned: Counter[str] = field(default_factory=Counter)
    controls_skipped: int = 0
    finished: bool = False
    pipeline: str = ""

    @property
    def calls(self) -> int:
        """UNet calls so far, replayed ones included."""
        return sum(self.calls_by_depth.values())

    def __str__(self) -> str:
        return summary.report_lines(self)

    def summary(self) -> str:
        """A table of UNet calls by depth, of tokens pruned by layer, and of the strategy's steps."""
        return summary.report_table(self)
