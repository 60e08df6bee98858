"""The JSON document of a strategy: its schema, its content digest, and how older schemas become the present one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from dato.files import FileError, check_plain, parse_json, shown

SCHEMA = "dato.strategy/2"
"""Adds to schema 1 the sampler, and steps' guidance and order, and writes the complete call as "full"."""
SCHEMAS = ("dato.strategy/1", SCHEMA)
"""What is read as it stands; a strategy is written in the first that holds all of it, so that older versions read it too."""
_FIRST = {"cache_depth", "prune_ratio"}
"""What a step has in schema 1."""
FULL = 12
"""The cache depth that computes everything, of a model of however many units. A symbol, and since schema 1 in files: no model has a depth of this number."""
MAX_DEPTH = 999
"""The largest number that a cache depth may be; each model says which it has."""


class StrategyError(ValueError):
    """A strategy that cannot be: the message says what was given, what is allowed and what to do."""


def content_digest(document: Mapping[str, Any]) -> str:
    """``sha256:`` and 64 hex digits over all that a document holds but its schema and digest, the same however the JSON is laid out.

    It shows a file that was changed after it was written. It is no signature: who changes a file can also digest it anew.
    """
    content = {k: v for k, v in document.items() if k not in ("schema", "digest")} | {"provenance": native(document.get("provenance") or {}, "provenance")}
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write(document: Mapping[str, Any]) -> str:
    """JSON text of ``{"steps": [...], "provenance": {...}}`` and "sampler" where there is one; one step a line, with schema and digest."""
    schema, sampler = SCHEMAS[0], ""
    if document.get("sampler") is not None or any(set(step) - _FIRST or step["cache_depth"] > FULL for step in document["steps"]):
        schema = SCHEMA
        sampler = f'  "sampler": {json.dumps(document["sampler"])},\n' if document.get("sampler") is not None else ""
        document = {**document, "steps": [{**s, "cache_depth": "full" if s["cache_depth"] == FULL else s["cache_depth"]} for s in document["steps"]]}
    rows = ",\n".join(f"    {json.dumps(step)}" for step in document["steps"])
    notes = native(document.get("provenance"), "provenance")
    provenance = f',\n  "provenance": {_indented(notes)}' if notes else ""
    return f'{{\n  "schema": "{schema}",\n  "digest": "{content_digest(document)}",\n{sampler}  "steps": [\n{rows}\n  ]{provenance}\n}}\n'


def read(text: str, where: str) -> dict[str, Any]:
    """The document of JSON text: ``steps``, a list, in which the complete call is `FULL`, ``provenance``, a mapping, and ``sampler`` where there is one.

    Raises:
        StrategyError: No JSON, another schema, unknown keys, or a content that is not what its digest says.
    """
    if not isinstance(text, str):
        raise StrategyError(f"{where} is {shown(text)} of type {type(text).__name__}; give JSON text, or dato.Strategy.load a file")
    try:
        data = parse_json(text)
    except FileError as error:
        raise StrategyError(f"{where} cannot be read ({error}); expected JSON, an object with schema {SCHEMA!r}") from None
    return migrate(data, where)


