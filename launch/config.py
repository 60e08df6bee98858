"""Hydra configuration to typed, validated objects: the only place that knows both."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import conf
from dato.mlflow_store import StoreError, check_address
from dato.sources import holds_credentials
from dato.strategy import Step, Strategy
from launch.keys import check_keys
from launch.overrides import OverrideError, prepare
from search.data.datasets import DataSpec
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.pipelines import ModelSpec
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.sources import read_given
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.objectives import Objectives
from search.optimize.space import SearchSpace
from search.optimize.surrogate import Surrogate
from search.optimize.winners import tolerance_of
from search.publish.strategies import check_names
from search.records import is_count
from search.run.settings import SearchPlan

CONF = Path(conf.__file__).parent
_NO_RESULT_KEYS = ("output", "fresh_start", "cluster", "mlflow", "registry")
"""Keys that change where and how fast a search runs, and not what it finds: no part of its identity."""


_PLAN_KEYS = (
    "generations", "population", "mode", "latency", "max_candidates", "max_minutes", "max_device_hours", "patience", "promote_ranks", "winner_speedup",
    "winner_speedups", "max_fresh_images",
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

    def algorithm(self) -> Nsga2 | AsynchronousNsga2:
        """The algorithm in its first state. Raises where the strategies to begin with cannot be read."""
        s = self.raw["search"]
        kind = AsynchronousNsga2 if self.plan.mode == "asynchronous" else Nsga2
        return kind(
            space=self.space,
            population=self.plan.population,
            seed=self.raw["seed"],
            operators=s["operators"],
            objectives=self.plan.objectives.count,
            given=read_given(s["warm_start"], self.plan.population),
            screen=partial(Surrogate, seed=self.raw["seed"]) if s["surrogate"] else None,
        )

    @property
    def ledger_path(self) -> Path:
        """The search's ledger."""
        return self.folder / "ledger.jsonl"


def compose_config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration `name` with command-line overrides. Raises `ConfigError`."""
    groups = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in sorted(CONF.iterdir()) if p.is_dir() and not p.name.startswith("_")}
    sections = [str(k) for k in OmegaConf.load(CONF / f"{name}.yaml") if k != "defaults"] + list(groups)
    try:
        overrides = prepare(overrides, groups, sections)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            found = compose(name, overrides=overrides)
        data = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
    except OverrideError as error:
        raise ConfigError(str(error)) from None
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(f"{key} is not given; set {key}=<{_comment(key)}>") from None
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{_explain(error)}\nallowed keys and groups are in {CONF / (name + '.yaml')}") from None
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


def _comment(key: str) -> str:
    """What the YAML files say of a key that a group leaves open."""
    section, _, inner = key.rpartition(".")
    for path in sorted((CONF / section).glob("*.yaml")) if section else []:
        found = re.search(rf"^{re.escape(inner)}:\s*\?\?\?\s*#\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return "value"


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
        frozen = [(i, Step(depth, ratio)) for i, depth, ratio in given["frozen"]]
        if not all(is_count(i) for i, _ in frozen) or len(dict(frozen)) < len(frozen):
            raise ValueError("a step is no integer, or is named twice")
        given["frozen"] = dict(frozen)
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
    if workers == 0:
        raise ConfigError(f"cluster.workers is {workers!r}; give at least 1" + (", or null for as many as there is room for" if cluster["address"] else ""))
    if least is not None and least > (workers or least):
        raise ConfigError(f"cluster.min_workers is {least!r}; give 1 to {workers or 'any number'}, or null for all workers")


def build(raw: dict[str, Any]) -> SearchConfig:
    """Typed objects from a resolved `search` configuration. Raises ValueError subclasses with what is allowed."""
    check_keys(raw)
    missing = [k for k in ("seed", "output", "model", "data", "protocol", "space", "search", "cluster", "mlflow", "registry") if k not in raw]
    if missing:
        raise ConfigError(f"the configuration has no {missing[0]}; it is of another version, or was changed by hand: see {CONF}")
    given = {k: v for k, v in raw.items() if k not in _NO_RESULT_KEYS}
    given["search"] = {k: v for k, v in raw["search"].items() if k != "retry_failed"}  # the same search, gone on with
    identity = json.dumps(given, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    try:
        model, data = ModelSpec(**raw["model"]), DataSpec(**raw["data"])
        protocol = EvaluationProtocol(**raw["protocol"])
        space = _space(model.steps, raw["space"])
        s = raw["search"]
        objectives = Objectives(**{k: s[k] for k in ("latency_weight", "max_fid", "max_latency_ms", "min_speedup", "max_distance")})
        plan = SearchPlan(objectives=objectives, tolerance=tolerance_of(raw), **{k: s[k] for k in _PLAN_KEYS})
        evaluator = EvaluatorSpec(model, data, protocol, ("fid",) if data.statistics else ("fid", "kid"), threads=raw["cluster"]["threads"])
    except KeyError as error:
        raise ConfigError(f"the configuration has no key {error}; it is of another version, or was changed by hand: see {CONF}") from None
    except TypeError as error:
        raise ConfigError(f"a value in the configuration has the wrong type ({error}); see the comments in {CONF}") from None
    if s["engine"] == "tune" and plan.mode != "asynchronous":
        raise ConfigError("search.engine=tune searches without generations; set search.mode=asynchronous, or search.engine=ray")
    if s["engine"] == "tune" and raw["cluster"]["latency_device"]:
        raise ConfigError("search.engine=tune measures latency on whatever device a trial is given; set cluster.latency_device=null, or search.engine=ray")
    if protocol.interval_groups < 2:
        raise ConfigError(f"protocol.interval_groups is {protocol.interval_groups}, but winners are chosen by intervals; give at least 2, such as 20")
    _check_cluster(raw["cluster"])
    if raw["mlflow"]["uri"] and holds_credentials(raw["mlflow"]["uri"]):
        raise ConfigError(
            "mlflow.uri holds a password or token, which would be written into the ledger; leave mlflow.uri null and set the environment variable "
            "MLFLOW_TRACKING_URI (or MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
        )
    if raw["mlflow"]["uri"]:
        try:
            check_address(raw["mlflow"]["uri"], "mlflow.uri")
        except StoreError as error:
            raise ConfigError(str(error)) from None
    if raw["mlflow"]["enabled"]:
        check_names(raw["registry"]["name"], key="registry.name")
    search_id = f"{model.name}-{data.name}-{digest}"
    return SearchConfig(
        raw=raw, search_id=search_id, evaluator=evaluator, space=space, plan=plan, folder=Path(raw["output"]).absolute() / search_id
    )
