"""What a user would try in place of a strategy: the keys of `rivals`, which of them fit a model, and the variants that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dato import baselines
from dato.baselines import Baseline
from dato.cache_tools import CacheTool
from dato.sampler import SAMPLERS
from dato.strategy import MAX_STEPS, Strategy
from search.evaluate.variants import Variant, VariantError
from search.fields import check

OWN = "own"
"""The pipeline's own sampler, in names of rivals."""


@dataclass(frozen=True, kw_only=True)
class RivalSettings:
    """The keys of `rivals`: what a user would try in place of a strategy; null for what fits the model, [] for none."""

    fewer_steps: tuple[str, ...] | None = None
    """A sampler with few steps, what equal latency means: DDIM, DPM++, Euler, PLMS, UniPC, or the pipeline's own. Null: DDIM and DPM++ with a UNet, own,
    DPM++ and UniPC with a transformer, such as [own-10, DPM++-6]."""
    limited_guidance: tuple[str, ...] | None = None
    """The same with both halves of guidance in the first half of the steps, rounded up, and the conditional half alone after. Null: of DPM++."""
    tomesd: tuple[float, ...] | None = None
    """UNets: merge ratios. Null: [0.3, 0.5]."""
    deepcache: tuple[int, ...] | None = None
    """UNets: a full call every so many steps. Null: [2, 3, 5, 10, 20], from slower than most strategies to faster than all."""
    naive: tuple[Any, ...] | None = None
    """UNets: DeepCache interval and ToMeSD ratio, both together. Null: [[2, 0.5], [3, 0.3], [3, 0.5], [5, 0.5], [10, 0.5], [20, 0.5]]."""
    first_block_cache: tuple[str, ...] | None = None
    """Transformers: thresholds of diffusers' FirstBlockCache. Null: [0.05, 0.1, 0.2, 0.4]."""
    taylorseer: tuple[str, ...] | None = None
    """Transformers: intervals of diffusers' TaylorSeer, lite-3 in its lite mode. Null: 2, 3 and 5, in the modes that run the model."""
    mag_cache: tuple[str, ...] | None = None
    """Transformers: thresholds of diffusers' MagCache, calibrated on the model. Null: [0.06, 0.12, 0.25, 0.5]."""
    faster_cache: tuple[str, ...] | None = None
    """Transformers: intervals of diffusers' FasterCache. Null: [2, 4]."""
    cache_dit: tuple[str, ...] | None = None
    """Transformers: configurations of the cache-dit package as it names them, F blocks in front, B behind, W calls of warm-up, R threshold, T order of its
    TaylorSeer, M its mask of steps. Null: its default and four that cache more."""
    cached_steps: tuple[str, ...] | None = None
    """Samplers and steps that the caches of transformers run with as well as with those of the pipeline, such as [UniPC-10]. Null: none."""

    def __post_init__(self) -> None:
        check(self, "rivals")


_STEPS = (4, 6, 8, 10, 14)
_LIMITED = tuple(f"DPM++-{n}" for n in (3, 4, 6, 8, 10))
_NONE: dict[str, Any] = {f.name: () for f in fields(RivalSettings)}
_UNET = _NONE | {
    "fewer_steps": tuple(f"{sampler}-{n}" for sampler in ("DDIM", "DPM++") for n in _STEPS),
    "limited_guidance": _LIMITED,
    "tomesd": (0.3, 0.5),
    "deepcache": (2, 3, 5, 10, 20),
    "naive": ((2, 0.5), (3, 0.3), (3, 0.5), (5, 0.5), (10, 0.5), (20, 0.5)),
}
_CACHES = {
    "first_block_cache": ("FirstBlockCache", ("0.05", "0.1", "0.2", "0.4")),
    "taylorseer": ("TaylorSeer", ("2", "3", "5", "lite-2", "lite-3", "lite-5")),
    "mag_cache": ("MagCache", ("0.06", "0.12", "0.25", "0.5")),
    "faster_cache": ("FasterCache", ("2", "4")),
    "cache_dit": ("cache-dit", ("F8B0_W8_R0.08", "F1B0_W4_R0.12", "F1B0_W4_R0.3", "F1B0_W4_R0.3_T1", "F1B0_W2_R5_Multra")),
}
"""Keys of the tools that cache a transformer's blocks, each with the tool's name and settings from careful to bold."""


