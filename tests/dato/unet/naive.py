"""The reference for caching within a run: nothing clever, and what a user's callback changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dato import FULL, Strategy
from dato.unet.shallow import bind_call, run_shallow
from dato.unet.units import Layout, unit_output
from tests.dato.conftest import run

Change = Callable[[Any], None]


class Naive:
    """Caching by depth with nothing clever: modules are looked up anew in each call, and no half is kept."""

    def __init__(self, pipe: Any, strategy: Strategy) -> None:
        self.pipe = pipe
        self.unet, self.original = pipe.unet, pipe.unet.forward
        self.depths = [s.cache_depth for s in strategy]
        self.cached: dict[int, torch.Tensor] = {}
        self.prediction: torch.Tensor | None = None
        self.given: tuple[Any, ...] = ()
        self.made: list[int] = []
        pipe.unet.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = bind_call(self.unet, args, kwargs)
        layout, shape = Layout.of(self.unet), (*call["sample"].shape, self.pipe.do_classifier_free_guidance)
        depth = self.depths[len(self.made)]
        if self.given == (2 * shape[0], *shape[1:4], True) and not shape[4]:  # guidance off: the conditional half is the second
            self.cached = {d: x.chunk(2)[1] for d, x in self.cached.items()}
            self.prediction = None if self.prediction is None else self.prediction.chunk(2)[1]
        elif self.given != shape:
            self.cached, self.prediction = {}, None
        self.given = shape
        if (depth == 0 and self.prediction is None) or (0 < depth < FULL and depth not in self.cached):
            depth = FULL
        handles = []
        for d in set(self.depths) - {0, FULL}:
            handles.append(layout.outputs[d].last.register_forward_hook(lambda _m, _a, out, d=d: self.cached.__setitem__(d, unit_output(out).clone())))
        if depth == FULL:
            self.prediction = self.original(*args, **{**kwargs, "return_dict": False})[0]
        elif depth:
            self.prediction = run_shallow(layout, depth, self.cached[depth], call)
        for handle in handles:
            handle.remove()
        self.made.append(depth)
        return (self.prediction,)


def changing(at: int, change: Change) -> dict[str, Any]:
    def callback(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            change(pipe)
        return kwargs

    return {"callback_on_step_end": callback}


def naive(pipe: Any, strategy: Strategy, **settings: Any) -> tuple[torch.Tensor, list[int]]:
    reference = Naive(pipe, strategy)
    result = run(pipe, **settings)
    del pipe.unet.forward
    return result, reference.made


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())
