"""The price of strategies in UNet MACs: the same on every machine, whatever else runs there."""

from __future__ import annotations

import numpy as np

from dato.sampler import SAMPLERS
from dato.strategy import FULL, Step, Strategy
from search.evaluate.geometry import geometry
from search.optimize.space import SearchSpace


class Costs:
    """UNet MACs of strategies of the embedded model, one image, in units of one full call of one half."""

    def __init__(self) -> None:
        shape = geometry("embedded")
        self._model = shape.costs()

    def run(self, strategy: Strategy) -> float:
        """Of a whole run; the pipeline's own sampler, PNDM, makes one call more than it has steps."""
        extra = 1 if strategy.sampler in (None, SAMPLERS["PLMS"]) else 0
        return self._model.strategy_macs(strategy, extra) / (2 * self._model.macs(Step(FULL)))

    def mean(self, space: SearchSpace, count: int = 2000) -> float:
        """Of uniformly random genomes: what a candidate's worth of budget is."""
        chance = np.random.default_rng(0)
        return float(np.mean([self.run(space.decode(chance.integers(0, space.upper + 1))) for _ in range(count)]))
