"""Hydra configuration to typed, validated objects: the only place that knows both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

import conf
from dato.files import written
from launch.overrides import ConfigError, prepare, unknown
from launch.schema import SCHEMAS, SECTIONS, EvaluationKeys, SearchKeys, explained, fields_of, groups_of, keys, register
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.sources import read_given
from search.fields import without_later
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.optimize.surrogate import Surrogate
from search.publish.strategies import check_names
from search.run.settings import SearchPlan

__all__ = ["CONF", "ConfigError", "SearchConfig", "build", "compose_config", "evaluation_keys"]

CONF = Path(conf.__file__).parent
_NO_RESULT_KEYS = ("output", "fresh_start", "cluster", "mlflow", "registry")
"""Keys that change where and how fast a search runs, and not what it finds: no part of its identity."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything `dato search` needs, built and validated.

    Attributes:
        raw: The resolved configuration as plain data, as the ledger keeps it.
        keys: The same as typed objects.
        search_id: Model, data and a digest of every key that changes results.
    """

    raw: dict[str, Any]
    keys: SearchKeys
    search_id: str
    evaluator: EvaluatorSpec
    space: SearchSpace
    plan: SearchPlan
    folder: Path

    def algorithm(self) -> Nsga2 | AsynchronousNsga2:
        """The algorithm in its first state. Raises where the strategies to begin with cannot be read."""
        search, seed = self.keys.search, self.keys.seed
        kind = AsynchronousNsga2 if self.plan.mode == "asynchronous" else Nsga2
        return kind(
            space=self.space,
            population=self.plan.population,
            seed=seed,
            operators=cast(Any, search.operators),  # one of those that there are
            objectives=self.plan.objectives.count,
            given=read_given(search.warm_start, self.plan.population),
            screen=partial(Surrogate, seed=seed) if search.surrogate else None,
        )

    @property
    def ledger_path(self) -> Path:
        """The search's ledger."""
        return self.folder / "ledger.jsonl"


def compose_config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration `name` with command-line overrides; within a command that Hydra runs, that of its own `--config-name`.

    Raises:
        ConfigError: An override or a value is not allowed.
    """
    with explain(name):
        words = prepare(name, overrides, choices())
        within = GlobalHydra.instance().is_initialized()
        register()
        with nullcontext() if within else initialize_config_dir(str(CONF), version_base="1.3"):
            return resolved(name, compose(HydraConfig.get().job.config_name if within else name, overrides=words))


def resolved(name: str, composed: Any) -> dict[str, Any]:
    """A composed configuration as plain data, without what it says to other commands. Raises `ConfigError` and Hydra's own errors."""
    data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(data, dict)
    for key in data:
        if key not in SECTIONS:
            raise ConfigError(unknown(name, str(key)))
    groups = groups_of(SCHEMAS[name])
    return {str(k): without_later(groups[k], v) if k in groups and isinstance(v, dict) else v for k, v in data.items() if k in fields_of(SCHEMAS[name])}


def choices(*more: Path) -> dict[str, list[str]]:
    """The choices of each configuration group, those of further folders included."""
    found: dict[str, set[str]] = {}
    for path in (p for folder in (CONF, *more) for p in folder.glob("[!_]*/*.yaml")):
        found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


@contextmanager
def explain(name: str) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise within into a `ConfigError` that names key, value and what is allowed."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        if type(error).__module__.split(".")[0] not in ("hydra", "omegaconf", "builtins"):
            raise
        raise ConfigError(_in_words(name, error)) from None


def _in_words(name: str, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if cause is not None and cause.full_key:
        key = re.sub(r"\[.*", "", str(cause.full_key))
        if isinstance(cause, MissingMandatoryValue):
            return f"{key} is not given; set {key}=<{explained(SCHEMAS[name])[key]}>"
        if isinstance(cause, ConfigKeyError) and key not in keys(name):
            return unknown(name, key)
        kind = keys(name).get(key)
        if isinstance(cause, ValidationError) and kind:
            return f"{key} is {written(cause.value)}; {kind}"
        if key in groups_of(SCHEMAS[name]):
            return f"{key} is {written(cause.value)}; it holds the keys {', '.join(k for k in keys(name) if k.startswith(key + '.'))}: set these"
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("    full_key: \n")]
    return f"{'; '.join(lines[:4])}\nkeys are in {CONF / 'README.md'}, and in --help"


def _typed(name: str, raw: Mapping[str, Any]) -> Any:
    """The objects of a resolved configuration, or of one that a ledger keeps. Raises ValueError subclasses with what is allowed."""
    schema, values = SCHEMAS[name], dict(raw)
    for section, group in groups_of(schema).items():
        given = raw.get(section, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{section} is {written(given)}; it holds the keys {', '.join(k for k in keys(name) if k.startswith(section + '.'))}: set these")
        for key in given:
            if f"{section}.{key}" not in keys(name):
                raise ConfigError(unknown(name, f"{section}.{key}"))
        for field in dataclasses.fields(group):
            if field.name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{section}.{field.name} is not given; set {section}.{field.name}=<{explained(group)[field.name]}>")
        values[section] = group(**given)
    return schema(**{key: value for key, value in values.items() if key in fields_of(schema)})


def build(raw: dict[str, Any]) -> SearchConfig:
    """Typed objects from a resolved `search` configuration. Raises ValueError subclasses with what is allowed."""
    found: SearchKeys = _typed("search", raw)
    search, cluster, protocol = found.search, found.cluster, found.protocol
    given = {k: v for k, v in raw.items() if k not in _NO_RESULT_KEYS}
    given["search"] = {k: v for k, v in raw.get("search", {}).items() if k != "retry_failed"}  # the same search, gone on with
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:10]
    if search.engine == "tune" and search.mode != "asynchronous":
        raise ConfigError("search.engine=tune searches without generations; set search.mode=asynchronous, or search.engine=ray")
    if search.engine == "tune" and cluster.latency_device:
        raise ConfigError("search.engine=tune measures latency on whatever device a trial is given; set cluster.latency_device=null, or search.engine=ray")
    if protocol.interval_groups < 2:
        raise ConfigError(f"protocol.interval_groups is {protocol.interval_groups}, but winners are chosen by intervals; give at least 2, such as 20")
    if cluster.workers == 0:
        raise ConfigError(f"cluster.workers is {cluster.workers!r}; give at least 1" + (", or null for as many as there is room for" if cluster.address else ""))
    if found.mlflow.enabled:
        check_names(found.registry.name, key="registry.name")
    search_id = f"{found.model.name}-{found.data.name}-{digest}"
    return SearchConfig(
        raw=raw,
        keys=found,
        search_id=search_id,
        evaluator=EvaluatorSpec(found.model, found.data, protocol, ("fid",) if found.data.statistics else ("fid", "kid"), threads=cluster.threads),
        space=found.space.build(found.model.steps, guided=found.model.guidance > 1),
        plan=search.plan(protocol.features),
        folder=Path(found.output).absolute() / search_id,
    )


def evaluation_keys(raw: dict[str, Any]) -> EvaluationKeys:
    """Typed objects from a resolved `evaluate` configuration. Raises ValueError subclasses with what is allowed."""
    found: EvaluationKeys = _typed("evaluate", raw)
    return found
