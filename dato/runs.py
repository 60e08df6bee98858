"""Which run a call of the model belongs to: one that goes on, or a new one of the pipeline that calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from dato.call_plan import check_steps, plan_calls
from dato.caller import caller_of, guides, reference
from dato.options import Options
from dato.refusals import refuse_run
from dato.report import RunReport
from dato.run_position import RunPosition, index_in, is_close, value_of
from dato.runtime import RunState
from dato.strategy import Step, Strategy, StrategyError


class Runs:
    """The runs of a model that are not over: one, or more where runs are made within callbacks or in threads.

    Args:
        owner: Gives the enabled pipeline, or None where it is gone. Its sampler counts in a loop of one's own.
        model: The UNet or transformer.
        strategy: What every run follows.
        options: How tokens are chosen.
        refuse: Raises ValueError for a pipeline that cannot follow the strategy, given what its run says of whether it guides.
        noun: What the model is called in messages.

    Attributes:
        open: Those that are not over.
        last: The run that called last; None before any.
    """

    def __init__(self, owner: Callable[[], Any], model: nn.Module, strategy: Strategy, options: Options, refuse: Callable[[Any, bool | None], None], noun: str) -> None:
        self.owner, self.model, self.strategy, self.options, self.refuse, self.noun = owner, model, strategy, options, refuse, noun
        self.open: list[RunState] = []
        self.last: RunState | None = None

    def at(self, timestep: torch.Tensor | float, layers: tuple[str, ...]) -> RunState:
        """The run whose next call is at `timestep`, a new one where one begins; `layers` are those that prune."""
        run, place = self.going_on(timestep)
        if run is None:
            run = self._begin(timestep, layers)
        else:
            run.position.next = place
        self.last = run
        return run

    def coming(self, timestep: torch.Tensor | float, sample: torch.Tensor, halved: bool = False) -> tuple[RunState, Step] | None:
        """The run whose coming call is at `timestep`, and what that does; None where it is not known yet. Changes nothing.

        Args:
            timestep: Of the call.
            sample: (B, C, h, w), what a ControlNet is given before it.
            halved: Whether that is the conditional half only, as in guess mode.
        """
        run, place = self.going_on(timestep)
        if run is None or run.kept is None:
            return None
        kind = run.kind_of(sample)
        fits = (kind._replace(batch=2 * kind.batch) if halved and kind.guided else kind) == run.kept.kind
        return (run, run.kept.possible(run.plan_at(place).step)) if fits else None

    def going_on(self, timestep: torch.Tensor | float) -> tuple[RunState | None, int]:
        """The run whose next call this is, and its place; (None, 0) where there is none."""
        found: list[tuple[RunState, int]] = []
        perhaps: list[tuple[RunState, int]] = []
        for run in reversed(self.open):
            coming = run.position.coming(run.scheduler.timesteps, timestep)
            if coming is not None:
                (found if coming[1] else perhaps).append((run, coming[0]))
        if perhaps and not found:
            caller, owner = caller_of(self.model), self.owner()
            if caller is not None:
                found = [(run, place) for run, place in perhaps if run.frame == caller.frame]
            else:
                found = [(run, place) for run, place in perhaps if run.frame is None and (owner is None or run.scheduler is owner.scheduler)]
        if len(found) > 1:
            found = [(run, place) for run, place in found if run.thread is threading.current_thread()] or found
        return found[0] if found else (None, 0)

    def _begin(self, timestep: torch.Tensor | float, layers: tuple[str, ...]) -> RunState:
        """Start a run at the place of its first timestep; a call that is refused leaves the runs before it as they were."""
        caller = caller_of(self.model)
        pipe = caller.pipe if caller is not None else self.owner()
        if pipe is None:
            raise ValueError(
                "the pipeline that the strategy was enabled on is gone, and no other one runs, so the sampler is not known: keep that pipeline, "
                f"or call dato.enable on one with this {self.noun}"
            )
        told = caller.guides if caller is not None else None
        self.refuse(pipe, told)
        refuse_run(pipe, caller, self.strategy)
        scheduler = pipe.scheduler
        before = next((r.position for r in reversed(self.open) if r.position.timesteps is scheduler.timesteps), RunPosition())
        begun = before.begun(scheduler.timesteps, timestep)
        if begun is None or (not begun.own and _in_another_list(pipe, timestep)):
            raise ValueError(self._stranger(pipe, timestep))
        try:
            order = getattr(scheduler, "order", 1)
            check_steps(len(self.strategy), begun.values, getattr(scheduler, "num_inference_steps", None), order)
            planner = partial(plan_calls, self.strategy, len(begun.values), order, begun.first)
            planner()  # raises for another number of calls
        except StrategyError as error:
            if not begun.own:
                raise ValueError(self._stranger(pipe, timestep)) from None
            if pipe is self.owner():
                raise
            raise StrategyError(f"{error}. Or call dato.disable on {self._enabled()}, whose {self.noun} this {type(pipe).__name__} shares") from None
        # A base model before a refiner makes only the first of its sampler's calls, and its pipeline knows how many.
        if begun.own and getattr(pipe, "denoising_end", None) is not None:
            begun.end = min(begun.end, begun.first + pipe.num_timesteps)
        run = RunState(
            pipe=reference(pipe),
            scheduler=scheduler,
            frame=caller.frame if caller is not None else None,
            attended=caller is None or caller.attended,
            position=begun,
            planner=planner,
            told=told,
            guided=bool(told if guides(pipe) is None else guides(pipe)),
            report=RunReport(self.strategy, layers, pipeline=type(pipe).__name__, model=self.noun),
            generator=torch.Generator().manual_seed(self.options.seed),
        )
        waiting = [r for r in self.open if r.goes_on(caller, scheduler)]
        loops = [r for r in waiting if r.frame is None and r.thread is run.thread]
        self.open = [r for r in waiting if r not in loops[:-1]] + [run]  # of loops that may be abandoned one is kept
        return run

    def _stranger(self, pipe: Any, timestep: torch.Tensor | float) -> str:
        name = type(pipe).__name__
        going = next((r.position for r in reversed(self.open) if r.pipe() is pipe and r.position.timesteps is pipe.scheduler.timesteps), None)
        if going is not None and going.next < going.end and is_close(value_of(timestep), going.values[going.next]):
            expected = (
                f"comes to this timestep next (call {going.next - going.first + 1} of {going.end - going.first}) and does not make this call: it is made "
                "elsewhere than in that run"
            )
        elif going is not None and going.next < going.end:
            expected = f"comes to {going.values[going.next]:g} next (call {going.next - going.first + 1} of {going.end - going.first})"
        else:
            expected = f"has {len(self.strategy)} steps and does not begin there"
        which = "the enabled" if pipe is self.owner() else "the"
        return (
            f"this {self.noun} is called at timestep {value_of(timestep):g}, but the run of {which} {name} {expected}: a pipeline or sampler other "
            f"than its own calls it, or it is called more than once in a step. Call dato.disable on {self._enabled()} before another "
            f"one uses its {self.noun}, or dato.enable on the one that runs; a loop of your own calls scheduler.set_timesteps, and then the {self.noun} once "
            "for each timestep"
        )

    def _enabled(self) -> str:
        owner = self.owner()
        return f"the enabled {type(owner).__name__}" if owner is not None else "the pipeline that it was enabled on"


def _in_another_list(pipe: Any, timestep: torch.Tensor | float) -> bool:
    """Whether a timestep is an element of the list of another of the pipeline's schedulers, such as one for inversion."""
    lists = [getattr(v, "timesteps", None) for v in vars(pipe).values() if v is not pipe.scheduler and not isinstance(v, nn.Module | torch.Tensor)]
    return any(isinstance(x, torch.Tensor) and index_in(timestep, x) is not None for x in lists)
