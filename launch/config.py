"""Hydra configuration to typed, validated objects: the only place that knows both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from dato.strategy import Step, Strategy
from search.data import DataSpec
from search.evaluate import EvaluatorSpec, Protocol
from search.models import ModelSpec
from search.nsga2 import Nsga2
from search.objectives import Objectives
from search.plan import SearchPlan
from search.sources import read_given
from search.space import SearchSpace
from search.steady import SteadyNsga2
from search.surrogate import Surrogate

CONF = Path(conf.__file__).parent
_NO_RESULT_KEYS = ("output", "restart", "cluster", "mlflow", "registry")
"""Keys that change where and how fast a search runs, and not what it finds: no part of its identity."""


_PLAN_KEYS = (
    "generations", "population", "mode", "latency", "max_candidates", "max_minutes", "max_device_hours", "stalled", "promoted_ranks", "winner_speedup",
)  # fmt: skip


class ConfigError(ValueError):
    """A configuration that cannot be: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything `dato search` needs, built and validated.

    Attributes:
        raw: The resolved configuration as plain data.
        search_id: Model, data and a digest of every key that changes results.
    """

    raw: dict[str, Any]
    search_id: str
    evaluator: EvaluatorSpec
    space: SearchSpace
    plan: SearchPlan
    folder: Path

    def algorithm(self) -> Nsga2:
        """The algorithm in its first state. Raises where the strategies to begin with cannot be read."""
        s = self.raw["search"]
        kind = SteadyNsga2 if self.plan.mode == "steady" else Nsga2
        return kind(
            space=self.space,
            population=self.plan.population,
            seed=self.raw["seed"],
            operators=s["operators"],
            objectives=self.plan.objectives.count,
            given=read_given(s["warm_start"], self.plan.population),
            screen=Surrogate(seed=self.raw["seed"]) if s["surrogate"] else None,
        )

    @property
    def ledger_path(self) -> Path:
        """The search's ledger."""
        return self.folder / "ledger.jsonl"


def compose_config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration `name` with command-line overrides. Raises `ConfigError`."""
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ConfigError(f"{bad[0]!r} is not an override; write key=value, such as seed=1 or model=sd15")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            found = compose(name, overrides=list(overrides))
        data = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{_explain(error)}\nallowed keys and groups are in {CONF / (name + '.yaml')}") from None
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


def _explain(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("    full_key: \n")]
    return "; ".join(lines[:4])


def _space(steps: int, raw: dict[str, Any]) -> SearchSpace:
    given = dict(raw)
    if given["fixed_depths"] is not None:
        given["fixed_depths"] = [step.cache_depth for step in _fitted(given["fixed_depths"], steps)]
    ratios = given["fixed_ratios"]
    if ratios is not None:
        number = isinstance(ratios, int | float) and not isinstance(ratios, bool)
        given["fixed_ratios"] = [ratios] * steps if number else [step.prune_ratio for step in _fitted(ratios, steps)]
    try:
        given["frozen"] = {int(i): Step(depth, ratio) for i, depth, ratio in given["frozen"]}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"space.frozen is {raw['frozen']!r} ({error}); write [step, depth, ratio] for each step, such as [[0, 12, 0.0]]") from None
    return SearchSpace(steps=steps, **given)


def _fitted(source: str, steps: int) -> Strategy:
    strategy = Strategy.load(source)
    return strategy if len(strategy) == steps else strategy.resample(steps)


def _check_cluster(cluster: dict[str, Any]) -> None:
    workers, least = cluster["workers"], cluster["min_workers"]
    if workers is None and cluster["address"] is None:
        raise ConfigError("cluster.workers is null, which only a running cluster allows (cluster.address); give at least 1")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ConfigError(f"cluster.workers is {workers!r}; give at least 1" + (", or null for as many as there is room for" if cluster["address"] else ""))
    if least is not None and (not isinstance(least, int) or least < 1 or least > (workers or least)):
        raise ConfigError(f"cluster.min_workers is {least!r}; give 1 to {workers or 'any number'}, or null for all workers")
    for key in ("cpus", "gpus", "join_s"):
        if not isinstance(cluster[key], int | float) or cluster[key] < 0:
            raise ConfigError(f"cluster.{key} is {cluster[key]!r}; give a number of at least 0")
    if cluster["code"] not in ("installed", "ship"):
        raise ConfigError(f"cluster.code is {cluster['code']!r}; allowed are installed and ship")


def build(raw: dict[str, Any]) -> SearchConfig:
    """Typed objects from a resolved `search` configuration. Raises ValueError subclasses with what is allowed."""
    identity = json.dumps({k: v for k, v in raw.items() if k not in _NO_RESULT_KEYS}, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    try:
        model, data = ModelSpec(**raw["model"]), DataSpec(**raw["data"])
        protocol = Protocol(**raw["protocol"])
        space = _space(model.steps, raw["space"])
        s = raw["search"]
        objectives = Objectives(**{k: s[k] for k in ("score_weight", "max_fid", "max_latency_ms", "min_speedup")})
        plan = SearchPlan(objectives=objectives, **{k: s[k] for k in _PLAN_KEYS})
        evaluator = EvaluatorSpec(model=model, data=data, protocol=protocol, threads=raw["cluster"]["threads"])
    except TypeError as error:
        raise ConfigError(f"a value in the configuration has the wrong type ({error}); see the comments in {CONF}") from None
    if raw["mlflow"]["children"] not in ("all", "front", "none"):
        raise ConfigError(f"mlflow.children is {raw['mlflow']['children']!r}; allowed are all, front and none")
    if s["engine"] not in ("ray", "tune"):
        raise ConfigError(f"search.engine is {s['engine']!r}; allowed are ray and tune")
    if s["engine"] == "tune" and (plan.mode != "steady" or s["surrogate"]):
        raise ConfigError("search.engine=tune searches without generations or a surrogate; set search.mode=steady and search.surrogate=false")
    if plan.mode == "steady" and s["surrogate"]:
        raise ConfigError("search.surrogate screens generations; set search.mode=generational or search.surrogate=false")
    _check_cluster(raw["cluster"])
    if urlsplit(raw["mlflow"]["uri"] or "").password:
        raise ConfigError("mlflow.uri holds a password, which would be written into the ledger; leave mlflow.uri null and set the environment variable MLFLOW_TRACKING_URI")
    search_id = f"{model.name}-{data.name}-{digest}"
    return SearchConfig(
        raw=raw, search_id=search_id, evaluator=evaluator, space=space, plan=plan, folder=Path(raw["output"]).absolute() / search_id
    )