def migrate(data: Any, where: str) -> dict[str, Any]:
    """`read` of JSON that is parsed already."""
    schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
    if isinstance(schema, str) and schema in MIGRATIONS:
        data, schema = MIGRATIONS[schema](data, where), SCHEMAS[0]
    elif not isinstance(data, dict) or schema not in SCHEMAS:
        reads, older = " and ".join(map(repr, SCHEMAS)), ", ".join(map(repr, MIGRATIONS))
        raise StrategyError(f"{where} has schema {shown(schema)}; this version reads {reads} (and the older {older}): export it again or update dato")
    allowed = ("schema", "digest", "steps", *(("sampler",) if schema == SCHEMA else ()), "provenance")
    unknown = sorted(set(data) - set(allowed))
    if unknown:
        raise StrategyError(f"{where} has the unknown keys {shown(unknown)}; allowed in {schema} are {', '.join(allowed[:-1])} and {allowed[-1]}")
    steps, notes = data.get("steps"), data.get("provenance", {})
    if not isinstance(steps, list) or not isinstance(notes, dict):
        raise StrategyError(f"{where}: steps must be a list of objects, and provenance, if given, an object")
    if "digest" in data and data["digest"] != content_digest(data):
        raise StrategyError(
            f"{where} was changed after it was written: its content has digest {content_digest(data)}, and it says {shown(data['digest'])}. Get it again from where it was exported; to use steps that you edited yourself, "
            "remove digest and provenance, which speak of the steps that were measured"
        )
    if schema != SCHEMA and any(isinstance(step, dict) and set(step) - _FIRST for step in steps):
        raise StrategyError(f"{where} has schema {schema!r}, whose steps have cache_depth and prune_ratio alone; write {SCHEMA!r} to give guidance and order")
    for i, step in enumerate(steps):
        depth = step.get("cache_depth") if schema != SCHEMA and isinstance(step, dict) else None
        if isinstance(depth, int) and depth > FULL:
            raise StrategyError(f"{where}, step {i}: cache_depth is {shown(depth)}; allowed in {schema} are the integers 0 to {FULL}; deeper ones, of transformers, are for {SCHEMA!r}")
    found = {"steps": steps, "provenance": notes}
    return {**found, "steps": _depths(steps, where), "sampler": data.get("sampler")} if schema == SCHEMA else found


def _depths(steps: list[Any], where: str) -> list[Any]:
    """Steps of schema 2 with its "full" as `FULL`."""
    found = []
    for i, step in enumerate(steps):
        depth = step.get("cache_depth") if isinstance(step, dict) else None
        if isinstance(depth, int) and depth == FULL:
            raise StrategyError(f'{where}, step {i}: cache_depth is {shown(depth)}; allowed in {SCHEMA} are "full" to compute everything, and integers from 0 but {FULL}, which meant that before')
        found.append({**step, "cache_depth": FULL} if depth == "full" else step)
    return found


def _indented(notes: Mapping[str, Any]) -> str:
    return json.dumps(notes, indent=2, allow_nan=False).replace("\n", "\n  ")


def native(notes: Any, what: str) -> Any:
    """Notes as JSON has them: numpy's numbers become Python's. Raises `StrategyError` for what JSON cannot hold, naming `what`."""
    try:
        found = json.loads(json.dumps(notes, default=_scalar))
        check_plain(found)
    except (RecursionError, FileError, TypeError, ValueError) as error:
        why = "it is nested too deeply, or holds itself" if isinstance(error, RecursionError) or "Circular" in str(error) else str(error)
        raise StrategyError(f"the {what} cannot be written ({why}); give a flat note of texts, finite numbers, lists and mappings") from None
    return found


def _scalar(value: Any) -> Any:
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"it holds {shown(value)}, a {type(value).__name__}")


def plain(value: Any) -> Any:
    """Plain data as a digest takes it: whole numbers are integers."""
    # Tools that rewrite JSON write 1.0 as 1: to the digest they are the same.
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _from_0(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``dato.strategy/0``: two lists, as schedules are published, ``cache_depths`` and ``prune_ratios``, and ``source``."""
    unknown = sorted(set(data) - {"schema", "cache_depths", "prune_ratios", "source"})
    if unknown:
        raise StrategyError(f"{where} has schema 'dato.strategy/0' and the unknown keys {shown(unknown)}; allowed are cache_depths, prune_ratios and source")
    depths, ratios = data.get("cache_depths"), data.get("prune_ratios")
    if not isinstance(depths, list) or not isinstance(ratios, list) or len(depths) != len(ratios):
        given = f"{len(depths)} and {len(ratios)} entries" if isinstance(depths, list) and isinstance(ratios, list) else f"{shown(depths)} and {shown(ratios)}"
        raise StrategyError(f"{where} has schema 'dato.strategy/0', whose cache_depths and prune_ratios are lists of one length; given {given}")
    notes = {"migrated_from": "dato.strategy/0"} | ({"source": data["source"]} if "source" in data else {})
    steps = [{"cache_depth": d, "prune_ratio": r} for d, r in zip(depths, ratios, strict=True)]
    return {"steps": steps, "provenance": notes}


MIGRATIONS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {"dato.strategy/0": _from_0}
"""How a document of an older schema becomes one of the present schema, by the older schema's name."""
