"""The hook on a transformer that runs it by a strategy: which blocks each call computes, and which residuals it reuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from dato.call_arguments import bind_call, conditional_half
from dato.options import Options
from dato.other_tools import refuse_other_tools
from dato.refusals import refuse_halves
from dato.reuse import Kept, Kind, Needs
from dato.runtime import RunState
from dato.scheduler import SchedulerExchange
from dato.strategy import FULL, Step, Strategy
from dato.strategy_hook import StrategyHook
from dato.transformer.blocks import Blocks, Probe
from dato.transformer.offload import send_back
from dato.transformer.position import timestep_of
from dato.transformer.refusals import BATCHED, refuse_call, refuse_compiled, refuse_pipeline


class _Context(BaseState):
    """Nothing: what is asked for is which call of a step is made, which pipelines say by `cache_context`."""


class TransformerHook(StrategyHook):
    """Runs a diffusion transformer by a strategy, whichever pipeline calls it.

    Pipelines guide in one of two ways: with a batch [uncond, cond], or by a second call in the same step for the unconditional half,
    which keeps and reuses its own, and takes the first call's prediction in a step with guidance "cond".

    Args:
        pipe: The pipeline that it is enabled on: its owner.
        strategy: One entry per sampler step.
        options: How tokens are chosen; anything else than the defaults would have no effect and is refused.
        exchange: Of the pipeline's scheduler; None where the strategy has no sampler.

    Raises:
        TypeError: Its blocks are not known.
        StrategyError: The strategy has a depth that the transformer does not have.
        ValueError: It prunes tokens, which no transformer does here.
    """

    noun = "transformer"

    def __init__(self, pipe: Any, strategy: Strategy, options: Options, exchange: SchedulerExchange | None = None) -> None:
        self._model = pipe.transformer
        self.contexts = StateManager(_Context)  # diffusers' `cache_context` tells it which call of a step is coming
        blocks = Blocks.of(self._model)
        for step in strategy:
            blocks.require_depth(step.cache_depth)
        super().__init__(pipe, self._model, strategy, options, exchange)

    def begin(self, model: nn.Module) -> None:
        """Set up what belongs to no copy."""
        self._model, self.contexts = model, StateManager(_Context)
        self._first: tuple[RunState, int, torch.Tensor] | None = None
        self._modules: list[nn.Module] = []  # looked up in the first call: a copy's are not complete yet
        super().begin(model)

    @property
    def model(self) -> Any:
        """The transformer."""
        return self._model

    @property
    def _batched(self) -> bool:
        """Whether its pipelines guide with a batch [uncond, cond]."""
        return type(self.model).__name__ in BATCHED

    @property
    def pruning(self) -> tuple[str, ...]:
        """No layer prunes."""
        return ()

    def read_layers(self) -> None:
        """Blocks are looked up in every call."""

    def attach(self) -> None:
        """Nothing is hooked in the transformer, whose lists of blocks are exchanged for the time of a call; its modules are looked up in the first call."""
        self._modules = []

    def detach(self) -> None:
        """Nothing is hooked in the transformer."""

    refuse_compiled = staticmethod(refuse_compiled)

    def refuse(self, pipe: Any) -> None:
        """Raise ValueError for a pipeline that cannot follow the strategy."""
        shown = getattr(pipe, "transformer", None)
        refuse_compiled(shown if hasattr(shown, "_orig_mod") else self.model)
        refuse_pipeline(pipe, self.strategy, self.options)

    def refuse_run(self, pipe: Any, told: bool | None) -> None:
        """`refuse`, and where guidance is a matter of the batch a run of which it is not known whether it guides."""
        if self._batched:
            super().refuse_run(pipe, told)
        else:
            self.refuse(pipe)

    def refuse_other_tools(self) -> None:
        """Raise ValueError where another tool runs the transformer in its own way."""
        self._refuse_other_tools(Blocks.of(self.model), self.model.modules())

    def _refuse_other_tools(self, blocks: Blocks, modules: Iterable[nn.Module]) -> None:
        refuse_other_tools(self.model, modules, blocks.modules(), self.noun, self.wrapped)

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The transformer's call, as its strategy entry says."""
        blocks = Blocks.of(self.model)
        self._modules = self._modules or list(self.model.modules())
        self._refuse_other_tools(blocks, self._modules)
        call = bind_call(self.model, args, kwargs)
        timestep = timestep_of(call["timestep"], self.runs, self.model)
        run = self._step_of(timestep)
        second = run is not None
        if run is None:
            run = self.runs.at(timestep, ())
        place = run.position.next - second
        text = call.get("encoder_hidden_states")
        kind = Kind.of(call["hidden_states"], self._guided(run), text.shape[1] if isinstance(text, torch.Tensor) and text.ndim == 3 else 0)
        if bool(kind.guided) != run.guided:
            run.replan(bool(kind.guided))
        plan = run.plan_at(place)
        entry = self.strategy[plan.entry]
        refuse_call(run.pipe(), call, plan.step)
        if second and entry.guidance == "cond":
            prediction = self._taken_over(run)
        else:
            kept = self._kept(run, kind, second)
            step = kept.possible(plan.step)
            if step.guidance == "cond":
                refuse_halves(run.pipe(), kind.batch)
            at = run.position.values[place]
            prediction = self._computed(blocks, run, kept, step, (place, at), args, kwargs, call) if step.cache_depth else _reused(run, kept, step, at)
            kept.trim(run.needs[place - run.position.first])
            if step.guidance == "cond":
                prediction = torch.cat([prediction, prediction])
            elif any(x is prediction for x in kept.tensors()):
                prediction = prediction.clone()  # a loop of one's own may change in place what it is given
            run.report.calls_by_depth[step.cache_depth] += 1
        if second:
            run.beside = None if place + 1 >= run.position.end else run.beside
            self._first = None
        else:
            self._first = (run, place, prediction)
            run.advance()
        return Transformer2DModelOutput(sample=prediction) if call["return_dict"] else (prediction,)

    def _step_of(self, timestep: torch.Tensor | float) -> RunState | None:
        """The run whose step has been called once already, where this is its unconditional half's call; None where it is not."""
        name = self.contexts._context.name if self.contexts._context is not None else None
        if self._first is None or name == "cond":
            return None
        run, place, _ = self._first
        if self.runs.last is not run or not run.position.is_at(place, timestep):
            return None
        return None if self._batched else run

    def _guided(self, run: RunState) -> bool | None:
        """Whether the batch is [uncond, cond]: not where each half has a call of its own."""
        return run.guides if self._batched else False

    def _kept(self, run: RunState, kind: Kind, second: bool) -> Kept:
        """What earlier calls of the same half have left."""
        before = run.beside if second else run.kept
        kept = before.fitting(kind) if before is not None else Kept(kind)
        if second:
            run.beside = kept
        else:
            run.kept = kept
        return kept

    def _taken_over(self, run: RunState) -> torch.Tensor:
        """The first call's prediction as that of the second, so that the guided one is the conditional."""
        assert self._first is not None
        run.report.conditional_alone += 1
        return self._first[2].clone()

    def _computed(
        self, blocks: Blocks, run: RunState, kept: Kept, step: Step, at: tuple[int, float],
        args: tuple[Any, ...], kwargs: dict[str, Any], call: dict[str, Any],
    ) -> torch.Tensor:  # fmt: skip
        """The prediction of a call that computes some blocks, with what later calls reuse of it kept."""
        alone, (place, timestep) = step.guidance == "cond", at
        if alone:
            args, kwargs = (), {name: value for name, value in conditional_half(call, kept.kind.batch).items() if name != "self"}
        residual = None if step.cache_depth == FULL else _reused(run, kept, step, timestep)
        out = blocks.left_out(step.cache_depth)
        needs: Needs = run.needs[place - run.position.first]
        # What is left out at a depth is computed here where this call leaves out less.
        depths = {d: blocks.left_out(d) for d in needs.reused if 0 < d < len(blocks) and len(blocks.left_out(d)) > len(out)}
        probes = {k: Probe() for r in depths.values() for k in (r.start, r.stop)}
        with blocks.arranged(step.cache_depth, probes, residual):
            output = self.fn_ref.forward(*args, **kwargs)
        if len(out):
            send_back(blocks.modules(), out)
        prediction = output[0] if isinstance(output, tuple) else output.sample
        features = {d: _seen(probes[r.stop]) - _seen(probes[r.start]) for d, r in depths.items()}
        kept.add(place, timestep, features, prediction, prediction, alone)
        run.report.conditional_alone += alone
        return prediction


def _seen(probe: Probe) -> torch.Tensor:
    assert probe.tokens is not None, "the model's forward passed by a place among its blocks"
    return probe.tokens


def _reused(run: RunState, kept: Kept, step: Step, timestep: float) -> torch.Tensor:
    """What a step takes from earlier calls: a prediction, or the residual of what it leaves out."""
    found, extrapolated = kept.values[step.cache_depth].reused(timestep, step.guidance, step.order)
    run.report.extrapolated += extrapolated
    return found
