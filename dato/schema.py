"""The JSON document of a strategy: its schema, its content digest, and how older schemas become the present one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from dato.files import FileError, check_plain, parse_json, shown

SCHEMA = "dato.strategy/1"
FULL = 12
"""The cache depth that computes everything. A symbol: models of fewer units, such as SDXL's UNet, use it too."""


class StrategyError(ValueError):
    """A strategy that cannot be: the message says what was given, what is allowed and what to do."""


def content_digest(document: Mapping[str, Any]) -> str:
    """``sha256:`` and 64 hex digits over steps and provenance, the same however the JSON is laid out.

    It shows a file that was changed after it was written. It is no signature: who changes a file can also digest it anew.
    """
    content = {"steps": document["steps"], "provenance": _native(document.get("provenance") or {})}
    text = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write(document: Mapping[str, Any]) -> str:
    """JSON text of ``{"steps": [...], "provenance": {...}}``, one step a line, with schema and digest."""
    rows = ",\n".join(f"    {json.dumps(step)}" for step in document["steps"])
    notes = _native(document.get("provenance"))
    provenance = f',\n  "provenance": {_indented(notes)}' if notes else ""
    return f'{{\n  "schema": "{SCHEMA}",\n  "digest": "{content_digest(document)}",\n  "steps": [\n{rows}\n  ]{provenance}\n}}\n'


def read(text: str, where: str) -> dict[str, Any]:
    """The document of JSON text, brought to the present schema: ``steps``, a list, and ``provenance``, a mapping.

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
        data = MIGRATIONS[schema](data, where)
    elif not isinstance(data, dict) or schema != SCHEMA:
        older = ", ".join(map(repr, MIGRATIONS))
        raise StrategyError(f"{where} has schema {shown(schema)}; this version reads {SCHEMA!r} (and the older {older}): export it again or update dato")
    unknown = sorted(set(data) - {"schema", "digest", "steps", "provenance"})
    if unknown:
        raise StrategyError(f"{where} has the unknown keys {shown(unknown)}; allowed are schema, digest, steps and provenance")
    steps, notes = data.get("steps"), data.get("provenance", {})
    if not isinstance(steps, list) or not isinstance(notes, dict):
        raise StrategyError(f"{where}: steps must be a list of objects, and provenance, if given, an object")
    found = {"steps": steps, "provenance": notes}
    if "digest" in data and data["digest"] != content_digest(found):
        raise StrategyError(
            f"{where} was changed after it was written: its content has digest {content_digest(found)}, and it says {shown(data['digest'])}. Get it again from where it was exported; to use steps that you edited yourself, "
            "remove digest and provenance, which speak of the steps that were measured"
        )
    return found


def _indented(notes: Mapping[str, Any]) -> str:
    return json.dumps(notes, indent=2, allow_nan=False).replace("\n", "\n  ")


def _native(notes: Any) -> Any:
    """Provenance as JSON has it: numpy's numbers become Python's. Raises `StrategyError` for what JSON cannot hold."""
    try:
        found = json.loads(json.dumps(notes, default=_scalar))
        check_plain(found)
    except (RecursionError, FileError, TypeError, ValueError) as error:
        why = "it is nested too deeply, or holds itself" if isinstance(error, RecursionError) or "Circular" in str(error) else str(error)
        raise StrategyError(f"the provenance cannot be written ({why}); give a flat note of texts, finite numbers, lists and mappings") from None
    return found


def _scalar(value: Any) -> Any:
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"it holds {shown(value)}, a {type(value).__name__}")


def _plain(value: Any) -> Any:
    # Tools that rewrite JSON write 1.0 as 1: to the digest they are the same.
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
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
    return {"schema": SCHEMA, "steps": steps, "provenance": notes}


MIGRATIONS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {"dato.strategy/0": _from_0}
"""How a document of an older schema becomes one of the present schema, by the older schema's name."""
