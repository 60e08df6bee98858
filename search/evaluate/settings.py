"""Keys of a comparison: what is measured."""

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
