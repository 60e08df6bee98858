"""At which of its sampler's timesteps a transformer is called.

Pipelines call a UNet with elements of their scheduler's timesteps, whose place follows from where they lie. Those of flow-matching
transformers divide them by 1000 first, in the precision of the latents. The element is found again: most pipelines note it,
and otherwise it is the one that divides and rounds to the value at hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dato.caller import caller_of
from dato.run_position import index_in
from dato.runs import Runs

DIVISOR = 1000
"""By which pipelines divide their timesteps."""


def timestep_of(given: torch.Tensor | float, runs: Runs, model: nn.Module) -> torch.Tensor | float:
    """The element of a scheduler's timesteps that a call is made at; as it was given where it cannot be told.

    Args:
        given: What the model is called with.
        runs: That are not over.
        model: The transformer, for the pipeline that calls it.
    """
    for run in reversed(runs.open):
        if run.position.timesteps is not None and index_in(given, run.position.timesteps) is not None:
            return given
    if runs.last is not None and (found := _element(given, runs.last.pipe(), runs.last.position.next)) is not None:
        return found
    caller = caller_of(model)
    found = _element(given, caller.pipe if caller is not None else runs.owner(), 0)
    return given if found is None else found


def _element(given: torch.Tensor | float, pipe: Any, next_place: int) -> torch.Tensor | None:
    timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    if not isinstance(timesteps, torch.Tensor) or not len(timesteps):
        return None
    if index_in(given, timesteps) is not None:
        return given if isinstance(given, torch.Tensor) else None
    noted = getattr(pipe, "_current_timestep", None)
    if noted is not None and (place := index_in(noted, timesteps)) is not None and (timesteps.device.type != "cpu" or place in _places(given, timesteps)):
        return timesteps[place]
    places = _places(given, timesteps)
    begin = getattr(pipe.scheduler, "begin_index", None)
    for place in (next_place, next_place - 1, begin):
        if place in places:
            return timesteps[place]
    return timesteps[places[0]] if places else None


def _places(given: torch.Tensor | float, timesteps: torch.Tensor) -> list[int]:
    """Where the timesteps are that give this value, divided or not, in its precision."""
    if not isinstance(given, torch.Tensor):
        value = torch.tensor(float(given), dtype=torch.float64)
        listed = timesteps.double()
        close = ((listed - value).abs() < 1e-6 * listed.abs().clamp(min=1)) | ((listed / DIVISOR - value).abs() < 1e-6)
    else:
        value, listed = given.flatten()[0].to(timesteps.device), timesteps.to(given.dtype)
        close = (listed == value) | (listed / DIVISOR == value)
    return torch.nonzero(close).flatten().tolist()
