"""What one run of a pipeline, and one call of its UNet, keep: made for it, and dropped with it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from dato import pruning
from dato.position import Position
from dato.report import RunReport
from dato.running import Caller, guides
from dato.schedule import Work
from dato.split import CachedShare
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


@dataclass
class CallState:
    """One call of the UNet, while it is made.

    Attributes:
        step: Its depth and ratio.
        kind: What it is given.
        bases: (B, N_base) base tokens by downsample; empty where nothing is pruned.
        plans: Plans made so far, by downsample.
        captures: Outputs of the units that later calls start from, by depth.
        features: The last output unit's, for DiffScore.
        pruned: Tokens that each layer pruned.
    """

    step: Step
    kind: Kind
    bases: dict[int, torch.Tensor] = field(default_factory=dict)
    plans: dict[int, pruning.PrunePlan] = field(default_factory=dict)
    captures: dict[int, torch.Tensor] = field(default_factory=dict)
    features: list[torch.Tensor] = field(default_factory=list)
    pruned: list[tuple[str, int]] = field(default_factory=list)


@dataclass(eq=False)
class RunState:
    """One run of the pipeline that runs.

    Attributes:
        pipe: A reference to the pipeline.
        scheduler: Its scheduler when the run began.
        frame: Tells it from other runs on the call stack; None in a loop of one's own.
        attended: Whether code that is not diffusers' own runs between its calls, and may change anything.
        position: Where it stands.
        works: What each of its calls does.
        report: What it has done.
        generator: Behind its random choices.
        thread: The thread it runs in.
        kind: What the last call was given.
        cached: Output of output unit d, by depth d.
        shares: What `cached` adds to the resnet that it enters, by depth.
        prediction: The last one.
        compared: The last two outputs that DiffScore compares.
    """

    pipe: Callable[[], Any]
    scheduler: Any
    frame: int | None
    attended: bool
    position: Position
    works: list[Work]
    report: RunReport
    generator: torch.Generator
    thread: threading.Thread = field(default_factory=threading.current_thread)
    kind: Kind | None = None
    cached: dict[int, torch.Tensor] = field(default_factory=dict)
    shares: dict[int, CachedShare] = field(default_factory=dict)
    prediction: torch.Tensor | None = None
    compared: deque[torch.Tensor] = field(default_factory=lambda: deque(maxlen=2))

    @property
    def work(self) -> Work:
        """What the coming call does."""
        return self.works[self.position.next - self.position.first]

    def guided(self) -> bool | None:
        """Whether the batch is [uncond, cond] now; None where that is not known."""
        return guides(self.pipe())

    def goes_on(self, caller: Caller | None, scheduler: Any) -> bool:
        """Whether it may wait for a run that begins now to end: in another thread, or further out on the stack. An abandoned run does neither.

        Args:
            caller: The run that begins, on the stack; None for a loop of one's own.
            scheduler: Of the run that begins.
        """
        if self.report.finished:
            return False
        if self.thread is not threading.current_thread():
            return self.thread.is_alive()
        if self.frame is None:  # a loop of one's own, which nothing on the stack tells from an abandoned one
            return caller is not None or self.scheduler is not scheduler
        return caller is not None and self.frame in caller.outer

    def forget(self) -> None:
        """Drop every tensor."""
        self.cached, self.shares, self.prediction = {}, {}, None
        self.compared.clear()

    def follow(self, kind: Kind) -> None:
        """Keep what is of use to a call that is given another batch or size than the last one was."""
        before, self.kind = self.kind, kind
        if before is None or before == kind:
            return
        if before == kind._replace(batch=2 * kind.batch, guided=True) and kind.guided is False:
            # Guidance is switched off: the batch loses its first half, the unconditional one.
            self.cached, self.shares = {d: x.chunk(2)[1] for d, x in self.cached.items()}, {}
            self.prediction = None if self.prediction is None else self.prediction.chunk(2)[1]
            self.compared = deque((x.chunk(2)[1] for x in self.compared), maxlen=2)
        else:
            self.forget()

    def possible(self, step: Step) -> Step:
        """The step, or where what it would reuse is not there a full call: the first, and after a change of batch or size."""
        there = self.prediction is not None if step.cache_depth == 0 else step.cache_depth == FULL or step.cache_depth in self.cached
        return step if there else Step(FULL, step.prune_ratio)
