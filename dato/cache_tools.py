"""Other tools that cache a transformer's blocks, run as they are: diffusers' own hooks, and the cache-dit package.

Each decides by itself, from thresholds or intervals that its user gives, which calls of a run compute what. They are rivals of a
strategy, and none of them can be on together with one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers import hooks
from diffusers.hooks.hooks import CacheContext, HookRegistry, StateManager, _set_cache_context

from dato.denoiser import denoiser_name

_SD3, _PIXART, _FLUX, _QWEN = "SD3Transformer2DModel", "PixArtTransformer2DModel", "FluxTransformer2DModel", "QwenImageTransformer2DModel"
TOOLS = {
    "FirstBlockCache": (_PIXART, _FLUX, _QWEN),
    "TaylorSeer": (_SD3, _PIXART, _FLUX, _QWEN),
    "MagCache": (_SD3, _PIXART, _FLUX, _QWEN),
    "FasterCache": (_SD3, _PIXART, _FLUX),
    "cache-dit": (_SD3, _PIXART, _FLUX, _QWEN),
}
"""The transformers that each tool runs, of those that strategies run, with diffusers 0.42 and cache-dit 1.5."""
_WHY_NOT = {
    ("FirstBlockCache", _SD3): "its last block returns no text, of which this hook takes the difference; cache-dit's F1B0 is the same method",
    ("FasterCache", _QWEN): "its pipelines make a call for each half of guidance, and this hook keeps one attention for both",
}
_ONLY_WHOLE = {_SD3: "its last block returns no text, which TaylorSeer's lite mode cannot keep; give the interval alone"}
_ONLY_LITE = {_PIXART: "TaylorSeer finds none of its attention layers (attn1, attn2); give lite-3, its lite mode"}
_FORM = re.compile(r"F(\d+)B(\d+)_W(\d+)_R(\d*\.?\d+)(?:_T(\d))?(?:_M(slow|medium|fast|ultra))?")


@dataclass(frozen=True, kw_only=True)
class CacheTool:
    """One tool with the setting that decides how much it caches; everything else is at its own default.

    Attributes:
        tool: One of `TOOLS`.
        setting: FirstBlockCache and MagCache: the threshold. TaylorSeer: the interval, such as "3", or "lite-3" for its lite mode. FasterCache:
            the interval in which attention is computed. cache-dit: as it names its configurations itself, such as "F1B0_W4_R0.12": blocks computed
            in front and behind, calls of warm-up, threshold; then "_T1" for its TaylorSeer of that order, and "_Mfast" for its mask of steps.
        ratios: MagCache's magnitude ratios of the model, one for each step; `calibrated` has them.
    """

    tool: str
    setting: str
    ratios: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.tool not in TOOLS:
            raise ValueError(f"tool is {self.tool!r}; allowed are {', '.join(TOOLS)}")
        if not _RIGHT[self.tool](self.setting):
            raise ValueError(f"{self.tool} is given {self.setting!r}; give {_EXAMPLES[self.tool]}")

    def __str__(self) -> str:
        return f"{self.tool}, {'every ' if self.tool in ('TaylorSeer', 'FasterCache') and self.setting.isdecimal() else ''}{self.setting}"

    def calibrated(self, pipe: Any, steps: int, run: Callable[[], object]) -> CacheTool:
        """The same with what it has to know of a model before it runs: for MagCache the ratios of one run without caching.

        Args:
            pipe: The pipeline.
            steps: Sampler steps.
            run: Runs the pipeline once, with so many steps.
        """
        if self.tool != "MagCache" or self.ratios is not None:
            return self
        # With one step more than are made it neither forgets its ratios at the end nor prints them, which are its only ways to tell them.
        ratios: list[float] = []

        def note(model: torch.nn.Module, *_: Any) -> None:
            ratios[:] = next((found for found in map(_calibration, model.modules()) if found), ratios)  # some pipelines clear them at their end

        with self._hooked(pipe, lambda model, _: hooks.apply_mag_cache(model, hooks.MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))):
            handle = pipe.transformer.register_forward_hook(note)
            try:
                run()
            finally:
                handle.remove()
        return replace(self, ratios=tuple(ratios))

    @contextmanager
    def applied(self, pipe: Any, steps: int) -> Iterator[None]:
        """The pipeline with this tool on; everything is undone afterwards.

        Args:
            pipe: The pipeline, without a strategy.
            steps: Sampler steps of the run to come.

        Raises:
            ValueError: The tool does not run the pipeline's model, or has not been calibrated.
            ImportError: cache-dit is not installed.
        """
        self.require(pipe)
        with self._cache_dit(pipe, steps) if self.tool == "cache-dit" else self._hooked(pipe, lambda model, undo: self._apply(pipe, model, steps, undo)):
            yield

    def require(self, pipe: Any) -> None:
        """Raise ValueError where the tool does not run the pipeline's model."""
        name, kind = type(pipe).__name__, type(getattr(pipe, "transformer", None)).__name__
        if denoiser_name(pipe) != "transformer":
            raise ValueError(f"{name} has no transformer, and {self.tool} caches the blocks of one: leave it out of rivals")
        if (why := self.why_not(kind)) is not None:
            raise ValueError(f"{self} of diffusers {diffusers.__version__} does not run {name}'s {kind}: {why}. {self.tool} runs {', '.join(TOOLS[self.tool])}; leave it out of rivals")

    def why_not(self, kind: str) -> str | None:
        """Why the tool does not run the transformers of a class; None where it does."""
        if kind not in TOOLS[self.tool]:
            return _WHY_NOT.get((self.tool, kind), "which is not among those that were tried")
        if self.tool == "TaylorSeer":
            return (_ONLY_WHOLE if self.setting.startswith("lite") else _ONLY_LITE).get(kind)
        return None

    def _apply(self, pipe: Any, model: Any, steps: int, undo: Callable[[Callable[[], None]], object]) -> None:
        if self.tool == "FirstBlockCache":
            hooks.apply_first_block_cache(model, hooks.FirstBlockCacheConfig(threshold=float(self.setting)))
        elif self.tool == "TaylorSeer":
            lite, interval = self.setting.startswith("lite-"), int(self.setting.removeprefix("lite-"))
            hooks.apply_taylorseer_cache(model, hooks.TaylorSeerCacheConfig(cache_interval=interval, use_lite_mode=lite, taylor_factors_dtype=model.dtype))
        elif self.tool == "MagCache":
            if self.ratios is None:
                raise ValueError("MagCache has to see the model once before it caches: take calibrated(pipe, steps, run)")
            hooks.apply_mag_cache(model, hooks.MagCacheConfig(threshold=float(self.setting), num_inference_steps=steps, mag_ratios=list(self.ratios)))
        else:
            told: list[Any] = []  # pipelines that do not say where they are say it to their model
            undo(model.register_forward_pre_hook(lambda _module, _args, given: told.__setitem__(slice(None), [given.get("timestep")]), with_kwargs=True).remove)
            config = hooks.FasterCacheConfig(
                spatial_attention_block_skip_range=int(self.setting), current_timestep_callback=lambda: _timestep(pipe, told), attention_weight_callback=lambda _: 0.5,
                tensor_format="BCHW", is_guidance_distilled=True,  # its saving of the unconditional half is for videos' models alone
            )  # fmt: skip
            hooks.apply_faster_cache(model, config)

    @contextmanager
    def _hooked(self, pipe: Any, apply: Callable[[Any, Callable[[Callable[[], None]], object]], None]) -> Iterator[None]:
        """Hooks of diffusers on the transformer, in a context of calls where the pipeline gives none itself, and off again."""
        model = pipe.transformer
        before = {module: tuple(module._diffusers_hook.hooks) for module in model.modules() if hasattr(module, "_diffusers_hook")}
        stack = ExitStack()
        try:
            apply(model, stack.callback)
            registry = HookRegistry.check_if_exists_or_initialize(model)
            registry.invalidate_child_registries_cache()
            if not hasattr(model, "cache_context"):
                _set_cache_context(model, CacheContext("both"))
            yield
        finally:
            stack.close()
            for module in model.modules():
                if hasattr(module, "_diffusers_hook"):
                    for name in [n for n in module._diffusers_hook.hooks if n not in before.get(module, ())]:
                        module._diffusers_hook.remove_hook(name, recurse=False)
                    if module not in before:
                        del module._diffusers_hook
            if model in before:
                model._diffusers_hook.invalidate_child_registries_cache()

    @contextmanager
    def _cache_dit(self, pipe: Any, steps: int) -> Iterator[None]:
        package = _package()
        front, behind, warm_up, threshold, order, mask = _FORM.fullmatch(self.setting).groups()  # type: ignore[union-attr]
        config = package.DBCacheConfig(
            Fn_compute_blocks=int(front), Bn_compute_blocks=int(behind), max_warmup_steps=int(warm_up), residual_diff_threshold=float(threshold), num_inference_steps=steps,
            steps_computation_mask=package.steps_mask(mask_policy=mask, total_steps=steps) if mask else None,
        )  # fmt: skip
        # Stable Diffusion 3's last block returns no text whose differences could be taken.
        text = type(pipe.transformer).__name__ != "SD3Transformer2DModel"
        more = {"calibrator_config": package.TaylorSeerCalibratorConfig(taylorseer_order=int(order), enable_encoder_calibrator=text)} if order else {}
        # It leaves some models' forwards in the place of their own when it is disabled, as FLUX's.
        modules = {module: module.__dict__.get("forward") for module in pipe.transformer.modules()}
        package.enable_cache(pipe, cache_config=config, **more)
        try:
            yield
        finally:
            package.disable_cache(pipe)
            for module, forward in modules.items():
                if module.__dict__.get("forward") is not forward:
                    module.__dict__.pop("forward")
                    module.__dict__.update({} if forward is None else {"forward": forward})
            pipe.transformer.__dict__.pop("_is_patched", None)


