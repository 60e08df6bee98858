"""The colours of every picture: one for each thing, the same wherever it is drawn.

Those of Okabe and Ito (Color Universal Design, 2008), which colour-blind people tell apart, with a grey, an olive, a brown and a purple between them in lightness.
"""

from __future__ import annotations

from collections.abc import Sequence

from dato.strategy import FULL

BLUE, ORANGE, GREEN, RED, SKY, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
INK, GREY, OLIVE, BROWN = "#222222", "#9aa3ab", "#A89F00", "#7A4B1E"
PURPLE, YELLOW = "#6A3D9A", "#E3D53B"

PLAIN, STRATEGY, RIVAL, WINNER = RED, BLUE, ORANGE, GREEN
"""The unaccelerated pipeline, strategies and their front, other ways to be fast, and what won."""
WAYS = {"plain": PLAIN, "strategy": STRATEGY, "deepcache": ORANGE, "tomesd": PINK, "naive": GREEN}
"""Families of `search.records.FAMILIES` but those of `CACHES`; fewer steps and limited guidance have the colour of their sampler."""
CACHES = {"cache_dit": ORANGE, "taylorseer": PINK, "mag_cache": GREEN, "first_block_cache": PURPLE, "faster_cache": YELLOW}
"""Families of other tools that cache a transformer, which never stand beside a UNet's."""
SAMPLERS = {"DDIM": GREY, "DPM++": SKY, "Euler": INK, "PLMS": OLIVE, "UniPC": BROWN}
GENES = {"depth": BLUE, "ratio": INK, "guidance": SKY, "order": PINK, "sampler": BROWN, "steps": GREY}
"""Kinds of genes; guidance has the colour of the conditional half alone, order that of what is extrapolated."""
RATIOS = "Greys"
"""Scale of prune ratios, which ends in their colour."""
_DEPTHS = (ORANGE, GREEN, RED, OLIVE, BROWN)
"""Of the depths from 1, the shallowest first; deeper ones have the same, darker each time."""
_SERIES = (BLUE, RED, GREEN, PINK, ORANGE, SKY, INK, OLIVE, BROWN, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot")


def depth_colour(depth: int) -> str:
    """A cache depth's colour: blue where everything is computed, grey where nothing is."""
    if depth == FULL:
        return BLUE
    if depth == 0:
        return GREY
    again, place = divmod(depth - 1, len(_DEPTHS))
    return _darker(_DEPTHS[place], 0.62**again)


def sampler_colour(name: str, others: Sequence[str] = ()) -> str:
    """A sampler's colour; one that has none of its own takes one by its place among `others`."""
    free = (OLIVE, BROWN, GREY, INK)
    return SAMPLERS.get(name) or _darker(free[others.index(name) % len(free)] if name in others else GREY, 0.7)


def series(count: int) -> list[tuple[str, str]]:
    """Colour and dash of so many lines that are nothing but different from each other, such as searches: no two alike up to 40."""
    return [(_SERIES[i % len(_SERIES)], _DASHES[i // len(_SERIES) % len(_DASHES)]) for i in range(count)]


def _darker(colour: str, share: float) -> str:
    return "#" + "".join(f"{round(int(colour[i : i + 2], 16) * share):02x}" for i in (1, 3, 5))
