"""A model of a search's objectives, learnt from its own results: screens offspring before anything is generated.

Off unless asked for: a screened search sees fewer kinds of strategies, and what it saves depends on the model and data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dato.strategy import FULL, Strategy


def features(strategy: Strategy) -> np.ndarray:
    """A strategy as numbers: what each step does, how old its cache is then, and sums over the run."""
    depth = np.array([s.cache_depth for s in strategy])
    kept = np.array([1 - s.prune_ratio if s.cache_depth else 1.0 for s in strategy])
    full, replay = depth == FULL, depth == 0
    full[0], replay[0] = True, False  # the first call has nothing to reuse
    age, stale = 0, []
    for is_full in full:
        age = 0 if is_full else age + 1
        stale.append(age)
    staleness = np.array(stale, dtype=float)
    shallow = ~full & ~replay
    sums = [full.sum(), replay.sum(), staleness.sum(), staleness.max(), (staleness**2).sum(), kept[full].sum(), kept[shallow].sum()]
    return np.concatenate([full, replay, kept, staleness, sums]).astype(float)


class Surrogate:
    """Predicts objectives from strategies: the mean of extremely randomised trees and a ridge regression on `features`.

    Args:
        surplus: Offspring made for each one evaluated.
        least: Results needed before it predicts.
        seed: Of the trees.
    """

    def __init__(self, *, surplus: int = 5, least: int = 20, seed: int = 0) -> None:
        self.surplus, self._least, self._seed = surplus, least, seed
        self._rows: list[np.ndarray] = []
        self._values: list[tuple[float, ...]] = []

    def learn(self, told: Sequence[tuple[Strategy, tuple[float, ...]]]) -> None:
        """Take in results; objectives must be above 0, as FID and latency are."""
        for strategy, values in told:
            self._rows.append(features(strategy))
            self._values.append(values)

    def predict(self, strategies: Sequence[Strategy]) -> np.ndarray | None:
        """(N, objectives), in the objectives' units; None before `least` results."""
        if len(self._rows) < self._least:
            return None
        rows, values = np.array(self._rows), np.array(self._values)
        # FIDs spread over orders of magnitude; the good ones are what matters, so errors count relatively.
        target, wanted = np.log(np.maximum(values, 1e-6)), np.array([features(s) for s in strategies])
        trees = ExtraTreesRegressor(n_estimators=100, min_samples_leaf=2, random_state=self._seed).fit(rows, target)
        linear = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(rows, target)
        shape = (len(wanted), values.shape[1])
        return np.exp((trees.predict(wanted).reshape(shape) + linear.predict(wanted).reshape(shape)) / 2)
