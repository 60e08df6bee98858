"""One pipeline run's state: which call this is, what is cached, which tokens are pruned."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from dato import pruning, scoring, summary
from dato.options import Options, chosen_layers, patch_side, token_grid
from dato.position import Position, value_of
from dato.schedule import Work, check_steps, works
from dato.split import CachedShare
from dato.strategy import FULL, Step, Strategy, StrategyError
from dato.units import Layout, bind_call, run_shallow, share_of, unit_output


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        strategy: The strategy it followed.
        calls_by_depth: UNet calls made at each cache depth.
        tokens_pruned: Tokens skipped, by self-attention layer, summed over the calls and over the batch.
        layers: The self-attention layers that prune.
        controls_skipped: ControlNet calls that were not made.
        finished: Whether the run came to its last call.
    """

    strategy: Strategy
    layers: tuple[str, ...]
    calls_by_depth: Counter[int] = field(default_factory=Counter)
    tokens_pruned: Counter[str] = field(default_factory=Counter)
    controls_skipped: int = 0
    finished: bool = False

    @property
    def calls(self) -> int:
        """UNet calls so far, replayed ones included."""
        return sum(self.calls_by_depth.values())

    def __str__(self) -> str:
        return summary.report_lines(self)

    def summary(self) -> str:
        """A table of UNet calls by depth, of tokens pruned by layer, and of the strategy's steps."""
        return summary.report_table(self)


