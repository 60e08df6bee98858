"""The sampler that a strategy is for: a scheduler of diffusers by its class, with settings, in plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dato.files import shown
from dato.schema import StrategyError, native


@dataclass(frozen=True)
class Sampler:
    """A scheduler for the model at hand; its noise schedule and all that `settings` does not name are the model's own.

    For a model of flow matching DPM++, Euler and UniPC are their forms for that; DDIM and PLMS have none.

    Attributes:
        scheduler: The class in diffusers, such as "DPMSolverMultistepScheduler".
        settings: Of its configuration, such as {"use_karras_sigmas": True}: texts, finite numbers, lists and mappings.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        name: Any = self.scheduler
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*Scheduler", name, re.ASCII):
            raise StrategyError(f"sampler is {shown(name)}; allowed are {', '.join(SAMPLERS)}, or a scheduler class of diffusers, such as 'HeunDiscreteScheduler'")
        if not isinstance(self.settings, Mapping) or not all(isinstance(key, str) for key in self.settings):
            raise StrategyError(f"the settings of the sampler {name} are {shown(self.settings)}; give a mapping of their names to plain values")
        object.__setattr__(self, "settings", native(self.settings, f"settings of the sampler {name}"))

    @classmethod
    def of(cls, value: Any) -> Sampler | None:
        """A sampler from its name ("DPM++" or a class), from `document`'s data, or as it is; None for the pipeline's own."""
        if value is None or isinstance(value, Sampler):
            return value
        if isinstance(value, Mapping):
            if not {"scheduler"} <= set(value) <= {"scheduler", "settings"}:
                raise StrategyError(f"sampler is {shown(value)}; expected an object with scheduler and settings, or a name: {', '.join(SAMPLERS)}")
            return cls(**value)
        return SAMPLERS[value] if isinstance(value, str) and value in SAMPLERS else cls(value)

    def __str__(self) -> str:
        named = next((name for name, sampler in SAMPLERS.items() if sampler == self), None)
        settings = ", ".join(f"{key}={value!r}" for key, value in sorted(self.settings.items()))
        return named or self.scheduler + (f"({settings})" if settings else "")

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {"scheduler": self.scheduler, "settings": dict(self.settings)}


SAMPLERS: dict[str, Sampler] = {}
"""Samplers as the field names them."""
SAMPLERS |= {
    "DDIM": Sampler("DDIMScheduler"),
    "DPM++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "Euler": Sampler("EulerDiscreteScheduler"),
    "PLMS": Sampler("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": Sampler("UniPCMultistepScheduler"),
}
ONE_CALL = ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler")
"""Schedulers that call the model once a step, each time at another timestep; PNDM repeats one, and others call it twice."""
