"""What a run did: counted as it goes, read by `dato.status`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dato.step import depth_name, extent
from dato.strategy import Strategy
from dato.text_table import text_table


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        strategy: The strategy it followed.
        layers: The attention layers that prune.
        calls_by_depth: Calls of the model made at each cache depth.
        conditional_alone: Calls that computed the conditional half of their batch alone.
        extrapolated: Calls that extrapolated what they reused.
        tokens_pruned: Tokens skipped, by self-attention layer, summed over the calls and over the batch.
        controls_skipped: ControlNet calls that were not made.
        finished: Whether the run came to its last call.
        pipeline: The class of the pipeline that ran: the enabled one, or another that shares its model. "" before any run.
        model: What the model is called: UNet, transformer.
    """

    strategy: Strategy
    layers: tuple[str, ...]
    calls_by_depth: Counter[int] = field(default_factory=Counter)
    conditional_alone: int = 0
    extrapolated: int = 0
    tokens_pruned: Counter[str] = field(default_factory=Counter)
    controls_skipped: int = 0
    finished: bool = False
    pipeline: str = ""
    model: str = "UNet"

    @property
    def calls(self) -> int:
        """Calls of the model so far, replayed ones included."""
        return sum(self.calls_by_depth.values())

    def __str__(self) -> str:
        calls = ", ".join(f"{n} {depth_name(d)}" for d, n in sorted(self.calls_by_depth.items(), key=lambda item: extent(item[0]), reverse=True))
        calls += f"; {self.conditional_alone} computed the conditional half alone" if self.conditional_alone else ""
        calls += f"; {self.extrapolated} extrapolated what they reused" if self.extrapolated else ""
        state = "enabled, and not run yet" if not self.calls else f"{self.pipeline} {'finished' if self.finished else 'not finished'}: {self.calls} {self.model} calls, {calls}"
        lines = [f"strategy  {self.strategy.headline()}", f"run       {state}"]
        if self.layers:
            skipped = f"{sum(self.tokens_pruned.values()):,} tokens in " if self.calls else ""
            lines.append(f"pruning   {skipped}{len(self.layers)} self-attention layer{'s' if len(self.layers) > 1 else ''}")
        if self.controls_skipped:
            lines.append(f"skipped   {self.controls_skipped} ControlNet calls")
        return "\n".join(lines)

    def summary(self) -> str:
        """What it prints as, calls by depth, tokens pruned by layer, and the strategy's steps."""
        calls = [("cache depth", f"{self.model} calls"), *((depth_name(d), str(n)) for d, n in sorted(self.calls_by_depth.items(), key=lambda item: extent(item[0]), reverse=True))]
        layers = [("self-attention layer", "tokens pruned"), *((name, f"{self.tokens_pruned[name]:,}") for name in self.layers)]
        return "\n\n".join([str(self), text_table(calls), *([text_table(layers)] if self.layers else []), self.strategy.summary()])