def fitting(settings: RivalSettings, config: Mapping[str, Any]) -> RivalSettings:
    """The rivals with what fits a model where nothing is said.

    Args:
        settings: As given.
        config: The model's model_index.json.
    """
    part = config.get("transformer")
    kind = str(part[1]) if isinstance(part, list | tuple) and len(part) == 2 and part[1] else None
    found = _UNET if kind is None else _of_transformer(kind)
    return replace(settings, **{name: value for name, value in found.items() if getattr(settings, name) is None})


def _of_transformer(kind: str) -> dict[str, Any]:
    found = _NONE | {
        "fewer_steps": tuple(f"{sampler}-{n}" for sampler in (OWN, "DPM++", "UniPC") for n in _STEPS),
        "limited_guidance": () if kind == "FluxTransformer2DModel" else _LIMITED,  # guided by what it is told, in one call without halves
    }
    for key, (tool, choices) in _CACHES.items():
        found[key] = tuple(c for c in choices if CacheTool(tool=tool, setting=c).why_not(kind) is None)
    return found


def rival_variants(steps: int, rivals: RivalSettings) -> list[Variant]:
    """The unaccelerated pipeline and the rivals of a configuration.

    Args:
        steps: Of the unaccelerated pipeline.
        rivals: What to compare with; nothing where a key is null.

    Raises:
        VariantError: A value is of the wrong form.
        ValueError: A tool does not allow what it is given.
    """
    given = asdict(rivals)
    found = [Variant.unaccelerated(steps)]
    try:
        for name in given["fewer_steps"] or ():
            sampler, count = _sampled(name, "fewer_steps")
            found.append(Variant.of(Strategy.full(count, sampler), name, family="fewer"))
        for name in given["limited_guidance"] or ():
            sampler, count = _sampled(name, "limited_guidance")
            found.append(Variant.of(baselines.limited_guidance(count, sampler), f"{name}, limited guidance", family="limited"))
        found += [_named(baselines.tomesd(steps, float(r)), "tomesd") for r in given["tomesd"] or ()]
        for n in map(int, given["deepcache"] or ()):
            found.append(Variant.of(Strategy.uniform(steps, n), f"DeepCache, every {n}", family="deepcache"))
        found += [_named(baselines.deepcache_tomesd(steps, int(n), float(r)), "naive") for n, r in given["naive"] or ()]
    except (TypeError, AttributeError) as error:
        raise VariantError(
            f"rivals is {given!r}, which has the wrong form ({error}); write fewer_steps: [DDIM-10], limited_guidance: [DPM++-8], "
            "tomesd: [0.3, 0.5], deepcache: [3, 5] and naive: [[3, 0.3], [5, 0.5]]"
        ) from None
    runs = [(None, steps, ""), *((*_sampled(name, "cached_steps"), f", {name}") for name in given["cached_steps"] or ())]
    for key, (tool, _) in _CACHES.items():
        for setting in given[key] or ():
            cache = _tool(tool, str(setting), key)
            for sampler, count, name in runs:
                baseline = baselines.cached(count, cache, sampler)
                found.append(_named(replace(baseline, name=baseline.name + name), key))
    return found


def _tool(tool: str, setting: str, key: str) -> CacheTool:
    try:
        return CacheTool(tool=tool, setting=setting)
    except ValueError as error:
        raise VariantError(f"rivals.{key}: {error}") from None


def _sampled(name: str, key: str) -> tuple[str | None, int]:
    """Sampler, None for the pipeline's own, and steps of a rival's name, such as DDIM-10."""
    sampler, _, count = name.rpartition("-")
    if sampler not in (OWN, *SAMPLERS) or not (count.isdecimal() and count.isascii() and 1 <= int(count[:9]) <= MAX_STEPS):
        raise VariantError(
            f"rivals.{key} names {name!r}; write a sampler and its steps, such as DDIM-10: samplers are {', '.join(SAMPLERS)} and {OWN}, the pipeline's, steps 1 to {MAX_STEPS}"
        )
    return (None if sampler == OWN else sampler), int(count)


def _named(baseline: Baseline, family: str) -> Variant:
    return Variant(name=baseline.name, baseline=baseline, family=family)
