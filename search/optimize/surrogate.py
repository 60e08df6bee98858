"""A model of a search's objectives, learnt from its own results: picks which offspring are evaluated, before anything is generated.

Latency is a sum over calls, so a few results price every strategy; FID is what has to be learnt. An offspring is worth what it is
expected to add to the hypervolume.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.stats import norm
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dato.strategy import FULL, Strategy
from search.optimize.description import SAMPLER_PLACES, sampler_place, step_arrays

_BUMPS, _WIDTH, _FAR = 5, 0.18, 1e-12
"""Bumps over a run, and their width in runs; the least weight keeps a run of two steps, far from most bumps, from being divided by zero."""
_WHOLE, _STRESS = 1 + SAMPLER_PLACES, 2.0
"""How many features are of the whole run, the last ones, and their weight: there are few beside those of its parts."""
_BAD = 4.0
"""Times worse than a quarter of all, beyond which a FID is bad, however bad."""
LENGTHS, NOISES = (5.0, 10.0, 20.0, 40.0), (1e-3, 1e-2, 5e-2)
"""Length scales, in features of deviation 1, and shares of noise that the Gaussian process is chosen from."""


def features(strategy: Strategy) -> np.ndarray:
    """(F,) what a run does early, midway and late, whatever its number of steps.

    Each of these, averaged by five bumps over the run: full calls, replays, depth of shallow calls, calls since the last full one
    and its logarithm, calls since the last one that computed anything, tokens kept by full and by shallow calls, the conditional half
    alone, the order of what is reused, and calls since the unconditional half was computed, where it is used. Ages are in twentieths
    of the run. Then the extremes and mean squares of the first two ages, and of the whole run the logarithm of its number of steps
    and its sampler. So few numbers are learnt from a dozen results; what single steps do is not.
    """
    steps = step_arrays(strategy)
    depth, alone, full, replay = steps.depth, steps.alone, steps.full, steps.replay
    kept = np.where(replay, 1.0, 1 - steps.ratio)
    full[0], replay[0] = True, False  # the first call has nothing to reuse
    shallow = ~full & ~replay
    order = np.where(full, 0, steps.order)
    part = 20 / len(strategy)
    age, lag = part * _since(full), part * _since(~replay)
    unconditional = np.where(alone, 0, part * _since(~replay & ~alone))
    place = np.linspace(0, 1, len(strategy)) if len(strategy) > 1 else np.array([0.5])
    bumps = np.exp(-(((place[:, None] - np.linspace(0, 1, _BUMPS)) / _WIDTH) ** 2)) + _FAR
    bumps /= bumps.sum(0)
    level = np.where(shallow, np.where(depth < FULL, depth / FULL, 1 + np.log(np.maximum(depth, 1) / FULL)), 0)  # of deep models beyond 1, ever slower
    rows = np.array(
        [full, replay, level, age, np.log1p(age), lag, np.maximum(lag - part, 0), np.where(full, kept, 0), np.where(shallow, kept, 0), alone, order, unconditional], dtype=float
    )
    sums = [age.max(), lag.max(), (age**2).mean(), (lag**2).mean(), full.mean(), replay.mean()]
    return np.concatenate([(rows @ bumps).ravel(), sums, [np.log(len(strategy))], _sampler(strategy)])


def _sampler(strategy: Strategy) -> np.ndarray:
    return np.eye(SAMPLER_PLACES)[sampler_place(strategy)]


def _since(happens: np.ndarray) -> np.ndarray:
    """(steps,) steps since the last one at which it happens."""
    places = np.arange(len(happens))
    return (places - np.maximum.accumulate(np.where(happens, places, 0))).astype(float)


def work(strategy: Strategy, depths: Sequence[int]) -> np.ndarray:
    """(F,) what latency is linear in: halves computed at each depth, the sums of their kept tokens and of its squares, and calls by sampler."""
    steps = step_arrays(strategy)
    depth, kept, halves = steps.depth, 1 - steps.ratio, np.where(steps.alone, 0.5, 1.0)
    depth[0] = FULL
    found = [[halves[depth == d].sum(), (halves * kept)[depth == d].sum(), (halves * kept**2)[depth == d].sum()] for d in depths]
    return np.concatenate([np.ravel(found), len(strategy) * _sampler(strategy)])


class Surrogate:
    """Learns objectives from strategies, and tells how much each of others is expected to add to the hypervolume.

    log FID: the mean of extremely randomised trees and a Gaussian process on `features`, with the process's uncertainty; its kernel
    is the likeliest of a fixed few, so that no optimiser makes a repeated search differ. Latency: a ridge regression on `work`.
    What exceeds limits is learnt as a worse FID. Where there is one objective only, it is learnt as FID is.

    Args:
        surplus: Offspring made for each one evaluated.
        least: Results needed before it tells anything.
        most: Results that it learns from, the newest.
        seed: Of the trees.
    """

    def __init__(self, *, surplus: int = 20, least: int = 8, most: int = 400, seed: int = 0) -> None:
        if surplus < 1 or least < 2 or most < least:
            raise ValueError(f"surplus is {surplus}, least {least}, most {most}; give surplus of at least 1, least of at least 2, and most of no less than it")
        self.surplus, self._least, self._seed = surplus, least, seed
        self._told: deque[tuple[Strategy, tuple[float, ...]]] = deque(maxlen=most)
        self._rows: dict[str, np.ndarray] = {}
        self._memory: tuple[_Fid, Any] | None = None

    def learn(self, strategy: Strategy, values: tuple[float, ...], violation: float = 0.0) -> None:
        """Take in a result; objectives must be above 0, as FID and latency are. The first is raised by what limits are exceeded."""
        self._told.append((strategy, (values[0] * math.exp(min(violation, 50.0)), *values[1:])))
        self._memory = None

    @property
    def ready(self) -> bool:
        """Whether there are results enough."""
        return len(self._told) >= self._least

    def choose(self, strategies: Sequence[Strategy], count: int, *, pending: Sequence[Strategy] = (), bounds: tuple[float, float] | None = None) -> list[int]:
        """Numbers of the `count` most promising, the best first: each as if those before it had given what is predicted, and were known.

        Args:
            strategies: To choose from.
            count: How many.
            pending: Being evaluated: taken as predicted.
            bounds: FID and latency beyond which nothing is gained; None for the worst of the results.
        """
        values = np.array([v for _, v in self._told])
        all_mean, scale, all_price = self._moments([*pending, *strategies])
        first = len(pending)
        for k in range(first):
            _learn_place(scale, k)
        fids = np.append(values[:, 0], all_mean[:first])
        prices = np.append(values[:, 1] if values.shape[1] > 1 else np.zeros(len(values)), all_price[:first])
        mean, scale, price = all_mean[first:], scale[first:, first:], all_price[first:]
        top = (float(values[:, 0].max()), 1.0) if values.shape[1] == 1 else bounds or (float(values[:, 0].max()), float(values[:, 1].max()))
        beyond = np.maximum(mean / top[0] - 1, 0) + np.maximum(price / top[1] - 1, 0)
        chosen: list[int] = []
        for _ in range(min(count, len(strategies))):
            spread = mean * np.sqrt(np.clip(np.diag(scale), 0, None))
            # Rounded, so that the last bits of another machine's arithmetic choose nothing.
            gain = np.round(improvement(fids, prices, mean, spread, price, top) / (top[0] * top[1]), 9)
            gain[chosen] = -1.0
            best = int(np.lexsort((np.round(beyond, 9), -gain))[0])
            chosen.append(best)
            fids, prices = np.append(fids, mean[best]), np.append(prices, price[best])
            _learn_place(scale, best)
        return chosen

    def predict(self, strategies: Sequence[Strategy]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) FIDs, their standard deviations, and latencies, in the results' units; with one objective, that and zeros."""
        mean, covariance, price = self._moments(strategies)
        return mean, mean * np.sqrt(np.clip(np.diag(covariance), 0, None)), price

    def _moments(self, strategies: Sequence[Strategy]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) FIDs, the (N, N) covariance of their logarithms, and (N,) latencies."""
        if self._memory is None:
            values = np.array([v for _, v in self._told])
            rows = self._described([s for s, _ in self._told])
            target = np.log(np.maximum(values[:, 0], 1e-6))
            # How bad the bad ones are would stretch the scale on which the good ones differ.
            target = np.minimum(target, np.quantile(target, 0.25) + math.log(_BAD))
            self._memory = _Fid(rows, target, self._seed), None if values.shape[1] == 1 else values[:, 1]
        fid, prices = self._memory
        mean, covariance = fid.predict(self._described(strategies))
        return np.exp(mean), covariance, np.zeros(len(strategies)) if prices is None else self._priced(prices, strategies)

    def _described(self, strategies: Sequence[Strategy]) -> np.ndarray:
        return np.array([self._rows.setdefault(s.digest, features(s)) if s.digest not in self._rows else self._rows[s.digest] for s in strategies])

    def _priced(self, prices: np.ndarray, strategies: Sequence[Strategy]) -> np.ndarray:
        known = [s for s, _ in self._told]
        depths = sorted({step.cache_depth for s in [*known, *strategies] for step in s} | {FULL})
        model = make_pipeline(StandardScaler(), Ridge(1e-3)).fit(np.array([work(s, depths) for s in known]), prices)
        return np.maximum(model.predict(np.array([work(s, depths) for s in strategies])), 0.5 * prices.min())


class _Fid:
    """A fitted model of log FID."""

    def __init__(self, rows: np.ndarray, target: np.ndarray, seed: int) -> None:
        self._varies = rows.std(0) > 1e-9
        self._varies[0] |= not self._varies.any()
        self._weights = np.where(np.arange(rows.shape[1]) < rows.shape[1] - _WHOLE, 1.0, _STRESS)[self._varies]
        varying = rows[:, self._varies]
        self._trees = ExtraTreesRegressor(n_estimators=100, min_samples_leaf=2, random_state=seed).fit(varying, target)
        self._scale = StandardScaler().fit(varying)
        scaled, size = self._scale.transform(varying) * self._weights, max(float(target.std()), 1e-9)
        unit, best = (target - target.mean()) / size, -np.inf
        for length in LENGTHS:
            shape = Matern(length, nu=1.5)(scaled)
            for noise in NOISES:
                factor = np.linalg.cholesky(shape + noise * np.eye(len(unit)))
                whitened = solve_triangular(factor, unit, lower=True)
                amplitude = max(float(whitened @ whitened) / len(unit), 1e-12)  # the likeliest one, in closed form
                likelihood = -0.5 * len(unit) * math.log(amplitude) - float(np.log(np.diag(factor)).sum())
                if round(likelihood, 6) > best:
                    best, self._stretch, kernel = round(likelihood, 6), math.sqrt(amplitude), Matern(length, nu=1.5) + WhiteKernel(noise)
        self._process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(scaled, target)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) expected values, and their (N, N) covariance."""
        varying = rows[:, self._varies]
        mean, covariance = self._process.predict(self._scale.transform(varying) * self._weights, return_cov=True)
        return (mean + self._trees.predict(varying)) / 2, covariance * self._stretch**2


