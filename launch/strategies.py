"""``dato strategies``: the presets, with sampler, guidance, calls by depth and the speedup that their arithmetic allows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dato.call_plan import plan_calls
from dato.costs import CostModel
from dato.strategy import FULL, Strategy
from launch.arguments import choice, parse
from search.evaluate.geometry import geometry

TAKES = {"geometry": "sd15|sd2|sd2-768|sdxl|embedded", "calls": "50|51"}
_STEPS = 50
"""Of the unaccelerated run that presets are compared with, in the pipeline's own sampler."""
_WIDTH = 120
"""Columns with room for a preset in one row: of what goes into a file or another command."""


def run(arguments: Sequence[str]) -> int:
    """Print the presets for a geometry and the number of calls that the pipeline's own sampler makes of 50 steps."""
    found = parse("strategies", arguments, TAKES)
    given = {"geometry": found.get("geometry", "sd15"), "calls": choice(found, "calls", ("51", "50"))}
    shape = geometry(given["geometry"])
    costs, plain_calls = CostModel(shape.meta(), shape.latent, shape.latent), int(given["calls"])
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(
        title=f"presets on {shape.name}, with their calls by depth",
        caption=f"MAC limits are against the unaccelerated run: {_STEPS} steps of the pipeline's own sampler, {plain_calls} calls of both guidance halves (PNDM makes 51). "
        "guided: calls that compute both halves. The first call is full.",
    )
    for heading in ("name", "steps", "sampler", "guided", "full", "d=1", "d=0", "MAC limit", "at r=0.5", "arXiv"):
        table.add_column(heading, justify="left" if heading in ("name", "sampler", "arXiv") else "right", overflow="fold", no_wrap=heading == "name" and console.width >= _WIDTH)
    for name in Strategy.presets():
        strategy = Strategy.preset(name)
        # The samplers of the listed presets make one call a step; all are compared with the same unaccelerated run.
        extra = plain_calls - _STEPS if strategy.sampler is None else 0
        steps = [plan.step for plan in plan_calls(strategy, len(strategy) + extra)]
        calls = Counter(s.cache_depth for s in steps)
        row = [str(len(strategy)), str(strategy.sampler or "own"), f"{sum(s.guidance == 'both' for s in steps) / len(steps):.0%}", *(str(calls[d]) for d in (FULL, 1, 0))]
        half = "own ratios" if any(s.prune_ratio for s in strategy) else f"{costs.limit(Strategy.preset(name, 0.5), extra, plain_calls=plain_calls):.2f}x"
        source = " ".join(re.findall(r"\d{4}\.\d{5}", strategy.provenance["source"]))
        table.add_row(name, *row, f"{costs.limit(strategy, extra, plain_calls=plain_calls):.2f}x", half, source)
    console.print(table)
    return 0
