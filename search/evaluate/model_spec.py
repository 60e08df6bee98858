"""The keys of `model`: which pipeline, in which precision, with which sampler."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers

from search.fields import check, limited


class ModelError(ValueError):
    """A model that cannot be loaded: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which pipeline, in which precision, with which sampler."""

    name: str
    """Short name, for titles and registry."""
    path: str
    """"embedded", a local folder in diffusers' layout, or a hub id."""
    dtype: str = limited("float32", among=("float32", "float16", "bfloat16"))
    """Precision: float32, float16 or bfloat16."""
    device: str = "auto"
    """"auto" (a GPU where there is one), or a torch device."""
    scheduler: str | None = None
    """A diffusers scheduler class that replaces the model's own, such as DPMSolverMultistepScheduler."""
    steps: int = limited(50, least=1, most=1000)
    """Sampler steps."""
    guidance: float = limited(7.5, least=0)
    """Classifier-free guidance scale."""
    height: int | None = limited(None, least=8, most=65536)
    """Pixels; None for the model's own size."""
    width: int | None = limited(None, least=8, most=65536)
    """Pixels; None for the model's own size."""

    def __post_init__(self) -> None:
        check(self, "model", ModelError)
        kind = getattr(diffusers, self.scheduler, None) if self.scheduler else None
        if self.scheduler and not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise ModelError(f"model.scheduler is {self.scheduler!r}; give a diffusers scheduler class, such as PNDMScheduler")
