"""A stand-in for evaluating strategies, fitted to recorded evaluations: lets searches be compared without generating images."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dato.strategy import FULL, Strategy
from launch.config import ConfigError
from search.ledger import read_ledger
from search.records import UNACCELERATED

SCHEMA = "dato.evaluations/1"


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """Every measured strategy of finished or running searches of one protocol, with its FID and latency. Raises `ConfigError`."""
    rows: dict[str, dict[str, Any]] = {}
    protocols, plain = set(), None
    for folder in folders:
        if not (folder / "ledger.jsonl").is_file():
            raise ConfigError(f"{folder} holds no ledger.jsonl; give folders of searches")
        record = read_ledger(folder / "ledger.jsonl")
        # Batches, intervals and what else is measured change no FID.
        protocol = {k: v for k, v in record.config["protocol"].items() if k not in ("batch", "bootstrap", "interval_groups", "similarity")}
        protocols.add(json.dumps([record.config["model"], record.config["data"], protocol], sort_keys=True))
        for candidate, m in [*record.evaluated(), *record.baselines.values()]:
            steps = [[s.cache_depth, s.prune_ratio] for s in candidate.strategy]
            rows[candidate.strategy.digest] = {"steps": steps, "fid": m.fid, "latency_ms": m.latency_ms}
        plain = record.baselines[UNACCELERATED][1]
    if len(protocols) != 1 or plain is None:
        raise ConfigError(f"the searches have {len(protocols)} different models or protocols; give searches of one, whose FIDs compare")
    config = json.loads(protocols.pop())
    return {"schema": SCHEMA, "model": config[0]["name"], "images": plain.images, "plain_fid": plain.fid, "evaluations": list(rows.values())}


def description(strategy: Strategy) -> np.ndarray:
    """What each step does, and nothing that follows from several steps: `search.surrogate` must find that out by itself."""
    depth = np.array([s.cache_depth for s in strategy])
    kept = np.array([1 - s.prune_ratio for s in strategy])
    full, replay = depth == FULL, depth == 0
    return np.concatenate([full, replay, np.where(full, kept, 0), np.where(full | replay, 0, kept)]).astype(float)


def read_evaluations(path: Path) -> dict[str, Any]:
    """What `collect` made. Raises `ConfigError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"evaluations is {str(path)!r}, which cannot be read as JSON ({error}); make it with dato bench search collect=<search folders>") from None
    if data.get("schema") != SCHEMA:
        raise ConfigError(f"{path} has schema {data.get('schema')!r}; this version reads {SCHEMA!r}: make it again with dato bench search collect=<search folders>")
    return dict(data)


def recorded_strategies(path: Path) -> list[tuple[Strategy, float]]:
    """Strategies that `collect` found, with their FIDs. Raises `ConfigError`."""
    return [(_strategy(row["steps"]), row["fid"]) for row in read_evaluations(path)["evaluations"]]


class Landscape:
    """FID of any strategy: a Gaussian process on `description`, in log FID, fitted to recorded evaluations.

    Args:
        path: As `collect` makes it.

    Attributes:
        images: Images that the recorded FIDs were measured on.
        held_out: How well a fit to nine tenths predicts the last tenth: R2 in log FID, and rank correlation.
    """

    def __init__(self, path: Path) -> None:
        data = read_evaluations(path)
        self.images, self.plain_fid, self.steps = data["images"], data["plain_fid"], len(data["evaluations"][0]["steps"])
        strategies = [_strategy(row["steps"]) for row in data["evaluations"]]
        rows, target = np.array([description(s) for s in strategies]), np.log([row["fid"] for row in data["evaluations"]])
        kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(15.0, (1.0, 1e3), nu=1.5) + WhiteKernel(1e-3, (1e-6, 1e-1))
        model = make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound is a flat direction
            guessed = cross_val_predict(model, rows, target, cv=KFold(10, shuffle=True, random_state=0))
            self._model = model.fit(rows, target)
        ranks = [np.argsort(np.argsort(v)) for v in (guessed, target)]
        residual = float(np.sum((guessed - target) ** 2) / np.sum((target - target.mean()) ** 2))
        self.held_out = {"evaluations": len(target), "r2": 1 - residual, "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1])}

    def fid(self, strategies: Sequence[Strategy]) -> np.ndarray:
        """(N,) FIDs on `images` images."""
        return np.exp(self._model.predict(np.array([description(s) for s in strategies])))


def noise(strategy: Strategy, images: int, spread: float) -> float:
    """What a strategy's FID on so many images is off by: of spread x sqrt(100 / images), and always the same for the same strategy."""
    seed = int.from_bytes(hashlib.sha256(f"{strategy.digest} {images}".encode()).digest()[:8], "big")
    return float(np.random.default_rng(seed).normal(0.0, spread * (100 / images) ** 0.5))


def _strategy(steps: Sequence[Sequence[float]]) -> Strategy:
    entries = [{"cache_depth": d, "prune_ratio": r} for d, r in steps]
    return Strategy.from_json(json.dumps({"schema": "dato.strategy/1", "steps": entries}), where="the recorded evaluations")
