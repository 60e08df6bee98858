"""Which commits a command loads a model's weights from: noted the first time, and gone on with whatever the hub has later."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dato.files import FileError, read_json
from launch.config import ConfigError
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.hub import UnreachableError
from search.evaluate.model_files import pinned, pins
from search.ledger import Ledger

FILE = "pinned.json"
_MAX = 1 << 20


def pin_search(ledger: Ledger, spec: EvaluatorSpec, say: Callable[[str], None]) -> EvaluatorSpec:
    """The evaluators of a search with their model at the commits that its ledger notes, and notes them where it does not yet.

    Raises:
        ModelError: What the hub refuses, naming the way out.
    """
    known = ledger.record.notes.get("pinned")
    if known is None and (known := _now(spec, say)):
        ledger.append("notes", notes={"pinned": known})
    return _at(spec, known or {}, say)


def pin_evaluation(folder: Path, spec: EvaluatorSpec, say: Callable[[str], None]) -> EvaluatorSpec:
    """The same of an evaluation, which notes them in a file of its folder."""
    known = noted(folder)
    if known is None and (known := _now(spec, say)):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        path.with_suffix(".new").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".new").replace(path)
    return _at(spec, known or {}, say)


def noted(folder: Path) -> dict[str, Any] | None:
    """What `pin_evaluation` noted; None where there was nothing to note. Raises `ConfigError` where it cannot be read."""
    path = folder / FILE
    try:
        known = read_json(path, _MAX) if path.exists() else None
        if known is not None and not isinstance(known, dict):
            raise FileError("it holds no object")
    except FileError as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or remove the folder to begin anew") from None
    return known


def _now(spec: EvaluatorSpec, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        return pins(spec.model)
    except UnreachableError as error:
        say(f"warning: {error}. The commit is not known here, and each worker loads what its node's cache or the hub has; set model.revision to a commit for one that is the same for all")
        return {}


def _at(spec: EvaluatorSpec, known: dict[str, Any], say: Callable[[str], None]) -> EvaluatorSpec:
    if known.get("revision"):
        say(f"model     {spec.model.path} at commit {known['revision'][:12]}")
    return replace(spec, model=pinned(spec.model, known))
