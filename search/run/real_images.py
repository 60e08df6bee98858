"""The real images' features, extracted by a worker: it has the device and the net, and the driver may have neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from search.metrics.feature_net import QualityError
from search.metrics.moments import Moments
from search.run.jobs import Job, Task
from search.run.pools import Pool


@dataclass(frozen=True)
class RealImagesOnWorker:
    """As `search.metrics.reference.RealImages`, by one worker of a pool.

    Attributes:
        pool: Whose evaluators have the real images' files, as preflight made sure, and a feature net.
    """

    pool: Pool

    def moments(self) -> tuple[Moments, list[str]]:
        """Their moments. Raises `QualityError` where no worker can read or extract them."""
        found: tuple[Moments, list[str]] = self._ask(Task.REAL_MOMENTS)
        return found

    def features(self) -> tuple[torch.Tensor, list[str]]:
        """(N, num_features) float32. Raises `QualityError` as for the moments."""
        found: tuple[torch.Tensor, list[str]] = self._ask(Task.REAL_FEATURES)
        return found

    def _ask(self, task: Task) -> Any:
        ((job, found),) = self.pool.map([Job("real images", [], [], task)])
        if found is None:
            raise QualityError(
                f"the features of the real images cannot be extracted: {job.errors[0]}; mend that, or give data.statistics (a .npz with mu and sigma) in their place"
            )
        return found
