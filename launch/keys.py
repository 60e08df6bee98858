"""What each configuration key may be, checked before anything is built: YAML and the command line take any type for any key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dato.files import shown


class KeyValueError(ValueError):
    """A key whose value is not allowed: the message says what was given and what is allowed."""


@dataclass(frozen=True)
class Key:
    """What a key may be. Ranges that depend on other keys are checked by whoever uses them.

    Attributes:
        kind: "integer" and "number" are no booleans; "section" is a mapping.
        least: Smallest number allowed.
        above: Numbers must be larger than this.
        most: Largest number allowed; what is larger is a slip of the hand, and would fill memory or overflow. No number is infinite.
        null: Whether null is allowed too.
        among: The texts allowed; empty for any that is not empty.
    """

    kind: Literal["text", "flag", "integer", "number", "list", "section"]
    least: float | None = None
    above: float | None = None
    most: float = 10**9
    null: bool = False
    among: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether a value may stand there."""
        if value is None:
            return self.null
        if self.kind in ("integer", "number"):
            if not isinstance(value, int if self.kind == "integer" else (int, float)) or isinstance(value, bool) or not abs(value) <= self.most:
                return False
            return (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        if self.kind == "text":
            return isinstance(value, str) and (value in self.among if self.among else bool(value))
        kinds: dict[str, type] = {"flag": bool, "list": list, "section": Mapping}
        return isinstance(value, kinds[self.kind])

    def __str__(self) -> str:
        null = ", or null" if self.null else ""
        if self.among:
            return f"allowed are {', '.join(self.among[:-1])} and {self.among[-1]}{null}"
        what = {"text": "a text", "flag": "true or false", "integer": "an integer", "number": "a number", "list": "a list, such as [a,b]", "section": "its keys"}[self.kind]
        if self.least is not None:
            what += f" of at least {self.least:g}"
        if self.above is not None:
            what += f" above {self.above:g}"
        if self.kind in ("integer", "number"):
            what += f", at most {self.most:,}" if self.least is not None or self.above is not None else f" of at most {self.most:,}"
        return f"give {what}{null}"


_COUNT = Key("integer", least=1, most=100_000)
_SECONDS = Key("number", above=0, most=10**8)
_TEXT, _OPTIONAL_TEXT, _FLAG, _LIST = Key("text"), Key("text", null=True), Key("flag"), Key("list")
_LIMIT = Key("number", above=0, null=True)
_IMAGES = 1_000_000  # search.data.datasets.FRESH_OFFSET: what comes after is kept for the winners

KEYS: dict[str, Key] = {
    "output": _TEXT,
    "seed": Key("integer", least=0, most=2**32 - 1),
    "fresh_start": _FLAG,
    "latency_from": _OPTIONAL_TEXT,
    "model.path": _TEXT,
    "model.name": _TEXT,
    "model.dtype": _TEXT,
    "model.device": _TEXT,
    "model.scheduler": _OPTIONAL_TEXT,
    "model.steps": Key("integer", least=1, most=1000),
    "model.guidance": Key("number", least=0),
    "model.height": Key("integer", least=8, most=65536, null=True),
    "model.width": Key("integer", least=8, most=65536, null=True),
    "data.name": _TEXT,
    "data.kind": _TEXT,
    **{f"data.{name}": _OPTIONAL_TEXT for name in ("prompts", "images", "classes", "labels", "template", "captions", "statistics")},
    "data.image_size": Key("integer", least=1, most=65536, null=True),
    "data.count": Key("integer", least=1, null=True),
    "data.num_reference_images": Key("integer", least=2, null=True),
    "data.on_unreadable": _TEXT,
    "protocol.images": Key("integer", least=2, most=_IMAGES),
    "protocol.fidelities": _LIST,
    "protocol.similarity": _LIST,
    "protocol.batch": _COUNT,
    "protocol.features": _TEXT,
    "protocol.interval_groups": Key("integer", least=0, most=100_000),
    "protocol.offset": Key("integer", least=0, most=_IMAGES - 2),
    "space.depths": _LIST,
    "space.ratios": _LIST,
    "space.depths_without_pruning": _LIST,
    "space.steps_per_gene": Key("integer", least=1, most=1000),
    "space.fixed_depths": _OPTIONAL_TEXT,
    "space.frozen": _LIST,
    "search.operators": Key("text", among=("stepwise", "paper")),
    "search.engine": Key("text", among=("ray", "tune")),
    "search.mode": Key("text", among=("generational", "asynchronous")),
    "search.population": Key("integer", least=4, most=100_000),
    "search.generations": _COUNT,
    "search.warm_start": _LIST,
    "search.latency": Key("text", among=("measured", "predicted")),
    "search.surrogate": _FLAG,
    "search.latency_weight": _LIMIT,
    "search.max_fid": _LIMIT,
    "search.max_latency_ms": _LIMIT,
    "search.min_speedup": _LIMIT,
    "search.max_distance": _LIMIT,
    "search.max_candidates": Key("integer", least=1, null=True),
    "search.max_minutes": _LIMIT,
    "search.max_device_hours": _LIMIT,
    "search.patience": Key("integer", least=1, null=True),
    "search.promote_ranks": _COUNT,
    "search.winner_speedup": _SECONDS,
    "search.winner_speedups": _LIST,
    "search.tolerance": Key("number", least=0, null=True),
    "search.max_fresh_images": Key("integer", least=2, most=_IMAGES, null=True),
    "search.deepcache_interval": Key("integer", least=1, most=1000),
    "search.retry_failed": _FLAG,
    "mlflow.enabled": _FLAG,
    "mlflow.uri": _OPTIONAL_TEXT,
    "mlflow.flush_s": Key("number", least=0),
    "mlflow.children": Key("text", among=("all", "front", "none")),
    "mlflow.experiment": _TEXT,
    "registry.name": _TEXT,
    "registry.replace": _FLAG,
    "cluster.address": _OPTIONAL_TEXT,
    "cluster.workers": Key("integer", least=0, most=100_000, null=True),
    "cluster.min_workers": Key("integer", least=1, most=100_000, null=True),
    "cluster.cpus": Key("number", least=0, most=100_000),
    "cluster.gpus": Key("number", least=0, most=10_000),
    "cluster.threads": Key("integer", least=1, most=10_000, null=True),
    "cluster.code": Key("text", among=("installed", "upload")),
    "cluster.latency_device": _OPTIONAL_TEXT,
    "cluster.wait_for_nodes_s": Key("number", least=0, most=10**8),
    "cluster.max_attempts": _COUNT,
    "cluster.batch_timeout_s": _SECONDS,
    "cluster.load_timeout_s": _SECONDS,
    "evaluation.images": Key("integer", least=2, most=_IMAGES),
    "evaluation.held_out": _FLAG,
    "evaluation.shard": _COUNT,
    "evaluation.samples": Key("integer", least=0, most=100_000),
    "evaluation.quoted": _OPTIONAL_TEXT,
    "evaluation.edit": Key("section", null=True),
    "rivals.fewer_steps": _LIST,
    "rivals.tomesd": _LIST,
    "rivals.deepcache": _LIST,
    "rivals.naive": _LIST,
    "ablation.caches": _LIST,
    "ablation.ratios": _LIST,
    "ablation.patches": _LIST,
    "figures.images": _COUNT,
    "figures.heat_maps": Key("integer", least=0, most=100_000),
}
FREE = ("space.fixed_ratios", "strategy", "evaluation.metrics")
"""Keys of several kinds, which whoever uses them checks."""
_SECTIONS = sorted({name.split(".")[0] for name in KEYS if "." in name})


def check_keys(raw: Mapping[str, Any]) -> None:
    """Check every key of a resolved configuration that `KEYS` knows. Raises `KeyValueError` naming the first that is not allowed."""
    for section in _SECTIONS:
        if section in raw and not isinstance(raw[section], Mapping):
            keys = ", ".join(name for name in KEYS if name.startswith(f"{section}."))
            raise KeyValueError(f"{section} is {shown(raw[section])}; it holds the keys {keys}: set these")
    for name, key in KEYS.items():
        section, _, inner = name.rpartition(".")
        values = raw.get(section) if section else raw
        if values is not None and (inner if section else name) in values:
            value = values[inner if section else name]
            if not key.allows(value):
                raise KeyValueError(f"{name} is {shown(value)}; {key}")
    for name, value in raw.items():
        _check_numbers(name, value)


def check_kinds(raw: Mapping[str, Any]) -> None:
    """Check what kind each value of a recorded configuration is, and no more: earlier versions had other ranges. Raises `KeyValueError`."""
    for name, key in KEYS.items():
        section, _, inner = name.rpartition(".")
        value = ((raw.get(section) or {}) if section else raw).get(inner if section else name)
        if value is not None and value != "" and not replace(key, least=None, above=None, most=_MOST, among=()).allows(value):
            raise KeyValueError(f"{name} is {shown(value)}, which is no {key.kind}")


def _check_numbers(name: str, value: Any, depth: int = 0) -> None:
    """Refuse numbers within lists, and of keys that are free, that nothing computes with."""
    if depth > _DEPTH:
        raise KeyValueError(f"{name} is nested deeper than any value; see its comment in conf")
    if isinstance(value, Mapping):
        for inner, one in value.items():
            _check_numbers(f"{name}.{inner}", one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check_numbers(name, one, depth + 1)
    elif isinstance(value, int | float) and not abs(value) <= _MOST:
        raise KeyValueError(f"{name} holds {shown(value)}; give finite numbers of at most {_MOST:,}")


_DEPTH, _MOST = 6, 10**12
"""Levels of a configuration, and the largest number of any key."""
