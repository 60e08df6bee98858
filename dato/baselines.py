"""What a strategy is compared with and is none itself: the pipeline as it is, ToMeSD, ToMeSD on top of DeepCache, and tools that cache a transformer.

    with baselines.tomesd(50, 0.5).applied(pipe) as (pipe, steps):
        images = pipe(prompt, num_inference_steps=steps).images

The other rivals are strategies: fewer steps `Strategy.full(10, sampler="DPM++")`, DeepCache `Strategy.uniform`, and `limited_guidance`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from dato.accelerate import accelerate
from dato.cache_tools import CacheTool
from dato.denoiser import denoiser_name
from dato.options import Options
from dato.presets import guided_steps
from dato.sampler import Sampler
from dato.scheduler import SchedulerExchange, scheduler_for
from dato.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A way to run a pipeline.

    Attributes:
        name: For tables and plots.
        steps: Sampler steps.
        strategy: With as many steps, or None.
        merge_ratio: Share of the tokens that ToMeSD merges, in every call; 0 for none.
        cache: Another tool that caches the blocks of a transformer, in place of a strategy.
        sampler: That `cache` runs with; None for the pipeline's own. A strategy has its own.
    """

    name: str
    steps: int
    strategy: Strategy | None = None
    merge_ratio: float = 0.0
    cache: CacheTool | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        if self.strategy is not None and (self.cache is not None or self.sampler is not None):
            raise ValueError(f"{self.name} has a strategy and {self.cache or self.sampler}: a strategy says itself what is cached, and has its sampler in itself")
        if not 0 <= self.merge_ratio <= 0.75:
            raise ValueError(f"merge_ratio is {self.merge_ratio!r}; ToMeSD allows 0 to 0.75 with its 2 x 2 patches")
        if self.strategy is not None and len(self.strategy) != self.steps:
            raise ValueError(f"steps is {self.steps}, but the strategy has {len(self.strategy)}; use strategy.resample({self.steps})")

    @contextmanager
    def applied(self, pipe: Any, options: Options | None = None) -> Iterator[tuple[Any, int]]:
        """The pipeline with this baseline on, and the steps to run it with; everything is undone afterwards."""
        with ExitStack() as stack:
            if self.merge_ratio:
                if denoiser_name(pipe) != "unet":
                    raise ValueError(f"{type(pipe).__name__} has no UNet, and ToMeSD merges tokens in one: leave it out (rivals.tomesd=[] rivals.naive=[])")
                tomesd = _package("tomesd")
                # It draws what is merged from a copy of the default generator, whatever that has been used for before.
                stack.enter_context(torch.random.fork_rng([pipe.device] if pipe.device.type == "cuda" else []))
                torch.manual_seed(0)
                tomesd.apply_patch(pipe, ratio=self.merge_ratio)
                stack.callback(tomesd.remove_patch, pipe)
            if self.strategy is not None:
                stack.enter_context(accelerate(pipe, self.strategy, options))
            if self.sampler is not None:
                exchange = SchedulerExchange(pipe.scheduler, scheduler_for(pipe, pipe.scheduler, self.sampler))
                exchange.apply(pipe)
                stack.callback(exchange.undo, pipe)
            if self.cache is not None:
                stack.enter_context(self.cache.applied(pipe, self.steps))
            yield pipe, self.steps

    def calibrated(self, pipe: Any, run: Callable[[], object]) -> Baseline:
        """The same with what its cache has to see of the model before; `run` runs the pipeline once, with as many steps."""
        if self.cache is None:
            return self
        with replace(self, cache=None).applied(pipe):
            return replace(self, cache=self.cache.calibrated(pipe, self.steps, run))


def plain(steps: int) -> Baseline:
    """The pipeline as it is."""
    return Baseline(name="unaccelerated", steps=steps)


def limited_guidance(steps: int, sampler: Sampler | str | None = None) -> Strategy:
    """Everything computed, with both halves of guidance in the first `dato.presets.guided_steps`, and the conditional half alone after."""
    full = Strategy.full(steps, sampler=sampler)
    guided = guided_steps(steps)
    return replace(full, steps=(*full[:guided], *(replace(step, guidance="cond") for step in full[guided:])))


def tomesd(steps: int, merge_ratio: float) -> Baseline:
    """ToMeSD (arXiv 2303.17604) from its own package, at that package's defaults."""
    return Baseline(name=f"ToMeSD, {merge_ratio:g}", steps=steps, merge_ratio=merge_ratio)


def deepcache_tomesd(steps: int, interval: int, merge_ratio: float) -> Baseline:
    """DeepCache and ToMeSD at once, the paper's naive combination."""
    return Baseline(
        name=f"DeepCache, every {interval} + ToMeSD, {merge_ratio:g}", steps=steps, strategy=Strategy.uniform(steps, interval), merge_ratio=merge_ratio
    )


def cached(steps: int, cache: CacheTool, sampler: Sampler | str | None = None) -> Baseline:
    """A transformer's blocks cached by another tool."""
    return Baseline(name=str(cache), steps=steps, cache=cache, sampler=Sampler.of(sampler))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"this baseline runs the {name} package itself: pip install {name}, or pip install 'dato-search[baselines]'") from None
