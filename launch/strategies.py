"""``dato strategies``: the presets, with their calls by depth and the speedup that their arithmetic allows."""

from __future__ import annotations

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


def run(arguments: Sequence[str]) -> int:
    """Print the presets for a geometry and a sampler's number of calls."""
    found = parse("strategies", arguments, TAKES)
    given = {"geometry": found.get("geometry", "sd15"), "calls": choice(found, "calls", ("51", "50"))}
    shape = geometry(given["geometry"])
    costs = CostModel(shape.meta(), shape.latent, shape.latent)
    table = Table(title=f"presets of 50 steps; calls by depth and MAC limits on {shape.name} in {given['calls']} calls, the first one full (PNDM makes 51)")
    for heading in ("name", "full", "d=1", "d=0", "MAC limit", "at r=0.5", "source"):
        table.add_column(heading, justify="left" if heading in ("name", "source") else "right", overflow="fold")
    for name in Strategy.presets():
        strategy, extra = Strategy.preset(name), int(given["calls"]) - 50
        calls = Counter(work.step.cache_depth for work in plan_calls(strategy, int(given["calls"])))
        own = any(s.prune_ratio for s in strategy)
        half = "own ratios" if own else f"{costs.limit(Strategy.preset(name, 0.5), extra):.2f}x"
        source = ", ".join(str(strategy.provenance[k]) for k in ("source", "order") if k in strategy.provenance)
        row = [str(calls[d]) for d in (FULL, 1, 0)]
        table.add_row(name, *row, f"{costs.limit(strategy, extra):.2f}x", half, source)
    Console().print(table)
    return 0
