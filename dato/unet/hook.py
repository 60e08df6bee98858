"""The hook on a UNet that runs it by a strategy: what each call computes, from what earlier calls have left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from dato.base_tokens import choose_base_tokens
from dato.call_arguments import bind_call, conditional_half
from dato.options import Options
from dato.other_tools import refuse_other_tools
from dato.refusals import refuse_compiled, refuse_halves, refuse_pipeline
from dato.reuse import Kept
from dato.runtime import CallState, RunState
from dato.scheduler import SchedulerExchange
from dato.strategy import FULL, Step, Strategy
from dato.strategy_hook import StrategyHook
from dato.unet.layers import LayerHooks
from dato.unet.offload import AtHand, at_hand
from dato.unet.shallow import run_shallow, share_of, share_still_holds
from dato.unet.split_resnet import CachedShare
from dato.unet.units import Layout, unit_output


class UNetHook(StrategyHook):
    """Runs a UNet by a strategy, whichever pipeline calls it.

    Args:
        pipe: The pipeline that it is enabled on: its owner.
        strategy: One entry per sampler step.
        options: How tokens are chosen.
        exchange: Of the pipeline's scheduler; None where the strategy has no sampler.

    Attributes:
        layers: Its hooks on the UNet's layers, as the modules were when last looked at.

    Raises:
        TypeError: The UNet is of another kind.
        StrategyError: The strategy has a depth that the UNet does not have.
        ValueError: Its layers do not fit.
    """

    noun = "UNet"
    copied = ("layers",)

    def __init__(self, pipe: Any, strategy: Strategy, options: Options, exchange: SchedulerExchange | None = None) -> None:
        self.layers = LayerHooks(Layout.of(pipe.unet), strategy, options)
        super().__init__(pipe, pipe.unet, strategy, options, exchange)

    def begin(self, model: nn.Module) -> None:
        """Set up what belongs to no copy."""
        self._actions: dict[tuple[Step, bool, bool], Callable[..., torch.Tensor]] = {}
        super().begin(model)

    @property
    def model(self) -> Any:
        """The UNet."""
        return self.layers.layout.unet

    @property
    def pruning(self) -> tuple[str, ...]:
        """Names of the self-attention layers that prune."""
        return tuple(self.layers.pruning)

    def read_layers(self) -> None:
        """Follow modules that were exchanged, as adding a LoRA adapter to a convolution does; hooks nothing yet."""
        self.layers.remove()
        self.layers = LayerHooks(Layout.of(self.model), self.strategy, self.options)

    def attach(self) -> None:
        """Hook the UNet's layers."""
        self.layers.attach()

    def detach(self) -> None:
        """Undo `attach`; a second time nothing."""
        self.layers.remove()

    refuse_compiled = staticmethod(refuse_compiled)

    def refuse(self, pipe: Any) -> None:
        """Raise ValueError for a pipeline that cannot follow the strategy."""
        shown = getattr(pipe, "unet", None)
        refuse_compiled(shown if hasattr(shown, "_orig_mod") else self.model)
        refuse_pipeline(pipe, self.model, self.strategy, self.options)

    def refuse_other_tools(self) -> None:
        """Raise ValueError where another tool runs the UNet in its own way."""
        self._refuse_other_tools(self.model.modules())

    def _refuse_other_tools(self, modules: Iterable[nn.Module], wrapped: bool = False) -> None:
        unet = self.model
        refuse_other_tools(unet, modules, (*unet.down_blocks, unet.mid_block, *unet.up_blocks), self.noun, wrapped)

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The UNet's call, as its strategy entry says."""
        if not self.layers.in_place():
            self._follow_modules()
        self._refuse_other_tools(self.layers.modules, wrapped=self.wrapped)
        call = bind_call(self.model, args, kwargs)
        run = self.runs.at(call["timestep"], self.pruning)
        kind = run.kind_of(call["sample"])
        if bool(kind.guided) != run.guided:
            run.replan(bool(kind.guided))
        kept = run.kept = run.kept.fitting(kind) if run.kept is not None else Kept(kind)
        step = kept.possible(run.plan.step)
        if step.guidance == "cond":
            refuse_halves(run.pipe(), kind.batch)
        prediction = self._computed(run, kept, step, args, kwargs, call) if step.cache_depth else _reused(run, kept, step)
        kept.trim(run.needed)
        if step.guidance == "cond":
            prediction = torch.cat([prediction, prediction])
        elif any(x is prediction for x in kept.tensors()):
            prediction = prediction.clone()  # a loop of one's own may change in place what it is given
        run.report.calls_by_depth[step.cache_depth] += 1
        run.advance()
        return UNet2DConditionOutput(sample=prediction) if call["return_dict"] else (prediction,)

    def _follow_modules(self) -> None:
        """`read_layers` within a run: what was computed before is still what the method reuses, where the units are as many."""
        units = len(self.layers.layout)
        self.read_layers()
        if len(self.layers.layout) != units:
            self.forget(self.model)
        self.layers.attach()

    def _computed(self, run: RunState, kept: Kept, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], call: dict[str, Any]) -> torch.Tensor:
        """The prediction of a call that computes something, with what later calls reuse of it kept."""
        kind, alone = kept.kind, step.guidance == "cond"
        if alone:
            call, kind = conditional_half(call, kind.batch), kind.conditional
            args, kwargs = (), {name: value for name, value in call.items() if name != "self"}
        layers, now = self.layers, CallState(step, kind)
        outer, layers.call = layers.call, now
        try:
            if step.prune_ratio:
                now.bases = choose_base_tokens(layers.downsamples(step), kind, kept.compared.last(2, step.guidance), self.options, run.generator)
            if step.cache_depth == FULL:
                prediction = self._action(now)(FULL, None, None, None, args, kwargs, call)
            else:
                cached = _reused(run, kept, step)
                share = self._share(run, kept, step, cached)
                with at_hand(self.model) as offloaded:
                    prediction = self._action(now, share is not None)(step.cache_depth, cached, share, offloaded, args, kwargs, call)
        finally:
            layers.call = outer
        if self.options.compile in ("reduce-overhead", "max-autotune"):
            # The next replay of a CUDA graph overwrites what this one returned.
            prediction = prediction.clone()
            now.captures = {d: x.clone() for d, x in now.captures.items()}
            now.features = [x.clone() for x in now.features]
        compared = now.features[-1] if self.options.diff_source == "feature" else prediction
        kept.add(run.position.next, run.timestep, now.captures, prediction, compared, alone)
        run.report.conditional_alone += alone
        for name, count in now.pruned:
            run.report.tokens_pruned[name] += count
        return prediction

    def _action(self, call: CallState, shares: bool = False) -> Callable[..., torch.Tensor]:
        """What computes this call's step: one function, or one graph for each distinct step."""
        if self.options.compile is None:
            return self._compute
        torch.compiler.cudagraph_mark_step_begin()
        key = (replace(call.step, order=0), bool(call.bases), shares)  # what is extrapolated is so before
        if key not in self._actions:
            # Apart from each other: PyTorch counts recompilations of one function, and this one has a graph for each key.
            settings = {"mode": self.options.compile, "dynamic": False, "isolate_recompiles": True}
            self._actions[key] = torch.compile(self._compute, **settings)  # type: ignore[call-overload]
        return self._actions[key]

    def _compute(
        self, depth: int, cached: torch.Tensor | None, share: CachedShare | None, offloaded: AtHand | None,
        args: tuple[Any, ...], kwargs: dict[str, Any], call: dict[str, Any],
    ) -> torch.Tensor:  # fmt: skip
        if cached is None:
            return unit_output(self.fn_ref.forward(*args, **kwargs))
        return run_shallow(self.layers.layout, depth, cached, call, share, offloaded)

    def _share(self, run: RunState, kept: Kept, step: Step, cached: torch.Tensor) -> CachedShare | None:
        """What this and later calls have in common that start from the same cached tensor, done once; a single call gains nothing by it."""
        if step.order:
            return None
        layout, depth, key = self.layers.layout, step.cache_depth, (step.cache_depth, step.guidance)
        share: CachedShare | None = kept.precomputed.get(key)
        if share is not None and not share_still_holds(layout, depth, share):
            share = None
            del kept.precomputed[key]
        if share is None and (self.options.compile or run.plan.share == "precompute") and (cached.device.type == "cpu" or not run.attended):
            share = share_of(layout, depth, cached)
            if share is not None:
                kept.precomputed[key] = share
        return share


def _reused(run: RunState, kept: Kept, step: Step) -> torch.Tensor:
    """What a step takes from earlier calls: a prediction, or the features that it starts from."""
    found, extrapolated = kept.values[step.cache_depth].reused(run.timestep, step.guidance, step.order)
    run.report.extrapolated += extrapolated
    return found
