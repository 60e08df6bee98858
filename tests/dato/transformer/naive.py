"""The reference for what a run of a transformer does: nothing clever. Each half of guidance is a call of the whole transformer of its own.

A block that is left out hands on what it is given, and the last one of these adds what they all added when they were computed last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dato import FULL, Step
from dato.call_arguments import bind_call
from tests.dato.transformer.pipelines import run


class Half:
    """What the calls of one half have computed: by depth the timestep and the residual, or at 0 the prediction."""

    def __init__(self) -> None:
        self.values: dict[int, list[tuple[float, Any]]] = {}

    def note(self, depth: int, t: float, value: Any) -> None:
        self.values[depth] = [*self.values.get(depth, []), (t, value)]

    def reused(self, depth: int, t: float, order: int) -> Any:
        points = self.values[depth][-order - 1 :]
        total = 0.0
        for i, (s, value) in enumerate(points):
            weight = 1.0
            for j, (other, _) in enumerate(points):
                weight *= (t - other) / (s - other) if i != j else 1.0
            total = total + weight * value
        return total


class Naive:
    """A transformer's forward by steps, one for each sampler step."""

    def __init__(self, pipe: Any, steps: Sequence[Step], guided: bool) -> None:
        self.steps, self.model = list(steps), pipe.transformer
        self.batched = guided and type(self.model).__name__ in ("PixArtTransformer2DModel", "SD3Transformer2DModel")
        self.original = self.model.forward
        self.halves = {"cond": Half(), "uncond": Half()}
        self.times: list[float] = []
        self.first: torch.Tensor | None = None
        self.made: list[tuple[int, int]] = []
        self.blocks = [*self.model.transformer_blocks, *getattr(self.model, "single_transformer_blocks", ())]
        self.model.forward = self.forward
        self.image = 0 if type(self.model).__name__ == "CogView4Transformer2DModel" else 1  # which of what a block of two streams returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = bind_call(self.model, args, kwargs)
        call.pop("self", None)
        t = float(torch.as_tensor(call["timestep"]).flatten()[0])
        second = bool(self.times) and t == self.times[-1] and self.first is not None
        if not second:
            self.times.append(t)
        step = self.steps[len(self.times) - 1]
        if self.batched:  # a batch of both halves
            names = ("uncond", "cond") if step.guidance == "both" else ("cond",)
            found = {name: self._half(name, step, t, _rows(call, name == "cond", len(call["hidden_states"]))) for name in names}
            return (torch.cat([found.get("uncond", found["cond"]), found["cond"]]),)
        if second and step.guidance == "cond":
            assert self.first is not None
            prediction, self.first = self.first, None
        else:
            prediction = self._half("uncond" if second else "cond", step, t, call)
            self.first = None if second else prediction
        return (prediction,)

    def _half(self, name: str, step: Step, t: float, call: dict[str, Any]) -> torch.Tensor:
        half, depth = self.halves[name], step.cache_depth
        if depth != FULL and depth not in half.values:
            depth = FULL
        self.made.append((len(self.times) - 1, depth))
        if depth == 0:
            return half.reused(0, t, step.order)
        computed = len(self.blocks) if depth == FULL else depth
        given: list[torch.Tensor] = []
        residual = None if depth == FULL else half.reused(depth, t, step.order)
        own = []
        for k, block in enumerate(self.blocks):
            own.append(block.forward)
            block.forward = self._block(k, block.forward, computed, residual, given)
        try:
            prediction = self.original(**{**call, "return_dict": False})[0]
        finally:
            for block in self.blocks:
                del block.forward
        for d in range(1, computed):
            half.note(d, t, self.last - given[d])
        half.note(0, t, prediction)
        return prediction

    def _pair(self, image: Any, text: Any) -> tuple[Any, Any]:
        return (image, text) if self.image == 0 else (text, image)

    def _block(self, k: int, forward: Callable[..., Any], computed: int, residual: Any, given: list[torch.Tensor]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            given.append(hidden)
            if k < computed:
                out = forward(*args, **kwargs)
            elif type(self.blocks[k]).__name__ == "BasicTransformerBlock":
                out = hidden
            else:
                out = self._pair(hidden, kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1])
            image = out[self.image] if isinstance(out, tuple) else out
            if k == len(self.blocks) - 1:
                image = image + residual if residual is not None else image
                self.last = image
                out = self._pair(image, out[1 - self.image]) if isinstance(out, tuple) else image
            return out

        return call


def _rows(call: dict[str, Any], cond: bool, rows: int) -> dict[str, Any]:
    """The arguments of one half's call."""

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.chunk(2)[cond] if value.ndim and len(value) == rows else value
        return {k: of(v) for k, v in value.items()} if isinstance(value, dict) else value

    return {k: of(v) for k, v in call.items()}


def naive(pipe: Any, steps: Sequence[Step], guided: bool = True, **settings: Any) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """What a run gives, and of each call of a half its step and depth."""
    reference = Naive(pipe, steps, guided)
    try:
        return run(pipe, guided=guided, **settings), reference.made
    finally:
        del pipe.transformer.forward


def close(a: torch.Tensor, b: torch.Tensor, within: float = 1e-9) -> bool:
    return float((a - b).abs().max()) <= within * float(b.abs().max())
