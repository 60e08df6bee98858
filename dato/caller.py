"""Which pipeline is running: looked up on the call stack, once a run.

Pipelines share models (`from_pipe`), so the pipeline that a strategy was enabled on need not be the one that runs. diffusers
tells a model nothing of its caller, and offers no hook at the beginning of a run; the stack does say who calls. Only frames of
pipelines are looked into: up to Python 3.12 a frame that was looked into keeps what its variables held until it ends.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from dato.denoiser import denoiser_of

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
        guides: What a variable of the run's own says of whether the batch is [uncond, cond]; None where it has none.
        attended: Whether code that is not diffusers' own runs between two calls of the model, and may change anything.
    """

    pipe: Any
    method: str
    frame: int
    outer: frozenset[int]
    attended: bool
    guides: bool | None = None


def caller_of(model: nn.Module) -> Caller | None:
    """The innermost pipeline with this model on the call stack; None in a loop of one's own."""
    pipe: Any = None
    run: FrameType | None = None
    entered = False  # the frame of the pipeline's __call__ is found; what is further out is another run's
    outer = set()
    names, calls = _methods()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        known = code in calls or not names.isdisjoint(code.co_qualname.split("."))
        here = _pipeline_in(frame, model) if known else None
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
    said = given.get(GUIDES)
    return Caller(pipe, run.f_code.co_name, id(run), frozenset(outer), attended, said if isinstance(said, bool) else None)


def has_model(pipe: Any, model: nn.Module) -> bool:
    """Whether the model, itself or compiled, is one of the pipeline's components."""
    parts = (*getattr(pipe, "__dict__", {}).values(), denoiser_of(pipe))
    return any(isinstance(v, nn.Module) and v._modules.get("_orig_mod", v) is model for v in parts)


def guides(pipe: Any) -> bool | None:
    """Whether the pipeline's batch is [uncond, cond] now; None where it does not say, or has not been told yet."""
    said = getattr(pipe, GUIDES, None)  # a property that fails on a pipeline which never ran
    return None if said is None else bool(said)


def reference(pipe: Any) -> Callable[[], Any]:
    """A weak reference to the pipeline, where its class allows one: a model does not keep its pipeline alive."""
    try:
        return weakref.ref(pipe)
    except TypeError:
        return lambda: pipe


def _pipeline_in(frame: FrameType, model: nn.Module) -> Any:
    """The pipeline that a frame belongs to: `self`, or in blocks of a modular pipeline `components`."""
    given = frame.f_locals
    return next((v for v in (given.get("self"), given.get("components")) if _is_pipeline(v) and has_model(v, model)), None)


def _is_pipeline(value: Any) -> bool:
    return any(kind.__name__ in ("DiffusionPipeline", "ModularPipeline") for kind in type(value).__mro__)


def _methods() -> tuple[set[str], set[CodeType]]:
    """The names of all pipeline classes there are, which are part of their methods' names, and the code of their `__call__`, wherever it was written."""
    modular = sys.modules.get("diffusers.modular_pipelines.modular_pipeline")
    open_kinds: list[type] = [DiffusionPipeline, *(getattr(modular, name) for name in ("ModularPipeline", "ModularPipelineBlocks") if hasattr(modular, name))]
    kinds: set[type] = set()
    while open_kinds:
        kind = open_kinds.pop()
        if kind not in kinds:
            kinds.add(kind)
            open_kinds += kind.__subclasses__()
    calls = (inspect.unwrap(k.__dict__["__call__"]) for k in kinds if "__call__" in k.__dict__)
    return {k.__name__ for k in kinds}, {c.__code__ for c in calls if hasattr(c, "__code__")}
