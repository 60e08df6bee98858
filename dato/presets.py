"""Named strategies as plain documents, each with where it comes from: schedules of 50 steps, and fewer steps of a fast sampler."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from dato.sampler import SAMPLERS
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

_SAMPLERS = {
    "ddim": ("DDIM", "arXiv 2010.02502"), "dpmpp": ("DPM++", "arXiv 2211.01095"), "euler": ("Euler", "arXiv 2206.00364"),
    "plms": ("PLMS", "arXiv 2202.09778"), "unipc": ("UniPC", "arXiv 2302.04867"),
}  # fmt: skip
"""How a preset's name begins, the sampler, and where that was published."""
_LIMITED = "-limited-guidance"
_LISTED = (
    *(f"deepcache-{n}" for n in (2, 3, 5, 10)), "ddim-20", "euler-20", "unipc-8", "dpmpp-8", "dpmpp-10", "dpmpp-20",
    *(f"{name}{_LIMITED}" for name in ("unipc-8", "dpmpp-8", "dpmpp-10", "dpmpp-20")),
)  # fmt: skip
"""Of the families below, whose N is free."""
_FAMILIES = f"deepcache-N, <sampler>-N and <sampler>-N{_LIMITED} for every N from 2 to 50 and the samplers {', '.join(_SAMPLERS)}"


@cache
def presets() -> dict[str, dict[str, Any]]:
    """The listed presets' documents by name; `preset` takes more."""
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
    return found | {name: document for name in _LISTED if (document := _of_family(name))}


def is_preset(name: str) -> bool:
    """Whether `preset` knows the name, with or without a ratio after "@"."""
    base = name.partition("@")[0]
    return base in presets() or _of_family(base) is not None


def preset(name: str, prune_ratio: float | None = None) -> dict[str, Any]:
    """A preset's document, with one prune ratio at every step where it holds none of its own.

    Args:
        name: One of `presets`; with any N from 2 to 50 deepcache-N, N steps of a sampler, such as dpmpp-8, and dpmpp-8-limited-guidance;
            each of these with a ratio after "@" where it holds none of its own, such as "authors-l12@0.5".
        prune_ratio: For presets that prune nothing.
    """
    if not isinstance(name, str):
        raise StrategyError(f"a preset's name is a text, but {name!r} is of type {type(name).__name__}; there are {', '.join(presets())}")
    base, _, ratio = name.partition("@")
    found = presets().get(base) or _of_family(base)
    if found is None:
        raise StrategyError(f"no preset is named {base!r}; there are {', '.join(presets())}, and {_FAMILIES}")
    if ratio:
        try:
            prune_ratio = float(ratio)
        except ValueError:
            raise StrategyError(f"{name!r} has no number after the @; write a prune ratio, such as {base}@0.5") from None
    if prune_ratio is None:
        return found
    if any(step["prune_ratio"] for step in found["steps"]):
        raise StrategyError(f"prune_ratio is {prune_ratio!r}, but {base} holds a ratio for each of its steps; leave it out")
    steps = [{**step, "prune_ratio": prune_ratio} for step in found["steps"]]
    return {**found, "steps": steps, "provenance": {**found["provenance"], "prune_ratio": prune_ratio}}


def _document(steps: Iterable[tuple[int, float]], **provenance: Any) -> dict[str, Any]:
    return {"steps": [{"cache_depth": d, "prune_ratio": r} for d, r in steps], "provenance": provenance}


def _of_family(name: str) -> dict[str, Any] | None:
    """The document of "deepcache-N", "<sampler>-N" or "<sampler>-N-limited-guidance", which need not be listed; None for another name."""
    parts = re.fullmatch(rf"([a-z]+)-([1-9][0-9]?)({_LIMITED})?", name)
    if parts is None or not 2 <= (n := int(parts[2])) <= 50:
        return None
    if parts[1] == "deepcache" and not parts[3]:
        return _document(((1 if i % n else FULL, 0.0) for i in range(50)), source="DeepCache (arXiv 2312.00858), branch 0, uniform")
    return _fewer_steps(*_SAMPLERS[parts[1]], n, limited=bool(parts[3])) if parts[1] in _SAMPLERS else None


def guided_steps(steps: int) -> int:
    """Of so many steps the first ones that limited guidance computes both halves in: half of them, rounded up.

    Limited-interval guidance (arXiv 2404.07724) finds guidance harmful at the highest noise levels, the beginning of a run, largely
    unnecessary at the lowest, its end, and guides in between. Here it is left out at the end only: on the model that ships,
    guiding the first steps alone suffices (measured), and which interval is best depends on the model, which a search finds out.
    """
    return (steps + 1) // 2


def _fewer_steps(sampler: str, source: str, steps: int, *, limited: bool) -> dict[str, Any]:
    """So many steps of a sampler, everything computed; if limited, both halves of guidance in the `guided_steps` alone."""
    guided = guided_steps(steps) if limited else steps
    entries = [{"cache_depth": FULL, "prune_ratio": 0.0} | ({} if i < guided else {"guidance": "cond"}) for i in range(steps)]
    note = f"{sampler} ({source})" + (f", guidance in {guided} of {steps} steps, the first ones (after arXiv 2404.07724)" if limited else "")
    return {"steps": entries, "provenance": {"source": note}, "sampler": SAMPLERS[sampler].document()}
