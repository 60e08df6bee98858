"""How much features change from one UNet call to the next, token by token: the paper's Figures 1 and 4.

Recorded by forward hooks while a pipeline runs, and streamed: one earlier feature is kept, never a history.

Letters: B images, C channels, h x w tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from dato.denoiser import denoiser_name
from dato.unet.units import Layout, unit_output
from search.evaluate.load_arguments import ModelError

LOWEST, HIGHEST, BINS = -4.0, 2.0, 120
"""Edges of the histogram, powers of ten. What changes less, or was replayed and changes not at all, is in the first bin."""


@dataclass
class Dynamics:
    """Feature differences of runs of one variant.

    Attributes:
        name: The variant's.
        histogram: (calls - 1, `BINS`) counts of tokens by the power of ten of their difference, one row for each call after
            the first.
        means: Mean difference at each call after the first.
        maps: (B, h, w) differences of the first images by call; a call's number counts from 0, and 0 has none.
        images: How many images were recorded.
    """

    name: str
    histogram: torch.Tensor = field(default_factory=lambda: torch.zeros(0, BINS, dtype=torch.int64))
    means: list[float] = field(default_factory=list)
    maps: dict[int, torch.Tensor] = field(default_factory=dict)
    images: int = 0

    def median(self) -> float:
        """Power of ten of the median difference over all tokens and calls, to a bin's middle."""
        total = self.histogram.sum(0).cumsum(0)
        place = int((total < (total[-1] + 1) // 2).sum())
        return LOWEST + (place + 0.5) * (HIGHEST - LOWEST) / BINS

    def distance(self, other: Dynamics) -> float:
        """Wasserstein distance of the two distributions, in powers of ten."""
        shares = [h / h.sum() for h in (self.histogram.sum(0).double(), other.histogram.sum(0).double())]
        return float((shares[0].cumsum(0) - shares[1].cumsum(0)).abs().sum() * (HIGHEST - LOWEST) / BINS)


def require_unet(denoiser: str | None, pipeline: str) -> None:
    """Raise `ModelError` for a pipeline that is denoised by something else, whose features these are not."""
    if denoiser != "unet":
        raise ModelError(f"model.path is a {pipeline}, which has no UNet; the figures are of the features of one: give a model with a UNet, such as model=sd15")


class Recorder:
    """Records the features that the UNet's last output unit hands on (f_0^up of Eq. 6), of the conditional guidance half.

    Args:
        name: Of the variant.
        keep_images: Of how many images of the first run maps are kept.
        keep_calls: At which calls.
    """

    def __init__(self, name: str, keep_images: int = 2, keep_calls: Sequence[int] = ()) -> None:
        self.dynamics = Dynamics(name)
        self._keep_images, self._keep_calls = keep_images, set(keep_calls)
        self._call = 0
        self._before: torch.Tensor | None = None
        self._now: torch.Tensor | None = None
        self._sums: list[list[float]] = []

    @contextmanager
    def recording(self, pipe: Any) -> Iterator[None]:
        """Record one run of the pipeline. Enable a strategy before, so that the run's own calls are seen."""
        self._call, self._before, self._now = 0, None, None
        require_unet(denoiser_name(pipe), type(pipe).__name__)
        last = Layout.of(pipe.unet).outputs[0].last

        def seen(_module: Any, _args: Any, output: Any) -> None:
            self._now = unit_output(output)

        def called(_module: Any, _args: Any, output: Any) -> None:
            # Where the conditional half alone is computed, the last unit hands on half of what the UNet does.
            halves = 2 if getattr(pipe, "do_classifier_free_guidance", False) and self._now is not None and len(self._now) == len(output[0]) else 1
            self._after_call(halves)

        handles = [last.register_forward_hook(seen), pipe.unet.register_forward_hook(called)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._before is not None:
            self.dynamics.images += len(self._before)
        self._before = self._now = None

    def _after_call(self, halves: int) -> None:
        now = self._before  # a call that computed nothing hands on what was there
        if self._now is not None:
            now = self._now.chunk(halves)[-1].float().clone()
        if self._before is not None and now is not None:
            self._take((now - self._before).abs().mean(1))
        self._before, self._now = now, None
        self._call += 1

    def _take(self, difference: torch.Tensor) -> None:
        """Add the (B, h, w) differences of this call."""
        found, row = self.dynamics, self._call - 1
        place = ((difference.clamp(min=10.0**LOWEST).log10() - LOWEST) / (HIGHEST - LOWEST) * BINS).long().clamp(0, BINS - 1)
        counts = torch.bincount(place.flatten().cpu(), minlength=BINS)
        if row == len(found.histogram):
            found.histogram = torch.cat([found.histogram, torch.zeros(1, BINS, dtype=torch.int64)])
            found.means.append(0.0)
            self._sums.append([0.0, 0.0])
        found.histogram[row] += counts
        self._sums[row][0] += float(difference.sum())
        self._sums[row][1] += difference.numel()
        found.means[row] = self._sums[row][0] / self._sums[row][1]
        if self._call in self._keep_calls and self._call not in found.maps:
            found.maps[self._call] = difference[: self._keep_images].cpu()
