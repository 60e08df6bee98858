"""A stand-in for evaluating strategies, fitted to recorded evaluations: lets searches be compared without generating images."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from dato.strategy import Strategy
from launch.config import ConfigError
from search.ledger import read_ledger
from search.optimize.description import SAMPLER_PLACES, sampler_place, step_arrays
from search.records import UNACCELERATED

SCHEMA, OLDER = "dato.evaluations/2", "dato.evaluations/1"
WEIGHT = 8.0
"""Of what the whole run has beside what its steps do, in scaled descriptions: few numbers beside many."""


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """Every measured strategy of finished or running searches of one protocol, with its FID and latency. Raises `ConfigError`."""
    rows: dict[str, dict[str, Any]] = {}
    protocols, plain, steps = set(), None, 0
    for folder in folders:
        if not (folder / "ledger.jsonl").is_file():
            raise ConfigError(f"{folder} holds no ledger.jsonl; give folders of searches")
        record = read_ledger(folder / "ledger.jsonl")
        # Batches, intervals and what else is measured change no FID.
        protocol = {k: v for k, v in record.config["protocol"].items() if k not in ("batch", "bootstrap", "interval_groups", "similarity")}
        protocols.add(json.dumps([record.config["model"], record.config["data"], protocol], sort_keys=True))
        for candidate, m in [*record.evaluated(), *record.baselines.values()]:
            rows[candidate.strategy.digest] = {"strategy": Strategy.document(replace(candidate.strategy, provenance={})), "fid": m.fid, "latency_ms": m.latency_ms}
        plain, steps = record.baselines[UNACCELERATED][1], len(record.baselines[UNACCELERATED][0].strategy)
    if len(protocols) != 1 or plain is None:
        raise ConfigError(f"the searches have {len(protocols)} different models or protocols; give searches of one, whose FIDs compare")
    config = json.loads(protocols.pop())
    return {"schema": SCHEMA, "model": config[0]["name"], "images": plain.images, "plain_fid": plain.fid, "steps": steps, "evaluations": list(rows.values())}


def description(strategy: Strategy, grid: int) -> np.ndarray:
    """What each step does, on a grid of relative time, and what the whole run has, the last `WHOLE` numbers.

    Nothing that follows from several steps is in it: `search.optimize.surrogate` must find that out by itself.
    """
    steps = step_arrays(strategy, grid)
    full, replay, kept = steps.full, steps.replay, 1 - steps.ratio
    order = np.where(full, 0, steps.order)
    whole = [np.log(len(strategy)), *np.eye(SAMPLER_PLACES)[sampler_place(strategy)]]
    return np.concatenate([full, replay, np.where(full, kept, 0), np.where(full | replay, 0, kept), steps.alone, order, whole]).astype(float)


WHOLE = 1 + SAMPLER_PLACES


def read_evaluations(path: Path) -> dict[str, Any]:
    """What `collect` made. Raises `ConfigError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"evaluations is {str(path)!r}, which cannot be read as JSON ({error}); make it with dato bench search collect=<search folders>") from None
    if data.get("schema") == OLDER:
        rows = [{**row, "strategy": {"steps": [{"cache_depth": d, "prune_ratio": r} for d, r in row["steps"]]}} for row in data["evaluations"]]
        return {**data, "steps": len(rows[0]["steps"]), "evaluations": rows}
    if data.get("schema") != SCHEMA:
        raise ConfigError(f"{path} has schema {data.get('schema')!r}; this version reads {SCHEMA!r}: make it again with dato bench search collect=<search folders>")
    return dict(data)


def recorded_strategies(path: Path) -> list[tuple[Strategy, float]]:
    """Strategies that `collect` found, with their FIDs. Raises `ConfigError`."""
    return [(_strategy(row), row["fid"]) for row in read_evaluations(path)["evaluations"]]


class Landscape:
    """FID of any strategy: a Gaussian process on `description`, in log FID, fitted to recorded evaluations.

    Args:
        path: As `collect` makes it.

    Attributes:
        images: Images that the recorded FIDs were measured on.
        recorded: The recorded strategies.
        length_scale: Of the fitted kernel, in scaled descriptions.
        held_out: How well a fit to nine tenths predicts the last tenth: R2 in log FID, and rank correlation.
    """

    def __init__(self, path: Path) -> None:
        data = read_evaluations(path)
        self.images, self.plain_fid, self.steps = data["images"], data["plain_fid"], int(data["steps"])
        strategies = [_strategy(row) for row in data["evaluations"]]
        self._grid = max(map(len, strategies))
        rows, target = self._described(strategies), np.log([row["fid"] for row in data["evaluations"]])
        kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(15.0, (1.0, 1e3), nu=1.5) + WhiteKernel(1e-3, (1e-6, 1e-1))
        model = make_pipeline(StandardScaler(), FunctionTransformer(_weighed), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound is a flat direction
            guessed = cross_val_predict(model, rows, target, cv=KFold(10, shuffle=True, random_state=0))
            self._model = model.fit(rows, target)
        self.recorded = strategies
        self.length_scale = float(model[-1].kernel_.k1.k2.length_scale)
        ranks = [np.argsort(np.argsort(v)) for v in (guessed, target)]
        residual = float(np.sum((guessed - target) ** 2) / np.sum((target - target.mean()) ** 2))
        self.held_out = {"evaluations": len(target), "r2": 1 - residual, "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1])}

    def scaled(self, strategies: Sequence[Strategy]) -> np.ndarray:
        """(N, features) descriptions, each feature with mean 0 and deviation 1 over the recorded strategies."""
        return np.asarray(self._model[:-1].transform(self._described(strategies)))

    def fid(self, strategies: Sequence[Strategy]) -> np.ndarray:
        """(N,) FIDs on `images` images."""
        return np.exp(self._model.predict(self._described(strategies)))

    def _described(self, strategies: Sequence[Strategy]) -> np.ndarray:
        return np.array([description(s, self._grid) for s in strategies])


def _weighed(rows: np.ndarray) -> np.ndarray:
    found = rows.copy()
    found[:, -WHOLE:] *= WEIGHT
    return found


class SampledImages:
    """What a FID on so many images is off by, in FID points: the same for every search that looks at the same images.

    All strategies share prompts and seeds, and what they share moves no front: an error is that of the difference to the
    unaccelerated pipeline. Similar strategies make similar images, so it is a smooth function of what the steps do: a draw of a
    Gaussian process with the kernel of the landscape (which found no noise of single strategies beside it), by random Fourier
    features (Rahimi and Recht, NIPS 2007), less its value at the unaccelerated pipeline. Disjoint images have independent errors,
    of a variance that falls with their number.

    Args:
        landscape: Whose kernel it is.
        spread: Standard deviation of the difference to the unaccelerated pipeline between sets of 100 images, the mean over the
            recorded strategies.
        seed: Of the images.
    """

    FEATURES = 1000

    def __init__(self, landscape: Landscape, spread: float, seed: int) -> None:
        self._landscape, self._seed = landscape, seed
        chance = np.random.default_rng([seed, 0])
        size = landscape.scaled([Strategy.full(landscape.steps)]).shape[1]
        # The spectral density of a Matern kernel with nu = 1.5 is a multivariate t distribution of 3 degrees of freedom.
        heavy = np.sqrt(3 / chance.chisquare(3, self.FEATURES))
        self._waves = chance.normal(size=(size, self.FEATURES)) * heavy / landscape.length_scale
        self._phases = chance.uniform(0, 2 * np.pi, self.FEATURES)
        self._plain = self._basis([Strategy.full(landscape.steps)])
        rows = self._basis(landscape.recorded) - self._plain
        self._scale = spread / float(np.sqrt((rows**2).sum(1).mean()))

    def error(self, strategies: Sequence[Strategy], first: int, images: int) -> np.ndarray:
        """(N,) errors on the `images` images from number `first` on, FID points."""
        weights = np.random.default_rng([self._seed, 1 + first]).normal(size=self.FEATURES)
        return (self._basis(strategies) - self._plain) @ weights * self._scale * (100 / images) ** 0.5

    def _basis(self, strategies: Sequence[Strategy]) -> np.ndarray:
        return np.sqrt(2 / self.FEATURES) * np.cos(self._landscape.scaled(strategies) @ self._waves + self._phases)


def _strategy(row: dict[str, Any]) -> Strategy:
    return Strategy.from_document(row["strategy"], where="the recorded evaluations")