def _is_threshold(text: str) -> bool:
    return re.fullmatch(r"\d*\.?\d+", text) is not None and float(text) > 0


_RIGHT: dict[str, Callable[[str], bool]] = {
    "FirstBlockCache": _is_threshold,
    "TaylorSeer": lambda text: re.fullmatch(r"(lite-)?[1-9]\d?", text) is not None,
    "MagCache": _is_threshold,
    "FasterCache": lambda text: re.fullmatch(r"[1-9]\d?", text) is not None,
    "cache-dit": lambda text: _FORM.fullmatch(text) is not None,
}
_EXAMPLES = {
    "FirstBlockCache": "a threshold, such as 0.1",
    "TaylorSeer": "an interval, such as 3 or lite-3",
    "MagCache": "a threshold, such as 0.12",
    "FasterCache": "an interval, such as 2",
    "cache-dit": "blocks in front and behind, warm-up and threshold, such as F1B0_W4_R0.12, then _T1 for TaylorSeer and _Mfast for a mask (slow, medium, fast, ultra)",
}


def _calibration(module: torch.nn.Module) -> list[float]:
    """What MagCache has calibrated on a block; [] for any other module."""
    for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
        manager = getattr(hook, "state_manager", None)
        if isinstance(manager, StateManager) and getattr(hook, "is_tail", False):
            states = manager._state_cache
            return list((states.get("cond") or next(iter(states.values()))).calibration_ratios) if states else []
    return []


def _timestep(pipe: Any, told: Sequence[Any]) -> float:
    """Where a run is, for FasterCache, whose ranges are of timesteps from 1000 down."""
    found = getattr(pipe, "_current_timestep", None)
    return float(torch.as_tensor(told[0] if found is None else found).flatten()[0])


def _package() -> Any:
    """cache-dit, which would write a line for everything it does."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            package = importlib.import_module("cache_dit")
    except ImportError:
        raise ImportError("this baseline runs the cache-dit package itself: pip install cache-dit, or pip install 'dato-search[baselines]'") from None
    for name in list(logging.root.manager.loggerDict):
        if name.lower().startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return package
