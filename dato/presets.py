"""Named strategies of 50 steps as plain documents, each with where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from dato.schema import FULL, StrategyError

_TABLE_6_DEPTHS = "1 1 1 1 1 1 1 1 12 1 1 1 1 1 1 1 1 0 0 12 1 1 1 1 1 0 1 12 0 1 1 12 0 0 1 1 1 1 1 1 1 1 1 12 1 1 1 1 1 0"
_TABLE_6_RATIOS = "75443565655365547365534343656366335644344535676565"  # tenths

# Published with the authors' code, in the order of execution; F is full. No prune ratios came with them.
_AUTHORS_VECTORS = {
    6: "FF111F1F0F0F01F1111FF01F0F01FF1F011F11F1FF1F1FF1F1",
    7: "1F111111111FF1F1F11F01111FF011F1110F1F1F1F111111F1",
    8: "1FF11111111F1111F01F011111F11111110F1F111F111111F1",
    9: "11111111111FF111111F111111111111110F1F111F111111F1",
    10: "011111F111111100F1110F1011111F0011111111F111111111",
    11: "01000000110F0110F1100F0100011100101011111F00100111",
    12: "1111011011011F100011010F00000010101F000000101F0101",
}


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Every preset's document by name."""
    printed = [(int(d), int(r) / 10) for d, r in zip(_TABLE_6_DEPTHS.split(), _TABLE_6_RATIOS, strict=True)]
    table = "arXiv 2501.00375, Table 6 (Ours-b1)"
    found = {
        # The table has columns 49 down to 0: it prints the last step first, and label 0 is executed first.
        "paper-b1": _document(reversed(printed), source=table, order="label 0 executed first"),
        "paper-b1-reversed": _document(printed, source=table, order="label 49 executed first"),
    }
    for line, vector in _AUTHORS_VECTORS.items():
        source = f"cache vector of line {line} of run_command7, published with the code of arXiv 2501.00375"
        found[f"authors-l{line}"] = _document(((FULL if c == "F" else int(c), 0.0) for c in vector), source=source)
    return found | {f"deepcache-{n}": _deepcache(n) for n in (2, 3, 5, 10)}


def is_preset(name: str) -> bool:
    """Whether `preset` knows the name, with or without a ratio after "@"."""
    base = name.partition("@")[0]
    return base in presets() or _interval(base) is not None


def preset(name: str, prune_ratio: float | None = None) -> dict[str, Any]:
    """A preset's document, with one prune ratio at every step where it holds none of its own.

    Args:
        name: One of `presets`, or deepcache-N with any N from 2 to 50, or with a ratio after "@", such as "authors-l12@0.5".
        prune_ratio: For presets that are cache vectors only.
    """
    if not isinstance(name, str):
        raise StrategyError(f"a preset's name is a text, but {name!r} is of type {type(name).__name__}; there are {', '.join(presets())}")
    base, _, ratio = name.partition("@")
    if not is_preset(base):
        raise StrategyError(f"no preset is named {base!r}; there are {', '.join(presets())}, and deepcache-N for every N from 2 to 50")
    if ratio:
        try:
            prune_ratio = float(ratio)
        except ValueError:
            raise StrategyError(f"{name!r} has no number after the @; write a prune ratio, such as {base}@0.5") from None
    interval = _interval(base)
    found = _deepcache(interval) if interval else presets()[base]
    if prune_ratio is None:
        return found
    if any(step["prune_ratio"] for step in found["steps"]):
        raise StrategyError(f"prune_ratio is {prune_ratio!r}, but {base} holds a ratio for each of its steps; leave it out")
    return _document(((step["cache_depth"], prune_ratio) for step in found["steps"]), **found["provenance"], prune_ratio=prune_ratio)


def _document(steps: Iterable[tuple[int, float]], **provenance: Any) -> dict[str, Any]:
    return {"steps": [{"cache_depth": d, "prune_ratio": r} for d, r in steps], "provenance": provenance}


def _deepcache(interval: int) -> dict[str, Any]:
    return _document(((1 if i % interval else FULL, 0.0) for i in range(50)), source="DeepCache (arXiv 2312.00858), branch 0, uniform")


def _interval(name: str) -> int | None:
    """N of "deepcache-N", which need not be in the list of presets."""
    found = re.fullmatch(r"deepcache-([1-9][0-9]?)", name)
    return int(found[1]) if found and 2 <= int(found[1]) <= 50 else None
