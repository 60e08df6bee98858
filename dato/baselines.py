"""What a strategy is compared with, used like a strategy: fewer steps, DeepCache, ToMeSD, and both together.

    with baselines.fewer_steps("DPM++", 10).applied(pipe) as (pipe, steps):
        images = pipe(prompt, num_inference_steps=steps).images
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from dato.accelerate import accelerate
from dato.options import Options
from dato.sampler import SAMPLERS
from dato.scheduler import SchedulerExchange, scheduler_for
from dato.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A way to run a pipeline faster.

    Attributes:
        name: For tables and plots.
        steps: Sampler steps.
        sampler: A key of `SAMPLERS`; None keeps the pipeline's own.
        strategy: Caching schedule, or None.
        merge_ratio: Share of the tokens that ToMeSD merges, in every call; 0 for none.
    """

    name: str
    steps: int
    sampler: str | None = None
    strategy: Strategy | None = None
    merge_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; allowed are {', '.join(SAMPLERS)}")
        if not 0 <= self.merge_ratio <= 0.75:
            raise ValueError(f"merge_ratio is {self.merge_ratio!r}; ToMeSD allows 0 to 0.75 with its 2 x 2 patches")
        if self.strategy is not None and len(self.strategy) != self.steps:
            raise ValueError(f"steps is {self.steps}, but the strategy has {len(self.strategy)}; use strategy.resample({self.steps})")

    @contextmanager
    def applied(self, pipe: Any, options: Options | None = None) -> Iterator[tuple[Any, int]]:
        """The pipeline with this baseline on, and the steps to run it with; everything is undone afterwards."""
        with ExitStack() as stack:
            if self.sampler is not None:
                exchange = SchedulerExchange(pipe.scheduler, scheduler_for(pipe, pipe.scheduler, SAMPLERS[self.sampler]))
                exchange.apply(pipe)
                stack.callback(exchange.undo, pipe)
            if self.merge_ratio:
                tomesd = _package("tomesd")
                tomesd.apply_patch(pipe, ratio=self.merge_ratio)
                stack.callback(tomesd.remove_patch, pipe)
            if self.strategy is not None:
                stack.enter_context(accelerate(pipe, self.strategy, options))
            yield pipe, self.steps


def plain(steps: int) -> Baseline:
    """The pipeline as it is."""
    return Baseline(name="unaccelerated", steps=steps)


def fewer_steps(sampler: str, steps: int) -> Baseline:
    """A fast sampler with few steps, such as DDIM-10 or DPM++-10: what users try first."""
    return Baseline(name=f"{sampler}-{steps}", steps=steps, sampler=sampler)


def deepcache(steps: int, interval: int) -> Baseline:
    """DeepCache (arXiv 2312.00858), branch 0, a full call every `interval` steps."""
    return Baseline(name=f"DeepCache, every {interval}", steps=steps, strategy=Strategy.uniform(steps, interval))


def tomesd(steps: int, merge_ratio: float) -> Baseline:
    """ToMeSD (arXiv 2303.17604) from its own package, at that package's defaults."""
    return Baseline(name=f"ToMeSD, {merge_ratio:g}", steps=steps, merge_ratio=merge_ratio)


def deepcache_tomesd(steps: int, interval: int, merge_ratio: float) -> Baseline:
    """DeepCache and ToMeSD at once, the paper's naive combination."""
    return Baseline(
        name=f"DeepCache, every {interval} + ToMeSD, {merge_ratio:g}", steps=steps, strategy=Strategy.uniform(steps, interval), merge_ratio=merge_ratio
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"this baseline runs the {name} package itself: pip install {name}, or pip install 'dato-search[baselines]'") from None
