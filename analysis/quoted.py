"""The paper's own figures, as printed, to be put beside ours and marked as quoted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "paper_tables.json"
_KNOWN = {"unaccelerated": "Original", "DDIM-10": "DDIM (10", "DPM++-10": "DPM (10", "paper-b1": "Ours-b1"}
"""Beginnings of the paper's rows whose settings are printed, by our names; what a1, b1, ... of its other rows are is not."""


class QuotedError(ValueError):
    """A table that the paper does not have: the message says what is allowed."""


@cache
def _content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def quoted(key: str) -> list[dict[str, Any]]:
    """Rows of one of the paper's tables, such as "table1/imagenet/sd15", "table2" or "table5". Raises `QuotedError`."""
    tables = _content()["tables"]
    if key not in tables:
        raise QuotedError(f"evaluation.quoted is {key!r}; allowed are {', '.join(map(repr, tables))}, or null")
    rows: list[dict[str, Any]] = tables[key]
    return rows


def source() -> str:
    """Where they are printed."""
    return str(_content()["source"])


def match(key: str, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quoted row of the same settings as a result of ours, or None where there is none or its settings are not printed."""
    name = "unaccelerated" if result["family"] == "plain" else result["name"].split(" ")[0]
    return next((r for r in quoted(key) if name in _KNOWN and str(r["method"]).startswith(_KNOWN[name])), None)
