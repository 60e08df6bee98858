"""Keys of a comparison: what is measured, and what strategies are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from search.data.datasets import FRESH_OFFSET
from search.fields import check, limited


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The keys of `evaluation`."""

    images: int = limited(100, least=2, most=FRESH_OFFSET)
    """Images per variant."""
    held_out: bool = True
    """Images that no search has used; false: those of the search."""
    metrics: tuple[str, ...] = ("fid", "psnr", "ssim")
    """What is measured: fid, kid, is (Inception Score), clip, clip:<folder or hub id>, and plug-ins; against the unaccelerated images of
    the same seeds: psnr, ssim, ms-ssim, lpips:<torchvision's weight file of alexnet, vgg16 or squeezenet1_1>."""
    shard: int = limited(1, least=1, most=100_000)
    """Batches per job: what is lost when it is stopped."""
    samples: int = limited(10, least=0, most=100_000)
    """Images of each variant to look at."""
    quoted: str | None = None
    """The paper's table to stand beside ours, such as table1/imagenet/sd15."""
    edit: dict[str, Any] | None = field(default_factory=dict)
    """Image-to-image, {} for none: {strength: 0.6, inputs: generated, size: null}, see search/evaluate/edit.py."""

    def __post_init__(self) -> None:
        check(self, "evaluation")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"evaluation.metrics is {list(self.metrics)}; give one or more different ones, such as [fid]")
        if "is" in self.metrics and self.images < 10:
            raise ValueError(f"evaluation.metrics holds is, the Inception Score, which needs evaluation.images of at least 10; it is {self.images}")


@dataclass(frozen=True, kw_only=True)
class RivalSettings:
    """The keys of `rivals`: what a user would try in place of a strategy."""

    fewer_steps: tuple[str, ...] = ("DDIM-4", "DDIM-6", "DDIM-8", "DDIM-10", "DDIM-14", "DPM++-4", "DPM++-6", "DPM++-8", "DPM++-10", "DPM++-14")
    """Fast samplers with few steps, what equal latency means: DDIM, DPM++, Euler, PLMS, UniPC."""
    limited_guidance: tuple[str, ...] = ("DPM++-3", "DPM++-4", "DPM++-6", "DPM++-8", "DPM++-10")
    """The same with both halves of guidance in the first half of the steps, rounded up, and the conditional half alone after."""
    tomesd: tuple[float, ...] = (0.3, 0.5)
    """Merge ratios."""
    deepcache: tuple[int, ...] = (2, 3, 5, 10, 20)
    """A full call every so many steps: from slower than most strategies to faster than all."""
    naive: tuple[Any, ...] = ((2, 0.5), (3, 0.3), (3, 0.5), (5, 0.5), (10, 0.5), (20, 0.5))
    """DeepCache interval and ToMeSD ratio, both together."""

    def __post_init__(self) -> None:
        check(self, "rivals")
