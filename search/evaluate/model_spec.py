"""The keys of `model`: which pipeline, in which precision, with which sampler."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import diffusers

from dato.files import written
from search.evaluate.load_arguments import ModelError, check_load
from search.fields import check, later_defaults, limited, without_later


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which pipeline, in which precision, with which sampler."""

    name: str
    """Short name, for titles and registry."""
    path: str
    """"embedded", "embedded_dit", a local folder in diffusers' layout, or a hub id."""
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
    revision: str | None = limited(None, later=True)
    """Branch, tag or commit of a hub id; null for its main branch. A search notes the commit, and goes on with it."""
    variant: str | None = limited(None, later=True)
    """Weight files of this variant, such as fp16; null for those without one."""
    mirror: str | None = limited(None, later=True)
    """A shared folder, or file://, that holds models by id, as owner/name or for a revision owner/name@revision, looked in before the hub."""
    components: dict[str, str] = field(default_factory=dict, metadata={"later": True})
    """Models in place of the pipeline's own, such as {vae: /models/vae}: a folder, or on the hub owner/name, owner/name/folder, either with @revision."""
    lora: tuple[str, ...] = limited((), later=True)
    """LoRA weights, merged into the pipeline in turn: files, folders, or on the hub owner/name, owner/name/file, either with @revision."""
    lora_scales: tuple[float, ...] = limited((), later=True)
    """A scale for each of model.lora; [] for 1 each."""
    load: dict[str, Any] = field(default_factory=dict, metadata={"later": True})
    """Further arguments of diffusers' from_pretrained and of the pipeline's class, such as {low_cpu_mem_usage: false}."""

    def __post_init__(self) -> None:
        check(self, "model", ModelError)
        check_load(self.load)
        for name, given in self.components.items():
            if not isinstance(given, str) or not given:
                raise ModelError(f"model.components.{name} is {written(given)}; give a folder, or a hub id such as owner/name, owner/name/folder or owner/name@revision")
        if self.lora_scales and len(self.lora_scales) != len(self.lora):
            raise ModelError(f"model.lora_scales holds {len(self.lora_scales)} numbers for {len(self.lora)} of model.lora; give one for each, or [] for 1 each")
        kind = getattr(diffusers, self.scheduler, None) if self.scheduler else None
        if self.scheduler and not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise ModelError(f"model.scheduler is {self.scheduler!r}; give a diffusers scheduler class, such as PNDMScheduler")

    def to_dict(self) -> dict[str, Any]:
        """As plain data for keys and records, see `search.fields.without_later`."""
        return without_later(ModelSpec, asdict(self))


LATER = tuple(later_defaults(ModelSpec))
"""Keys that came when searches had been recorded without them: in records only where they are set."""
