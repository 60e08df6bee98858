"""``dato strategies``: the presets, with sampler, guidance, calls by depth and the speedup that their arithmetic allows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from dato.call_plan import plan_calls
from dato.costs import CostModel
from dato.strategy import FULL, Step, Strategy
from launch.arguments import ArgumentError, choice, parse
from search.evaluate.geometry import NAMES, Geometry, geometry

TAKES = {"model": "|".join(NAMES), "calls": "50|51"}
_STEPS = 50
"""Of the unaccelerated run that presets are compared with, in the pipeline's own sampler."""
_WIDTH = 120
"""Columns with room for a preset in one row: of what goes into a file or another command."""
_DEPTHS = 12
"""Cache depths at most in a table."""


def run(arguments: Sequence[str]) -> int:
    """Print the presets for a model and the number of calls that the pipeline's own sampler makes of 50 steps, and what share of a call each depth is."""
    if any(word.startswith("geometry=") for word in arguments):
        raise ArgumentError("geometry is now called model; write model=...")
    found = parse("strategies", arguments, TAKES)
    name = choice(found, "model", NAMES)
    shape = geometry(name)
    plain_calls = int(choice(found, "calls", ("51", "50") if shape.is_unet else ("50", "51")))
    costs, console = shape.costs(), Console()
    if not console.is_terminal:
        console.width = _WIDTH
    chosen = {name: strategy for name in Strategy.presets() if _fits(strategy := Strategy.preset(name), shape)}
    console.print(_presets(chosen, shape, costs, plain_calls, console.width))
    if left := len(Strategy.presets()) - len(chosen):
        console.print(f"{left} presets prune tokens, {'' if shape.guided else 'limit guidance, '}or bring samplers that {shape.name} cannot have, and are not listed.")
    console.print(_shares(costs, shape))
    return 0


def _fits(strategy: Strategy, shape: Geometry) -> bool:
    prunes, limits = any(s.prune_ratio for s in strategy), any(s.guidance == "cond" for s in strategy)
    return shape.samples_with(strategy.sampler) and (shape.is_unet or not prunes) and (shape.guided or not limits)


def _presets(chosen: Mapping[str, Strategy], shape: Geometry, costs: CostModel, plain_calls: int, width: int) -> Table:
    table = Table(
        title=f"presets on {shape.name}, with their calls by depth",
        caption=f"MAC limits are against the unaccelerated run: {_STEPS} steps of the pipeline's own sampler, {plain_calls} calls{' of both guidance halves' * shape.guided} (PNDM makes 51). "
        + ("guided: calls that compute both halves. " if shape.guided else "Its guidance is built in: a call has no halves. ")
        + "The first call is full.",
    )
    prunes, halves = ("at r=0.5",) if shape.is_unet else (), ("guided",) if shape.guided else ()
    for heading in ("name", "steps", "sampler", *halves, "full", "d=1", "d=0", "MAC limit", *prunes, "arXiv"):
        table.add_column(heading, justify="left" if heading in ("name", "sampler", "arXiv") else "right", overflow="fold", no_wrap=heading == "name" and width >= _WIDTH)
    for name, strategy in chosen.items():
        # The samplers of the listed presets make one call a step; all are compared with the same unaccelerated run.
        extra = plain_calls - _STEPS if strategy.sampler is None else 0
        limit = partial(costs.limit, extra_calls=extra, guided=shape.guided, plain_calls=plain_calls)
        steps = [plan.step for plan in plan_calls(strategy, len(strategy) + extra, guided=shape.guided)]
        calls = Counter(s.cache_depth for s in steps)
        guided = [f"{sum(s.guidance == 'both' for s in steps) / len(steps):.0%}"] if halves else []
        row = [str(len(strategy)), str(strategy.sampler or "own"), *guided, *(str(calls[d]) for d in (FULL, 1, 0)), f"{limit(strategy):.2f}x"]
        if prunes:
            row.append("own ratios" if any(s.prune_ratio for s in strategy) else f"{limit(Strategy.preset(name, 0.5)):.2f}x")
        table.add_row(name, *row, " ".join(re.findall(r"\d{4}\.\d{5}", strategy.provenance["source"])))
    return table


def _shares(costs: CostModel, shape: Geometry) -> Table:
    """What each cache depth, or of many some, computes of a full call."""
    depths = costs.depths[:-1]
    spread = (round(1 + i * (len(depths) - 2) / (_DEPTHS - 2)) for i in range(_DEPTHS - 1))
    chosen = (0, *(depths[k] for k in spread)) if len(depths) > _DEPTHS else depths
    table = Table(
        title=f"MACs of a call on {shape.name} by cache depth",
        caption=f"A full call has {costs.macs(Step(FULL)) / 1e9:,.1f} GMACs for one sample, of a latent of {shape.latent} x {shape.latent}. "
        + ("Depths are units" if shape.is_unet else "Depths are blocks")
        + f": 0 to {depths[-1]}"
        + (f" but {FULL}" if not shape.is_unet and depths[-1] > FULL else "")
        + '. In files full is "full", in Python dato.FULL.',
    )
    for heading in (*map(str, chosen), "full"):
        table.add_column(heading, justify="right")
    table.add_row(*(f"{costs.share(Step(d)):.1%}" for d in (*chosen, FULL)))
    return table
