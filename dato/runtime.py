"""Runs a UNet by a strategy: which run and call this is, what it computes, what is kept for the next."""

from __future__ import annotations

import copy
import math
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from diffusers.hooks import ModelHook
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from dato import pruning
from dato.attention import prune_layer
from dato.choosing import base_tokens
from dato.hooks import HookedModel, Place, in_place, places_of
from dato.offload import AtHand, at_hand
from dato.options import Options, chosen_layers, token_grid
from dato.refusals import refuse_compiled, token_mismatch
from dato.report import RunReport
from dato.run_state import CallState, Kind, RunState
from dato.running import reference
from dato.runs import Runs
from dato.split import CachedShare
from dato.strategy import FULL, Step, Strategy
from dato.units import Layout, bind_call, run_shallow, share_of, share_still_holds, unit_output

__all__ = ["RunReport", "Runtime", "refuse_compiled"]


class Runtime(ModelHook):
    """Runs a UNet by a strategy, whichever pipeline calls it.

    Args:
        pipe: The pipeline that it is enabled on: its owner.
        layout: The UNet's units.
        strategy: One entry per sampler step.
        options: How tokens are chosen.
    """

    _is_stateful = True

    def __init__(self, pipe: Any, layout: Layout, strategy: Strategy, options: Options) -> None:
        super().__init__()
        self.owner, self.layout, self.strategy, self.options = reference(pipe), layout, strategy, options
        for step in strategy:
            layout.require_depth(step.cache_depth)
        self.hooked: HookedModel | None = None
        self.undo: list[Callable[[], None]] = []
        self.undo_layers: list[Callable[[], None]] = []
        self.places: list[Place] = []
        self._no_run()
        self.prepare()

    def _no_run(self) -> None:
        self.lock = threading.RLock()  # one call at a time: what a call keeps is the UNet's, and threads may share it
        self.runs = Runs(self.owner, self.layout.unet, self.strategy, self.options)
        self.last: RunState | None = None
        self.call: CallState | None = None
        self._actions: dict[tuple[Step, bool], Callable[..., torch.Tensor]] = {}

    def prepare(self) -> None:
        """Read which modules matter now, and forget every run."""
        self._read_modules()
        self.reset_state(self.layout.unet)

    def _read_modules(self) -> None:
        # Modules may have been exchanged since the last look, as adding a LoRA adapter to a convolution does.
        self.layout = Layout.of(self.layout.unet)
        self.layers = chosen_layers(self.layout, self.options, any(s.cache_depth and s.prune_ratio for s in self.strategy))
        self.captured = {self.layout.outputs[d].last: d for d in {s.cache_depth for s in self.strategy} - {0, FULL}}

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget every run; diffusers calls this when asked to reset stateful hooks."""
        self.runs = Runs(self.owner, self.layout.unet, self.strategy, self.options)
        self.last = None
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        """For a deep copy of the UNet: the same strategy, without any run, owned by the copy of the pipeline where that is copied too."""
        new = memo[id(self)] = type(self).__new__(type(self))
        ModelHook.__init__(new)
        owner = memo.get(id(self.owner()))
        new.owner = reference(owner) if owner is not None else _nobody
        new.strategy, new.options = self.strategy, self.options
        for name in ("fn_ref", "layout", "layers", "captured", "hooked", "undo", "undo_layers", "places"):
            setattr(new, name, copy.deepcopy(getattr(self, name), memo))
        new._no_run()
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "an accelerated pipeline cannot be pickled: call dato.disable(pipe) before, and dato.enable(pipe, strategy) on what is loaded. "
            "A copy.deepcopy of it works"
        )

    @property
    def report(self) -> RunReport | None:
        """Of the run that called the UNet last."""
        return self.last.report if self.last is not None else None

    @property
    def cached(self) -> dict[int, torch.Tensor]:
        """What the last run keeps: output of output unit d, by depth d."""
        return self.last.cached if self.last is not None else {}

    @property
    def shares(self) -> dict[int, CachedShare]:
        """What the last run keeps: what `cached` adds to the resnet that it enters, by depth."""
        return self.last.shares if self.last is not None else {}

    @property
    def prediction(self) -> torch.Tensor | None:
        """What the last run keeps: its last prediction."""
        return self.last.prediction if self.last is not None else None

    @property
    def compared(self) -> deque[torch.Tensor]:
        """What the last run keeps: the outputs that DiffScore compares."""
        return self.last.compared if self.last is not None else deque()

    # -- one call of the UNet ------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def require_reachable(self, *_: Any) -> None:
        """Before each call of the UNet: raise RuntimeError where another tool took the strategy away, so that no run is plain without a word."""
        if self.hooked is not None and not self.hooked.reachable():
            raise RuntimeError(
                "the strategy is enabled, but another tool has since put back the UNet's earlier forward: call dato.enable(pipe, strategy) "
                "again, after that tool, or dato.disable(pipe)"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The UNet's call, at the depth and ratio of its strategy entry."""
        with self.lock:
            if not in_place(self.places):
                self.refresh()
            call = bind_call(self.layout.unet, args, kwargs)
            run = self.last = self.runs.at(call["timestep"], tuple(self.layers))
            sample = call["sample"]
            run.follow(Kind.of(sample, run.guided()))
            step = run.possible(run.work.step)
            if step.cache_depth == 0:
                assert run.prediction is not None
            else:
                run.prediction = self._computed(run, step, args, kwargs, call)
            prediction = run.prediction
            run.report.calls_by_depth[step.cache_depth] += 1
            run.position.next += 1
            if run.position.next >= run.position.end:
                run.report.finished = True
                run.forget()
            return UNet2DConditionOutput(sample=prediction) if call["return_dict"] else (prediction,)

    def _computed(self, run: RunState, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], call: dict[str, Any]) -> torch.Tensor:
        """The prediction of a call that computes something, with what later calls reuse of it kept."""
        assert run.kind is not None
        depth, outer = step.cache_depth, self.call
        now = self.call = CallState(step, run.kind)
        try:
            now.bases = self._base_tokens(run, step)
            if depth == FULL:
                prediction = self._action(now)(depth, None, None, None, args, kwargs, call)
            else:
                share = self._share(run, depth)
                with at_hand(self.layout.unet) as offloaded:
                    prediction = self._action(now)(depth, run.cached[depth], share, offloaded, args, kwargs, call)
        finally:
            self.call = outer
        if self.options.compile in ("reduce-overhead", "max-autotune"):
            # The next replay of a CUDA graph overwrites what this one returned.
            prediction = prediction.clone()
            now.captures = {d: x.clone() for d, x in now.captures.items()}
            now.features = [x.clone() for x in now.features]
        run.cached.update(now.captures)
        for captured in now.captures:
            run.shares.pop(captured, None)
        run.compared.append(now.features[-1] if self.options.diff_source == "feature" else prediction)
        for name, count in now.pruned:
            run.report.tokens_pruned[name] += count
        return prediction

    def refresh(self) -> None:
        """Follow modules that were exchanged, within a run too: what was computed before is still what the method reuses."""
        units = len(self.layout)
        self.unhook_layers()
        self._read_modules()
        if len(self.layout) != units:
            self.prepare()
        self.hook_layers()

    def unhook_layers(self) -> None:
        """Undo `hook_layers`; a second time nothing."""
        undos, self.undo_layers = self.undo_layers, []
        for undo in undos:
            undo()

    def hook_layers(self) -> None:
        """Hook the layers that keep or prune something, and note where all that a call uses hangs."""
        undo = self.undo_layers
        for module, depth in self.captured.items():
            undo.append(module.register_forward_hook(partial(self.capture, depth)).remove)
        if self.options.diff_source == "feature":
            undo.append(self.layout.outputs[0].last.register_forward_hook(self.capture_feature).remove)
        for name, (layer, downsample) in self.layers.items():
            undo += [handle.remove for handle in prune_layer(layer, partial(self.plan, name, downsample))]
        self.places = places_of(self.layout.unet, [*self.layout.modules(), *(layer for layer, _ in self.layers.values())])

    def coming_step(self, timestep: torch.Tensor | float) -> Step:
        """What the call at `timestep` does; starts a run where one begins. Asking again gives the same answer.

        Raises:
            ValueError: The call belongs to no run, or to one that cannot follow the strategy.
            StrategyError: The run has another number of steps than the strategy.
        """
        return self.runs.at(timestep, tuple(self.layers)).work.step

    def replays(self, timestep: torch.Tensor | float) -> bool:
        """Whether the call at `timestep` is the next one of a run and is planned to replay a prediction. Changes nothing."""
        run, place = self.runs.going_on(timestep)
        return run is not None and run.works[place - run.position.first].step.cache_depth == 0

    def replaying(self, timestep: torch.Tensor | float, sample: torch.Tensor, halved: bool) -> RunState | None:
        """The run whose coming call at `timestep` will replay a prediction; None where the call computes. Changes nothing.

        Args:
            timestep: Of the call.
            sample: (B, C, h, w), what a ControlNet is given before it.
            halved: Whether that is the conditional half only, as in guess mode.
        """
        run, _ = self.runs.going_on(timestep)
        if run is None or run.prediction is None or not self.replays(timestep):
            return None
        kind = Kind.of(sample, run.guided())
        return run if (kind._replace(batch=2 * kind.batch) if halved and kind.guided else kind) == run.kind else None

    def _action(self, call: CallState) -> Callable[..., torch.Tensor]:
        """What computes this call's step: one function, or one graph for each distinct step."""
        if self.options.compile is None:
            return self._compute
        torch.compiler.cudagraph_mark_step_begin()
        key = (call.step, bool(call.bases))
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
            return unit_output(self.fn_ref.original_forward(*args, **kwargs))
        return run_shallow(self.layout, depth, cached, call, share, offloaded)

    def _share(self, run: RunState, depth: int) -> CachedShare | None:
        """What this and later calls at `depth` have in common, done once; a single call gains nothing by it."""
        share = run.shares.get(depth)
        if share is not None and not share_still_holds(self.layout, depth, share):
            share = None
            del run.shares[depth]
        cached = run.cached[depth]
        if share is None and (self.options.compile or run.work.share == "made") and (cached.device.type == "cpu" or not run.attended):
            share = share_of(self.layout, depth, cached)
            if share is not None:
                run.shares[depth] = share
        return share

    def _base_tokens(self, run: RunState, step: Step) -> dict[int, torch.Tensor]:
        """One base token per patch for each resolution at which this call prunes: (B, N_base) by downsample."""
        if not step.prune_ratio:
            return {}
        assert run.kind is not None
        depths = len(self.layout) if step.cache_depth == FULL else step.cache_depth
        units = (*self.layout.inputs[:depths], *self.layout.outputs[:depths])
        wanted = {u.downsample for u in units if u.attention is not None} & {d for _, d in self.layers.values()}
        return base_tokens(wanted, run.kind, list(run.compared), self.options, run.generator)

    # -- what the hooks on the layers ask ------------------------------------------------------------------------------

    def capture(self, depth: int, _module: nn.Module, _args: Any, output: Any) -> None:
        """Keep the output of output unit `depth`, which calls at that depth start from."""
        if self.call is not None:
            self.call.captures[depth] = unit_output(output).clone()  # FreeU scales its input in place

    def capture_feature(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Keep the last output unit's features for DiffScore."""
        if self.call is not None:
            self.call.features.append(unit_output(output))

    def plan(self, name: str, downsample: int, tokens: torch.Tensor) -> pruning.PrunePlan | None:
        """The plan of one layer in this call, or None where nothing is pruned.

        Raises:
            ValueError: The layer is given other tokens than its grid has.
        """
        call = self.call
        if call is None:
            return None
        batch, total, _ = tokens.shape
        base = call.bases.get(downsample)
        if base is None:
            return None
        height, width = token_grid(call.kind.size, downsample)
        if total != height * width or batch != call.kind.batch:
            raise ValueError(token_mismatch(self.layout.unet, name, (batch, total), (call.kind.batch, height * width), (height, width)))
        num_prune = math.floor(call.step.prune_ratio * total + 1e-9)
        if num_prune == 0:
            return None
        found = call.plans.get(downsample) if self.options.plan_per == "call" else None
        if found is None:
            found = pruning.plan(tokens, base, num_prune)
            call.plans[downsample] = found
        call.pruned.append((name, num_prune * batch))
        return found


def _nobody() -> None:
    """The owner of a UNet that was copied without its pipeline."""