def _learn_place(covariance: np.ndarray, place: int) -> None:
    """Condition a covariance, in place, on a value at one of its places: those that resemble it are less uncertain then."""
    column = covariance[:, place].copy()
    if column[place] > 0:
        covariance -= np.outer(column, column) / column[place]


def improvement(fids: np.ndarray, prices: np.ndarray, mean: np.ndarray, spread: np.ndarray, price: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """(N,) expected growth of the hypervolume by strategies of known latency and normally distributed FID.

    With the latency known, the expected hypervolume improvement of two objectives is a sum of one-dimensional expected
    improvements (Jones et al., 1998), one over each step of the front, times the step's width.

    Args:
        fids: (M,) of the results.
        prices: (M,) their latencies.
        mean: (N,) expected FIDs.
        spread: (N,) their standard deviations.
        price: (N,) latencies.
        bounds: FID and latency that the hypervolume is measured from.
    """
    edges, levels = [0.0], [bounds[0]]
    for i in np.lexsort((fids, prices)):
        if prices[i] < bounds[1] and fids[i] < levels[-1]:
            edges.append(float(prices[i]))
            levels.append(float(fids[i]))
    edges.append(bounds[1])
    gain, spread = np.zeros(len(mean)), np.maximum(spread, 1e-9)
    for low, high, level in zip(edges, edges[1:], levels, strict=False):
        z = (level - mean) / spread
        gain += np.clip(high - np.maximum(low, price), 0, None) * spread * (z * norm.cdf(z) + norm.pdf(z))
    return gain
