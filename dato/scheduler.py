"""A pipeline's scheduler, exchanged for the sampler that a strategy is for, and put back."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from dato.sampler import Sampler

FLOW_FORMS = {"EulerDiscreteScheduler": "FlowMatchEulerDiscreteScheduler", "HeunDiscreteScheduler": "FlowMatchHeunDiscreteScheduler"}
"""Schedulers whose form for models of flow matching is a class of its own in diffusers; DPM++ and UniPC have a setting for it."""


def exchange_scheduler(scheduler: Any, name: str, **settings: Any) -> Any:
    """The diffusers scheduler `name` for the model that `scheduler` is for.

    Where the model's configuration is silent, latents are not clipped: they have no bounds, and diffusers' default, meant for
    pixels, would cut DDIM's off at 1. For a model of flow matching it is the scheduler's own form for that, with the model's shift.
    """
    kind = getattr(diffusers, _form(name, scheduler))
    taken = inspect.signature(kind.__init__).parameters
    if matches_flow(scheduler) and "use_flow_sigmas" in taken:
        shift = scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0))
        settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift, **settings}
    if "clip_sample" in taken and "clip_sample" not in scheduler.config:
        settings["clip_sample"] = False
    return kind.from_config(scheduler.config, **settings)


def scheduler_for(pipe: Any, own: Any, sampler: Sampler) -> Any:
    """The scheduler of a sampler for the model that a pipeline's `own` scheduler is for.

    Raises:
        ValueError: The pipeline has none, diffusers does not know it or its settings, or it is for noise of another kind.
    """
    name, kind = type(pipe).__name__, getattr(diffusers, _form(sampler.scheduler, own), None)
    keep = "leave the strategy's sampler out, Strategy(strategy.steps), to run with the pipeline's own"
    if own is None or not hasattr(own, "config"):
        raise ValueError(f"the strategy is for the sampler {sampler}, and {name} has no scheduler of diffusers that could be exchanged for it: {keep}")
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise ValueError(f"the strategy is for the sampler {sampler}, and diffusers {diffusers.__version__} has no scheduler {sampler.scheduler}: update diffusers, or {keep}")
    taken = inspect.signature(kind).parameters
    unknown = sorted(set(sampler.settings) - set(taken))
    if unknown:
        raise ValueError(f"the strategy's sampler sets {unknown[0]}, and {kind.__name__} of diffusers {diffusers.__version__} takes {', '.join(taken)}")
    flow = matches_flow(own) and ("use_flow_sigmas" in taken or kind.__name__.startswith("FlowMatch"))
    if not flow and ("beta_start" in taken) != ("beta_start" in own.config):
        raise ValueError(f"the strategy is for the sampler {sampler}, and {name}'s own, {type(own).__name__}, is for noise of another kind: {keep}")
    try:
        return exchange_scheduler(own, sampler.scheduler, **sampler.settings)
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:  # some need a package of their own
        raise ValueError(f"diffusers refuses the strategy's sampler {sampler}: {error}") from error


def matches_flow(scheduler: Any) -> bool:
    """Whether a scheduler is for a model of flow matching, such as Stable Diffusion 3 or FLUX."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(getattr(scheduler, "config", {}).get("use_flow_sigmas"))


def _form(name: str, own: Any) -> str:
    """The class of a scheduler for the model that a pipeline's `own` is for."""
    return FLOW_FORMS.get(name, name) if matches_flow(own) else name


def samples_with(scheduler: Any, sampler: Sampler) -> bool:
    """Whether a scheduler is of a sampler's class, with its settings."""
    config = getattr(scheduler, "config", {})
    return type(scheduler).__name__ == _form(sampler.scheduler, scheduler) and all(k in config and _plain(config[k]) == v for k, v in sampler.settings.items())


class SchedulerExchange:
    """A pipeline's scheduler and the one in its place.

    Args:
        own: The pipeline's.
        new: The one that a strategy is for.
    """

    def __init__(self, own: Any, new: Any) -> None:
        self.own, self.new = own, new

    def apply(self, pipe: Any) -> None:
        """Give the pipeline the new scheduler."""
        if pipe.scheduler is not self.new:
            self.own, pipe.scheduler = pipe.scheduler, self.new

    def undo(self, pipe: Any) -> None:
        """Give the pipeline its own one back, unless it has been given another since; a second time nothing."""
        if getattr(pipe, "scheduler", None) is self.new:
            pipe.scheduler = self.own


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
