"""Which pipeline is running: looked up on the call stack, once a run.

Pipelines share UNets (`from_pipe`), so the pipeline that a strategy was enabled on need not be the one that runs. diffusers
tells a model nothing of its caller, and offers no hook at the beginning of a run; the stack does say who calls.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn

GUIDES = "do_classifier_free_guidance"
"""The property by which diffusers' pipelines say whether their batch is [uncond, cond]."""


@dataclass(frozen=True)
class Caller:
    """A pipeline in the middle of its run.

    Attributes:
        pipe: The pipeline.
        method: Its method that makes the run, such as "__call__" or "invert".
        frame: Tells this run of it from others on the stack.
        outer: The frames of runs that wait for this one to end: it is made within a callback of theirs.
        attended: Whether code that is not diffusers' own runs between two calls of the UNet, and may change anything.
    """

    pipe: Any
    method: str
    frame: int
    outer: frozenset[int]
    attended: bool


def caller_of(unet: nn.Module) -> Caller | None:
    """The innermost pipeline with this UNet on the call stack; None in a loop of one's own."""
    pipe: Any = None
    run: FrameType | None = None
    entered = False  # the frame of the pipeline's __call__ is found; what is further out is another run's
    outer = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        here = _pipeline_in(frame, unet)
        if here is not None:
            if run is None or (here is pipe and not entered):
                pipe, run = here, frame
                entered = frame.f_code.co_name == "__call__"
            else:
                outer.add(id(frame))
        frame = frame.f_back
    if run is None:
        return None
    own_code = not str(run.f_globals.get("__name__")).startswith("diffusers.")
    given = run.f_locals
    attended = own_code or any(given.get(name) is not None for name in ("callback", "callback_on_step_end"))
    return Caller(pipe, run.f_code.co_name, id(run), frozenset(outer), attended)


def has_unet(pipe: Any, unet: nn.Module) -> bool:
    """Whether the UNet, itself or compiled, is one of the pipeline's components."""
    return any(isinstance(v, nn.Module) and v._modules.get("_orig_mod", v) is unet for v in vars(pipe).values())


def guides(pipe: Any) -> bool | None:
    """Whether the pipeline's batch is [uncond, cond] now; None where it does not say, or has not been told yet."""
    said = getattr(pipe, GUIDES, None)  # a property that fails on a pipeline which never ran
    return None if said is None else bool(said)


def reference(pipe: Any) -> Callable[[], Any]:
    """A weak reference to the pipeline, where its class allows one: a UNet does not keep its pipeline alive."""
    try:
        return weakref.ref(pipe)
    except TypeError:
        return lambda: pipe


def _pipeline_in(frame: FrameType, unet: nn.Module) -> Any:
    """The pipeline that a frame belongs to: `self`, or in blocks of a modular pipeline `components`."""
    code = frame.f_code
    for name in ("self", "components"):
        if name in code.co_varnames or name in code.co_freevars:
            value = frame.f_locals.get(name)
            if value is not None and _is_pipeline(value) and has_unet(value, unet):
                return value
    return None


def _is_pipeline(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, nn.Module) or not hasattr(value, "__dict__"):
        return False
    if any(k.__name__ in ("DiffusionPipeline", "ModularPipeline") for k in kind.__mro__):
        return True
    own = vars(value)
    return "unet" in own and "scheduler" in own and (GUIDES in own or hasattr(kind, GUIDES))
