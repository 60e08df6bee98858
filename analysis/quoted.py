"""The paper's own figures, as printed, to be put beside ours and marked as quoted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "paper_tables.json"
_FAMILY = {
    "plain": ("Original SD",),
    "fewer": ("DDIM (", "DPM ("),
    "tomesd": ("ToMeSD",),
    "deepcache": ("DeepCache-", "DeepCache"),
    "naive": ("DeepCache&ToMeSD",),
}


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
    """The quoted row of a result of ours: of the same family, and the same place within it.

    Which intervals, ratios and strategies the paper's letters (a1, b1, ...) stand for is not printed, except for Ours-b1.
    """
    rows = quoted(key)
    family, place = result["family"], result["place"]
    if family == "strategy":
        return next((r for r in rows if r["method"] == "Ours-b1" and result["name"].split(" ")[0] == "paper-b1"), None)
    if family == "fewer":
        wanted = "DDIM (10" if result["name"] == "DDIM-10" else "DPM (10" if result["name"] == "DPM++-10" else None
        return next((r for r in rows if wanted and r["method"].startswith(wanted)), None)
    heads = _FAMILY.get(family, ())
    mine = [r for r in rows if str(r["method"]).startswith(heads) and ("&" in str(r["method"])) == (family == "naive")]
    return mine[place] if place < len(mine) else None
