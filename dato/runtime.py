"""One pipeline run's state: which call this is, what is cached, which tokens are pruned."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.hooks import ModelHook
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from dato import pruning, scoring
from dato.strategy import FULL, PATCH, Step, Strategy, StrategyError
from dato.units import Layout, bind_call, run_shallow, unit_output


@dataclass(frozen=True, kw_only=True)
class Options:
    """How tokens are chosen; the defaults are what the paper describes and what its code does by default."""

    diff_source: Literal["noise", "feature"] = "noise"
    """What Eq. 6 compares: the UNet's predictions, or the features of its last output unit."""
    use_score: bool = True
    """False: base tokens are drawn at random in every call (the "w/o DiffScore" of Table 4)."""
    align: scoring.Align = "cond"
    """Whose base tokens the other guidance half takes (Eq. 8); "none" is the "w/o alignment" of Table 3."""
    plan_per: Literal["call", "layer"] = "call"
    """Plan once a call for all layers of one resolution, or anew in every layer."""
    patch: int = PATCH
    """Side of a patch in tokens."""
    max_downsample: int | None = None
    """Prune where latent side / token grid side is at most this; None: the layers of the finest grid only."""
    score_noise: float = 0.0
    """Standard deviation of noise added to DiffScore, in units of the score's own."""
    seed: int = 0
    """Seeds the private generator behind every random choice; the global generator is never touched."""

    def __post_init__(self) -> None:
        for name, allowed in (("diff_source", ("noise", "feature")), ("align", ("cond", "uncond", "none")), ("plan_per", ("call", "layer"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(map(repr, allowed))}")
        if self.patch < PATCH:
            raise ValueError(f"patch is {self.patch}; allowed are integers from {PATCH}: a prune ratio may reach 1 - 1/{PATCH}^2")


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        strategy: The strategy it followed.
        calls_by_depth: UNet calls made at each cache depth.
        tokens_pruned: Tokens skipped, by self-attention layer, summed over the calls and over the batch.
        layers: The self-attention layers that prune.
        finished: Whether the run came to its last call.
    """

    strategy: Strategy
    layers: tuple[str, ...]
    calls_by_depth: Counter[int] = field(default_factory=Counter)
    tokens_pruned: Counter[str] = field(default_factory=Counter)
    finished: bool = False


def entry_of_call(call: int, calls: int, all_calls: int, steps: int) -> int:
    """The strategy entry that governs a UNet call.

    A scheduler makes as many calls as the strategy has entries, or one more (PNDM repeats its second). A run that starts
    late, as image-to-image does, follows the last entries.

    Args:
        call: Which call of the run this is, from 0.
        calls: Calls of this run.
        all_calls: Calls of a whole run of this scheduler.
        steps: Entries of the strategy.
    """
    extra = all_calls - steps
    if extra not in (0, 1):
        raise StrategyError(
            f"the strategy has {steps} steps, but the scheduler makes {all_calls} calls; allowed are {steps} or {steps + 1}: "
            f"run with num_inference_steps={steps}, or use strategy.resample({all_calls})"
        )
    return max(0, all_calls - calls + call - extra)


class Runtime(ModelHook):
    """Runs a UNet by a strategy: the state of one pipeline, reset at every run."""

    _is_stateful = True

    def __init__(self, pipe: Any, layout: Layout, strategy: Strategy, options: Options) -> None:
        super().__init__()
        self.pipe, self.layout, self.strategy, self.options = pipe, layout, strategy, options
        shallow = {s.cache_depth for s in strategy} - {0, FULL}
        if shallow and max(shallow) >= len(layout):
            raise StrategyError(
                f"cache_depth {max(shallow)} is beyond this UNet, which has {len(layout)} units; allowed are 0 to "
                f"{len(layout) - 1}, or {FULL} to compute everything"
            )
        layers = layout.self_attentions()
        finest = min((d for _, d in layers.values()), default=1)
        limit = options.max_downsample or finest
        self.layers = {name: found for name, found in layers.items() if found[1] <= limit}
        self.captured = {layout.outputs[d].last: d for d in shallow}
        self.report: RunReport | None = None
        self._timesteps: torch.Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop every tensor of a run."""
        self.cached: dict[int, torch.Tensor] = {}
        self.prediction: torch.Tensor | None = None
        self.compared: deque[torch.Tensor] = deque(maxlen=2)
        self.step = Step(FULL)
        self.plans: dict[int, pruning.PrunePlan] = {}
        self.size = (0, 0)
        self.score: torch.Tensor | None = None

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the run; diffusers calls this when asked to reset stateful hooks."""
        self._forget()
        self._timesteps = None
        return module

    # -- one call of the UNet ------------------------------------------------------------------------------------------

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The UNet's call, at the depth and ratio of its strategy entry."""
        timesteps = self.pipe.scheduler.timesteps
        if timesteps is not self._timesteps or self.call >= self.calls:
            self._begin(timesteps)
        call = bind_call(self.layout.unet, args, kwargs)
        entry = self.strategy[entry_of_call(self.call, self.calls, len(timesteps), len(self.strategy))]
        depth = entry.cache_depth
        # A d = 0 entry prunes nothing, also where it governs a call that must be full: call 0 has nothing cached.
        self.step = Step(FULL if self.call == 0 else depth, entry.prune_ratio if depth else 0.0)
        self.plans, self.score = {}, None
        self.size = call["sample"].shape[-2:]
        self._follow_guidance(len(call["sample"]))
        if self.step.cache_depth == FULL:
            prediction = unit_output(self.fn_ref.original_forward(*args, **kwargs))
        elif self.step.cache_depth == 0:
            assert self.prediction is not None
            prediction = self.prediction
        else:
            prediction = run_shallow(self.layout, self.step.cache_depth, self.cached[self.step.cache_depth], call)
        if self.step.cache_depth:
            self.prediction = prediction
            if self.options.diff_source == "noise":
                self.compared.append(prediction)
        assert self.report is not None
        self.report.calls_by_depth[self.step.cache_depth] += 1
        self.call += 1
        if self.call == self.calls:
            self.report.finished = True
            self._forget()
        return UNet2DConditionOutput(sample=prediction) if call["return_dict"] else (prediction,)

    def _begin(self, timesteps: torch.Tensor) -> None:
        """Start a run. Every scheduler makes a new `timesteps` tensor in `set_timesteps`, so its identity marks a run."""
        self._forget()
        self._timesteps = timesteps
        calls = getattr(self.pipe, "num_timesteps", None) or len(timesteps)
        entry_of_call(0, calls, len(timesteps), len(self.strategy))
        self.call, self.calls = 0, calls
        self.generator = torch.Generator().manual_seed(self.options.seed)
        self.report = RunReport(self.strategy, tuple(self.layers))

    def _follow_guidance(self, batch: int) -> None:
        """When guidance is switched off within a run, the batch loses its first half, the unconditional one."""
        if self.prediction is None or len(self.prediction) == batch:
            return
        if len(self.prediction) != 2 * batch:
            raise ValueError(f"the batch changed from {len(self.prediction)} to {batch} within a run; start a new run for another batch")
        self.prediction = self.prediction.chunk(2)[1]
        self.cached = {d: x.chunk(2)[1] for d, x in self.cached.items()}
        self.compared = deque((x.chunk(2)[1] for x in self.compared), maxlen=2)

    # -- what the hooks on the layers ask ------------------------------------------------------------------------------

    def capture(self, depth: int, output: Any) -> None:
        """Keep the output of output unit `depth`, which calls at that depth start from."""
        self.cached[depth] = unit_output(output).clone()  # FreeU scales its input in place

    def capture_feature(self, output: Any) -> None:
        """Keep the last output unit's features for DiffScore."""
        self.compared.append(unit_output(output))

    def plan(self, name: str, downsample: int, tokens: torch.Tensor) -> pruning.PrunePlan | None:
        """The plan of one layer in this call, or None where nothing is pruned."""
        num_prune = math.floor(self.step.prune_ratio * tokens.shape[1] + 1e-9)
        if num_prune == 0 or self.report is None:
            return None
        found = self.plans.get(downsample) if self.options.plan_per == "call" else None
        if found is None:
            found = pruning.plan(tokens, self._base_tokens(downsample, tokens), num_prune)
            self.plans[downsample] = found
        self.report.tokens_pruned[name] += num_prune * len(tokens)
        return found

    def _base_tokens(self, downsample: int, tokens: torch.Tensor) -> torch.Tensor:
        batch, total, _ = tokens.shape
        height, width = self.size
        for _ in range(downsample.bit_length() - 1):
            height, width = (height + 1) // 2, (width + 1) // 2
        if height * width != total:
            raise ValueError(f"a {self.size[0]} x {self.size[1]} latent has no {total} tokens at downsample {downsample}; use prune_ratio 0")
        scored = self.options.use_score and len(self.compared) == 2
        if scored:
            if self.score is None:
                self.score = scoring.diff_score(self.compared[1], self.compared[0])
            score = scoring.pool_score(self.score, self.size, (height, width))
            if self.options.score_noise:
                noise = self._draw(total, torch.randn).to(score)
                score = score + self.options.score_noise * score.std(1, keepdim=True) * noise
        else:
            # One draw for the whole batch: an image's result does not depend on its neighbours.
            score = self._draw(total, torch.rand).to(tokens.device).expand(batch, -1)
        base = scoring.base_tokens(score, height, width, min(self.options.patch, height, width))
        guided = bool(getattr(self.pipe, "do_classifier_free_guidance", False))
        return scoring.align(base, self.options.align) if guided and scored else base

    def _draw(self, count: int, draw: Any) -> torch.Tensor:
        return draw(1, count, generator=self.generator)
