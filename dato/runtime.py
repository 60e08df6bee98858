"""The state of one call of a model and of one run of a pipeline: each is made for it, and dropped with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dato import pruning
from dato.call_plan import CallPlan
from dato.caller import Caller, guides
from dato.report import RunReport
from dato.reuse import Kept, Kind, Needs, needs_after
from dato.run_position import RunPosition
from dato.strategy import Step


@dataclass(eq=False)
class CallState:
    """One call of the model, while it is made.

    Attributes:
        step: What it does.
        kind: What it computes: of a guided batch the conditional half, where that is computed alone.
        bases: (B, N_base) base tokens by downsample; empty where nothing is pruned.
        plans: Plans made so far, by downsample.
        captures: Features that later calls start from, by depth.
        features: The last layers', for DiffScore.
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
        told: What a variable of its own says of whether it guides; None where it has none.
        planner: Gives the plan of all its calls by whether they are guided.
        guided: Whether they are.
        report: What it has done.
        generator: Behind its random choices.
        thread: The thread it runs in.
        kept: What its calls have left for later ones; None before the first and after the last.
        beside: What is kept of the unconditional half where the pipeline makes calls of its own for it; None where it does not.
        plans: What each of its calls does.
        needs: What calls after each of them reuse.
    """

    pipe: Callable[[], Any]
    scheduler: Any
    frame: int | None
    attended: bool
    position: RunPosition
    planner: Callable[[bool], list[CallPlan]]
    guided: bool
    report: RunReport
    generator: torch.Generator
    told: bool | None = None
    thread: threading.Thread = field(default_factory=threading.current_thread)
    kept: Kept | None = None
    beside: Kept | None = None
    plans: list[CallPlan] = field(init=False)
    needs: list[Needs] = field(init=False)

    def __post_init__(self) -> None:
        self.replan(self.guided)

    def replan(self, guided: bool) -> None:
        """Guidance is on or off from the coming call on."""
        self.guided = guided
        self.plans = self.planner(guided)
        self.needs = needs_after(self.plans[: self.position.end - self.position.first])

    @property
    def timestep(self) -> float:
        """Of the coming call."""
        return self.position.values[self.position.next]

    @property
    def needed(self) -> Needs:
        """What calls after the coming one reuse."""
        return self.needs[self.position.next - self.position.first]

    @property
    def plan(self) -> CallPlan:
        """What the coming call does."""
        return self.plan_at(self.position.next)

    def plan_at(self, place: int) -> CallPlan:
        """What the call at a place in the sampler's list does."""
        return self.plans[place - self.position.first]

    @property
    def guides(self) -> bool | None:
        """Whether its batch is [uncond, cond] now; None where nothing says so."""
        said = guides(self.pipe())
        return self.told if said is None else said

    def kind_of(self, sample: torch.Tensor) -> Kind:
        """The kind of a call that is made now, with a (B, C, h, w) sample."""
        return Kind.of(sample, self.guides)

    def advance(self) -> None:
        """The coming call is made: what is kept goes with the last one."""
        self.position.next += 1
        if self.position.next >= self.position.end:
            self.report.finished, self.kept = True, None

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
