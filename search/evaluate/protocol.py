"""How candidates are measured: on which images, in what batches, with which features and intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.data.datasets import FRESH_OFFSET
from search.fields import check, limited
from search.metrics.similarity import check_similarity


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How every candidate is measured; two measurements compare only under one protocol."""

    images: int = limited(100, least=2, most=FRESH_OFFSET)
    """Images per candidate, from fixed prompts and seeds."""
    batch: int = limited(10, least=1, most=100_000)
    """Images per call of the pipeline."""
    features: str = "embedded"
    """Feature net of the FID."""
    interval_groups: int = limited(20, least=0, most=100_000)
    """Groups of images that are left out in turn behind an interval; 0 for none (with Inception features each takes seconds)."""
    offset: int = limited(0, least=0, most=FRESH_OFFSET - 2)
    """Index of the first image."""
    similarity: tuple[str, ...] = ("psnr", "ssim")
    """Image metrics of baselines and winners against the unaccelerated images, see `search.metrics.similarity`."""
    fidelities: tuple[int | float, ...] = ()
    """Smaller numbers of images, ascending: every candidate is measured on the first, and the best on the next, up to `images`.

    A value below 1 is a share of `images`, in whole batches; it is left out where that is all of them.
    """

    def __post_init__(self) -> None:
        check(self, "protocol")
        if self.offset + self.images > FRESH_OFFSET:
            raise ValueError(f"protocol.offset is {self.offset}; with {self.images} images it must stay below {FRESH_OFFSET}, where the images begin that no search uses")
        check_similarity(self.similarity, "protocol.similarity")
        given = [self._share(c) if isinstance(c, float) and 0 < c < 1 else c for c in self.fidelities]
        counts = [*(c for c in given if c is not None), self.images]
        if any(not isinstance(c, int) or c < 2 for c in counts) or counts != sorted(set(counts)):
            raise ValueError(
                f"protocol.fidelities is {list(self.fidelities)!r}; give ascending numbers of images, from 2 to less than protocol.images ({self.images}), "
                "or shares of it, such as 0.5"
            )
        object.__setattr__(self, "fidelities", tuple(counts[:-1]))

    def _share(self, share: float) -> int | None:
        """So many images, up to the next whole batch; None where that is all of them or too few to have an FID."""
        images = self.batch * math.ceil(share * self.images / self.batch)
        return images if 2 <= images < self.images else None

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of images that candidates are compared at, ascending."""
        return (*(int(c) for c in self.fidelities), self.images)

    def batches(self, fresh: bool = False, first: int = 0, last: int | None = None) -> list[list[int]]:
        """Indices of images `first` to before `last` (all by default), by batch; fresh ones are used by no search."""
        start = self.offset + (FRESH_OFFSET if fresh else 0)
        end = self.images if last is None else last
        return [list(range(start + i, start + min(i + self.batch, end))) for i in range(first, end, self.batch)]
