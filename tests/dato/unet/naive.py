"""The reference for what a run does, call by call: nothing clever, and what a user's callback changes.

Each half of a guided batch is a call of its own, of the whole UNet, and has histories of its own. A shallow call is one in which a hook
puts what is reused in the place of what its unit computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dato import FULL, Options, Step, Strategy, pruning, scoring
from dato.call_arguments import bind_call
from dato.unet.attention import prune_layer
from dato.unet.units import Layout, unit_output
from tests.dato.conftest import run

Change = Callable[[Any], None]


class Half:
    """What the calls of one half of a guided batch, or of a batch that is not guided, have computed."""

    def __init__(self) -> None:
        self.values: dict[int, list[tuple[float, torch.Tensor]]] = {}
        self.compared: list[torch.Tensor] = []

    def note(self, depth: int, t: float, value: torch.Tensor) -> None:
        self.values[depth] = [(s, v) for s, v in self.values.get(depth, []) if s != t] + [(t, value.clone())]

    def reused(self, depth: int, t: float, order: int) -> torch.Tensor:
        points = self.values[depth][-order - 1 :]
        total = torch.zeros_like(points[0][1])
        for i, (s, value) in enumerate(points):
            weight = 1.0
            for j, (other, _) in enumerate(points):
                weight *= (t - other) / (s - other) if i != j else 1.0
            total = total + weight * value
        return total


class Naive:
    """A UNet's forward by a strategy; `calls` are its steps, call by call."""

    def __init__(self, pipe: Any, calls: Sequence[Step], options: Options) -> None:
        self.pipe, self.calls, self.options = pipe, list(calls), options
        self.unet, self.original = pipe.unet, pipe.unet.forward
        self.halves: dict[str, Half] = {}
        self.generator = torch.Generator().manual_seed(options.seed)
        self.given: tuple[Any, ...] = ()
        self.made: list[Step] = []
        pipe.unet.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = bind_call(self.unet, args, kwargs)
        guided = self.pipe.do_classifier_free_guidance
        shape = (*call["sample"].shape, guided)
        if self.given == (2 * shape[0], *shape[1:4], True) and not guided:  # switched off: the conditional half is the second
            self.halves = {"all": self.halves["cond"]}
        elif self.given != shape:
            self.halves = {}
        self.given = shape
        step, t = self.calls[len(self.made)], float(call["timestep"])
        guidance = step.guidance if guided else "both"
        names = ("all",) if not guided else ("uncond", "cond") if guidance == "both" else ("cond",)
        halves = [self.halves.setdefault(name, Half()) for name in names]
        depth = step.cache_depth if all(step.cache_depth in (FULL, *half.values) for half in halves) else FULL
        if depth == 0:
            found = [half.reused(0, t, step.order) for half in halves]
        else:
            ratio = step.prune_ratio if step.cache_depth else 0.0
            bases = self._bases(halves, call["sample"]) if ratio else [None] * len(halves)
            found = [self._compute(name, depth, ratio, base, step.order, t, call) for name, base in zip(names, bases, strict=True)]
        self.made.append(Step(depth, 0.0, guidance))
        return (torch.cat(found * 2 if names == ("cond",) else found),)

    def _compute(self, name: str, depth: int, ratio: float, base: torch.Tensor | None, order: int, t: float, call: dict[str, Any]) -> torch.Tensor:
        layout, half = Layout.of(self.unet), self.halves[name]
        seen: dict[int, torch.Tensor] = {}
        handles = [u.last.register_forward_hook(lambda _m, _a, out, d=d: seen.__setitem__(d, unit_output(out).clone())) for d, u in enumerate(layout.outputs[: min(depth, len(layout))])]
        if depth != FULL:
            cached = half.reused(depth, t, order)
            handles.append(layout.outputs[depth].last.register_forward_hook(lambda _m, _a, out: cached.clone() if isinstance(out, torch.Tensor) else (cached.clone(),)))
        plans: list[pruning.PrunePlan] = []

        def planner(tokens: torch.Tensor) -> pruning.PrunePlan | None:
            if not plans or self.options.plan_per == "layer":
                assert base is not None
                plans[:] = [pruning.plan(tokens, base, int(ratio * tokens.shape[1] + 1e-9))]
            return plans[0]

        for layer in _finest(layout, depth) if base is not None else ():
            handles += prune_layer(layer, planner)
        given = {k: v for k, v in call.items() if k != "self"} if name == "all" else _half(call, int(name == "cond"))
        prediction = self.original(**{**given, "return_dict": False})[0]
        for handle in handles:
            handle.remove()
        half.note(0, t, prediction)
        for d, value in seen.items():
            half.note(d, t, value) if d else None
        half.compared.append(seen[0] if self.options.diff_source == "feature" else prediction.clone())
        return prediction

    def _bases(self, halves: list[Half], sample: torch.Tensor) -> list[torch.Tensor]:
        """Base tokens of each half, on the finest grid of self-attention."""
        down = min(d for _, d in Layout.of(self.unet).self_attentions().values())
        size = (sample.shape[2], sample.shape[3])
        height, width = (-(-side // down) for side in size)
        if not all(len(half.compared) >= 2 for half in halves):
            drawn = torch.rand(1, height * width, generator=self.generator).expand(len(sample) // (1 if "all" in self.halves else 2), -1)
            return [scoring.base_tokens(drawn, height, width, 2) for _ in halves]
        scores = [scoring.pool_score(scoring.diff_score(h.compared[-1], h.compared[-2]), size, (height, width)) for h in halves]
        found = [scoring.base_tokens(score, height, width, 2) for score in scores]
        align = {"cond": found[-1], "uncond": found[0], "none": None}[self.options.align]
        return found if align is None else [align] * len(halves)


def _finest(layout: Layout, depth: int) -> list[Any]:
    """The self-attention layers on the finest grid that has some, of the units that a call at a depth runs."""
    down = min(d for _, d in layout.self_attentions().values())
    units = [u for u in (*layout.inputs[:depth], *layout.outputs[:depth]) if u.attention is not None and u.downsample == down]
    return [block.attn1 for u in units for block in u.attention.transformer_blocks]  # type: ignore[union-attr]


def _half(call: dict[str, Any], which: int) -> dict[str, Any]:
    """The arguments of one half's call: each that has rows of a batch, by its name."""

    def of(value: Any) -> Any:
        return value.chunk(2)[which] if isinstance(value, torch.Tensor) else None if value is None else type(value)(of(v) for v in value)

    added = call["added_cond_kwargs"]
    timestep = call["timestep"]
    return {
        **{k: of(call[k]) for k in ("sample", "encoder_hidden_states", "down_block_additional_residuals", "mid_block_additional_residual", "down_intrablock_additional_residuals")},
        "timestep": of(timestep) if isinstance(timestep, torch.Tensor) and timestep.ndim and len(timestep) > 1 else timestep,
        "added_cond_kwargs": {k: of(v) for k, v in added.items()} if added is not None else None,
        "cross_attention_kwargs": call["cross_attention_kwargs"],
    }


def changing(at: int, change: Change) -> dict[str, Any]:
    def callback(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            change(pipe)
        return kwargs

    return {"callback_on_step_end": callback}


def naive_steps(pipe: Any, calls: Sequence[Step], options: Options | None = None, runs: Callable[..., torch.Tensor] = run, **settings: Any) -> tuple[torch.Tensor, list[Step]]:
    """What a run gives whose calls are these, and of each call the depth and the guidance that it had."""
    reference = Naive(pipe, calls, options or Options())
    result = runs(pipe, **settings)
    del pipe.unet.forward
    return result, reference.made


def naive(pipe: Any, strategy: Strategy, **settings: Any) -> tuple[torch.Tensor, list[int]]:
    """What a run gives that makes one call a step, and the depth of each call."""
    result, made = naive_steps(pipe, strategy.steps, **settings)
    return result, [s.cache_depth for s in made]


def close(a: torch.Tensor, b: torch.Tensor, within: float = 1e-9) -> bool:
    return float((a - b).abs().max()) <= within * float(b.abs().max())
