"""The hook on a UNet that runs it by a strategy: what each call computes, from what earlier calls have left."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from diffusers.hooks import ModelHook
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from dato.base_tokens import choose_base_tokens
from dato.caller import reference
from dato.hooked_model import HookedModel
from dato.options import Options
from dato.refusals import refuse_halves
from dato.report import RunReport
from dato.reuse import Kept
from dato.runs import Runs
from dato.runtime import CallState, RunState
from dato.scheduler import SchedulerExchange
from dato.strategy import FULL, Step, Strategy
from dato.unet.halves import conditional_half
from dato.unet.layers import LayerHooks
from dato.unet.offload import AtHand, at_hand
from dato.unet.other_tools import described, refuse_other_tools
from dato.unet.shallow import bind_call, run_shallow, share_of, share_still_holds
from dato.unet.split_resnet import CachedShare
from dato.unet.units import Layout, unit_output


class UNetHook(ModelHook):
    """Runs a UNet by a strategy, whichever pipeline calls it.

    Args:
        pipe: The pipeline that it is enabled on: its owner.
        strategy: One entry per sampler step.
        options: How tokens are chosen.
        exchange: Of the pipeline's scheduler; None where the strategy has no sampler.

    Attributes:
        layers: Its hooks on the UNet's layers, as the modules were when last looked at.
        runs: The runs of the UNet.
        hooked: The UNet with this hook on; None where it is off.
        undo: What takes all that is hooked off again, but `layers`.

    Raises:
        TypeError: The UNet is of another kind.
        StrategyError: The strategy has a depth that the UNet does not have.
        ValueError: Its layers do not fit.
    """

    _is_stateful = True

    def __init__(self, pipe: Any, strategy: Strategy, options: Options, exchange: SchedulerExchange | None = None) -> None:
        super().__init__()
        self.owner, self.strategy, self.options, self.exchange = reference(pipe), strategy, options, exchange
        self.hooked: HookedModel | None = None
        self.undo: list[Callable[[], None]] = []
        self.layers = LayerHooks(Layout.of(pipe.unet), strategy, options)
        self._begin(pipe.unet)

    def _begin(self, unet: nn.Module) -> None:
        self._lock = threading.RLock()  # one call at a time: what a call keeps is the UNet's, and threads may share it
        self._expected: set[int] = set()  # threads in a call of the UNet that has not come here yet
        self._actions: dict[tuple[Step, bool, bool], Callable[..., torch.Tensor]] = {}
        self.reset_state(unet)

    @property
    def unet(self) -> Any:
        """The UNet."""
        return self.layers.layout.unet

    @property
    def report(self) -> RunReport:
        """Of the run that called the UNet last."""
        return self.runs.last.report if self.runs.last is not None else RunReport(self.strategy, tuple(self.layers.pruning))

    def read_layers(self) -> None:
        """Follow modules that were exchanged, as adding a LoRA adapter to a convolution does; hooks nothing yet."""
        self.layers.remove()
        self.layers = LayerHooks(Layout.of(self.unet), self.strategy, self.options)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget every run; diffusers calls this when asked to reset stateful hooks."""
        self.runs = Runs(self.owner, module, self.strategy, self.options)
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> UNetHook:
        """For a deep copy of the UNet: the same strategy, without any run, owned by the copy of the pipeline where that is copied too."""
        new = memo[id(self)] = type(self).__new__(type(self))
        ModelHook.__init__(new)
        owner = memo.get(id(self.owner()))
        new.owner = reference(owner) if owner is not None else _nobody
        new.strategy, new.options = self.strategy, self.options
        for name in ("fn_ref", "layers", "hooked", "undo", "exchange"):
            setattr(new, name, copy.deepcopy(getattr(self, name), memo))
        new._begin(copy.deepcopy(self.unet, memo))  # where a part of the UNet is copied first, `layers` is not complete yet
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "an accelerated pipeline cannot be pickled: call dato.disable(pipe) before, and dato.enable(pipe, strategy) on what is loaded. "
            "A copy.deepcopy of it works"
        )

    def require_reachable(self) -> None:
        """Raise RuntimeError where another tool took the strategy away, so that no run is plain without a word."""
        if self.hooked is not None and self.hooked.reached() == "no":
            raise RuntimeError(
                "the strategy is enabled, but another tool has since put back the UNet's earlier forward: call dato.enable(pipe, strategy) "
                "again, after that tool, or dato.disable(pipe)"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before_call(self, *_: Any) -> None:
        """Before each call of the UNet: `require_reachable`, and expect the call here."""
        self.require_reachable()
        self._expected.add(threading.get_ident())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after_call(self, *_: Any) -> None:
        """After each call of the UNet: raise RuntimeError where it never came here, as only a forward of another tool can bring about."""
        if threading.get_ident() in self._expected:
            self._expected.discard(threading.get_ident())
            raise RuntimeError(
                f"the strategy is enabled, but the call never came to it: another tool has wrapped the UNet's forward ({described(self.unet)}) and answers "
                "in its place. Call dato.disable(pipe), remove that tool, and call dato.enable(pipe, strategy) again"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The UNet's call, as its strategy entry says."""
        self._expected.discard(threading.get_ident())
        with self._lock:
            if not self.layers.in_place():
                self._follow_modules()
            refuse_other_tools(self.unet, self.layers.modules, wrapped=self.hooked is not None and self.hooked.reached() == "perhaps")
            call = bind_call(self.unet, args, kwargs)
            run = self.runs.at(call["timestep"], tuple(self.layers.pruning))
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
            self.reset_state(self.unet)
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
                with at_hand(self.unet) as offloaded:
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


def _nobody() -> None:
    """The owner of a UNet that was copied without its pipeline."""