class Runtime(ModelHook):
    """Runs a UNet by a strategy: the state of one pipeline, reset at every run."""

    _is_stateful = True

    def __init__(self, pipe: Any, layout: Layout, strategy: Strategy, options: Options) -> None:
        super().__init__()
        self.pipe, self.layout, self.strategy, self.options = pipe, layout, strategy, options
        for step in strategy:
            layout.require_depth(step.cache_depth)
        self.undo: list[Callable[[], None]] = []
        self.forward: Any = None
        self.report: RunReport | None = None
        self._actions: dict[tuple[Step, bool], Callable[..., torch.Tensor]] = {}
        self.prepare()

    def prepare(self) -> None:
        """Read which modules matter now, and forget every run."""
        # Modules may have been exchanged since the last run, as adding a LoRA adapter to a convolution does.
        self.layout = Layout.of(self.layout.unet)
        self.layers = chosen_layers(self.layout, self.options, any(s.cache_depth and s.prune_ratio for s in self.strategy))
        self.captured = {self.layout.outputs[d].last: d for d in {s.cache_depth for s in self.strategy} - {0, FULL}}
        self.report = None
        self.reset_state(self.layout.unet)

    def _forget(self) -> None:
        """Drop every tensor of a run."""
        self.cached: dict[int, torch.Tensor] = {}
        self.shares: dict[int, CachedShare] = {}
        self.prediction: torch.Tensor | None = None
        self.compared: deque[torch.Tensor] = deque(maxlen=2)
        self.step = Step(FULL)
        self._start_call(None)

    def _start_call(self, bases: dict[int, torch.Tensor] | None) -> None:
        self.bases = bases or {}
        self.plans: dict[int, pruning.PrunePlan] = {}
        self.captures: dict[int, torch.Tensor] = {}
        self.features: list[torch.Tensor] = []
        self.pruned: list[tuple[str, int]] = []

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the run; diffusers calls this when asked to reset stateful hooks."""
        self._forget()
        self.position = Position()
        return module

    # -- one call of the UNet ------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The UNet's call, at the depth and ratio of its strategy entry."""
        call = bind_call(self.layout.unet, args, kwargs)
        self.step = self.coming_step(call["timestep"])
        assert self.report is not None
        sample = call["sample"]
        self._follow_guidance(len(sample))
        depth = self.step.cache_depth
        if depth == 0:
            assert self.prediction is not None
            prediction = self.prediction
        else:
            self._start_call(self._base_tokens(len(sample), sample.shape[-2:], sample.device))
            self._share_work(depth)
            prediction = self._action()(args, kwargs, call)
            if self.options.compile in ("reduce-overhead", "max-autotune"):
                # The next replay of a CUDA graph overwrites what this one returned.
                prediction = prediction.clone()
                self.captures = {d: x.clone() for d, x in self.captures.items()}
                self.features = [x.clone() for x in self.features]
            self.cached.update(self.captures)
            for captured in self.captures:
                self.shares.pop(captured, None)
            self.compared.append(self.features[-1] if self.options.diff_source == "feature" else prediction)
            for name, count in self.pruned:
                self.report.tokens_pruned[name] += count
            self._start_call(None)
            self.prediction = prediction
        self.report.calls_by_depth[depth] += 1
        self.position.next += 1
        if self.position.next >= self.position.end:
            self.report.finished = True
            self._forget()
        return UNet2DConditionOutput(sample=prediction) if call["return_dict"] else (prediction,)

    def coming_step(self, timestep: torch.Tensor | float) -> Step:
        """What the call at `timestep` does; starts a run where one begins. Asking again gives the same answer.

        Raises:
            ValueError: The call belongs to no run of the enabled pipeline.
            StrategyError: The run has another number of steps than the strategy.
        """
        place = self.position.coming(self.pipe.scheduler.timesteps, timestep)
        if place is None:
            self._begin(timestep)
        else:
            self.position.next = place
        return self._work().step

    def replays(self, timestep: torch.Tensor | float) -> bool:
        """Whether the call at `timestep` is the next one of the run and will replay a prediction. Changes nothing."""
        place = self.position.coming(self.pipe.scheduler.timesteps, timestep)
        return place is not None and self._works[place - self.position.first].step.cache_depth == 0

    def _work(self) -> Work:
        return self._works[self.position.next - self.position.first]

    def _begin(self, timestep: torch.Tensor | float) -> None:
        """Start a run at the place of its first timestep; a call that is refused leaves the run before it as it was."""
        scheduler = self.pipe.scheduler
        refuse_compiled(self.pipe.unet)
        begun = self.position.begun(scheduler.timesteps, timestep)
        if begun is None:
            raise ValueError(self._stranger(timestep))
        try:
            order = getattr(scheduler, "order", 1)
            check_steps(len(self.strategy), begun.values, getattr(scheduler, "num_inference_steps", None), order)
            found = works(self.strategy, len(begun.values), order, begun.first)
        except StrategyError:
            if begun.own:
                raise
            raise ValueError(self._stranger(timestep)) from None
        # A base model before a refiner makes only the first of its sampler's calls, and its pipeline knows how many.
        if begun.own and getattr(self.pipe, "denoising_end", None) is not None:
            begun.end = min(begun.end, begun.first + self.pipe.num_timesteps)
        self._forget()
        self.position, self._works = begun, found
        self.layout = Layout.of(self.layout.unet)  # a LoRA adapter may have exchanged modules since the last run
        self.generator = torch.Generator().manual_seed(self.options.seed)
        self.report = RunReport(self.strategy, tuple(self.layers))

    def _stranger(self, timestep: torch.Tensor | float) -> str:
        name, p = type(self.pipe).__name__, self.position
        if p.next < p.end and p.timesteps is self.pipe.scheduler.timesteps:
            expected = f"comes to {p.values[p.next]:g} next (call {p.next - p.first + 1} of {p.end - p.first})"
        else:
            expected = f"has {len(self.strategy)} steps and does not begin there"
        return (
            f"this UNet is called at timestep {value_of(timestep):g}, but the run of the enabled {name} {expected}: a pipeline or sampler other "
            f"than the enabled one calls it, or it is called more than once in a step. Call dato.disable on the enabled {name} before another "
            "one uses its UNet, or dato.enable on the one that runs; a loop of your own calls scheduler.set_timesteps, and then the UNet once "
            "for each timestep"
        )

    def _follow_guidance(self, batch: int) -> None:
        """When guidance is switched off within a run, the batch loses its first half, the unconditional one."""
        if self.prediction is None or len(self.prediction) == batch:
            return
        if len(self.prediction) != 2 * batch:
            raise ValueError(f"the batch changed from {len(self.prediction)} to {batch} within a run; start a new run for another batch")
        self.prediction = self.prediction.chunk(2)[1]
        self.cached, self.shares = {d: x.chunk(2)[1] for d, x in self.cached.items()}, {}
        self.compared = deque((x.chunk(2)[1] for x in self.compared), maxlen=2)

    def _action(self) -> Callable[..., torch.Tensor]:
        """What computes this call's step: one function, or one graph for each distinct step."""
        if self.options.compile is None:
            return self._compute
        torch.compiler.cudagraph_mark_step_begin()
        key = (self.step, bool(self.bases))
        if key not in self._actions:
            # Apart from each other: PyTorch counts recompilations of one function, and this one has a graph for each key.
            settings = {"mode": self.options.compile, "dynamic": False, "isolate_recompiles": True}
            self._actions[key] = torch.compile(self._compute, **settings)  # type: ignore[call-overload]
        return self._actions[key]

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: dict[str, Any]) -> torch.Tensor:
        depth = self.step.cache_depth
        if depth == FULL:
            return unit_output(self.fn_ref.original_forward(*args, **kwargs))
        return run_shallow(self.layout, depth, self.cached[depth], call, self.shares.get(depth))

    def _share_work(self, depth: int) -> None:
        """Do once what this and later calls at `depth` have in common; a single call gains nothing by it."""
        planned = self._work().share == "made"
        if depth == FULL or depth in self.shares or not (self.options.compile or planned):
            return
        share = share_of(self.layout, depth, self.cached[depth])
        if share is not None:
            self.shares[depth] = share

    def _base_tokens(self, batch: int, size: Sequence[int], device: torch.device) -> dict[int, torch.Tensor]:
        """One base token per patch for each resolution at which this call prunes: (B, N_base) by downsample."""
        depth = self.step.cache_depth
        if not self.step.prune_ratio:
            return {}
        depths = len(self.layout) if depth == FULL else depth
        units = (*self.layout.inputs[:depths], *self.layout.outputs[:depths])
        wanted = {u.downsample for u in units if u.attention is not None} & {d for _, d in self.layers.values()}
        scored = self.options.use_score and len(self.compared) == 2
        guided = bool(getattr(self.pipe, "do_classifier_free_guidance", False))
        latent = (int(size[0]), int(size[1]))
        score = scoring.diff_score(self.compared[1], self.compared[0]) if scored and wanted else None
        bases = {}
        for downsample in sorted(wanted):
            height, width = token_grid(latent, downsample)
            patch = patch_side(self.options, height, width)
            if patch is None:
                continue
            if score is not None:
                grid = tuple(self.compared[0].shape[-2:])
                pooled = scoring.pool_score(score, (grid[0], grid[1]), (height, width))
                if self.options.score_noise:
                    noise = self._draw(height * width, torch.randn, device).to(pooled)
                    pooled = pooled + self.options.score_noise * pooled.std(1, keepdim=True) * noise
            else:
                # One draw for the whole batch: an image's result does not depend on its neighbours.
                pooled = self._draw(height * width, torch.rand, device).expand(batch, -1)
            base = scoring.base_tokens(pooled, height, width, patch)
            bases[downsample] = scoring.align(base, self.options.align) if guided and score is not None else base
        return bases

    def _draw(self, count: int, draw: Any, device: torch.device) -> torch.Tensor:
        """(1, count) random numbers, the same on every device."""
        drawn = draw(1, count, generator=self.generator)
        # From pinned memory a copy waits for nothing; from any other it waits for all that the GPU still has to do.
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)

    # -- what the hooks on the layers ask ------------------------------------------------------------------------------

    def capture(self, depth: int, output: Any) -> None:
        """Keep the output of output unit `depth`, which calls at that depth start from."""
        self.captures[depth] = unit_output(output).clone()  # FreeU scales its input in place

    def capture_feature(self, output: Any) -> None:
        """Keep the last output unit's features for DiffScore."""
        self.features.append(unit_output(output))

    def plan(self, name: str, downsample: int, tokens: torch.Tensor) -> pruning.PrunePlan | None:
        """The plan of one layer in this call, or None where nothing is pruned."""
        batch, total, _ = tokens.shape
        num_prune = math.floor(self.step.prune_ratio * total + 1e-9)
        base = self.bases.get(downsample)
        if num_prune == 0 or base is None:
            return None
        found = self.plans.get(downsample) if self.options.plan_per == "call" else None
        if found is None:
            found = pruning.plan(tokens, base, num_prune)
            self.plans[downsample] = found
        self.pruned.append((name, num_prune * batch))
        return found


def refuse_compiled(unet: Any) -> None:
    """Raise ValueError for a UNet that is compiled as a whole or in regions."""
    if hasattr(unet, "_orig_mod") or any(m._compiled_call_impl is not None for m in unet.modules()):
        raise ValueError(
            "this UNet is compiled, and a compiled whole cannot follow a strategy from step to step: give the pipeline its plain "
            'UNet and let dato compile each action apart, dato.enable(pipe, strategy, dato.Options(compile="default"))'
        )
