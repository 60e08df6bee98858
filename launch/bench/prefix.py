"""``dato bench prefix``: what resuming candidates from stored latents of evaluated ones would have saved, from ledgers of real searches.

A candidate that equals an evaluated one up to a step of its own that computes everything, both halves of it, could begin there: the latents
before that step, and nothing cached, decide the rest, where nothing after it is extrapolated from more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dato.call_plan import plan_calls
from dato.costs import CostModel
from dato.strategy import FULL, Step, Strategy
from launch.bench.timing import parse, print_table, write_result
from launch.config import ConfigError
from search.evaluate.geometry import geometry
from search.ledger import read_ledger

DEFAULTS = {"folders": "", "geometry": "embedded", "output": "analysis/results"}


def run(arguments: Sequence[str]) -> int:
    """Read the ledgers, print and write the result file."""
    given = parse(list(arguments), DEFAULTS, "prefix")
    folders = [Path(f) for f in given["folders"].split(",") if f]
    missing = [str(f) for f in folders if not (f / "ledger.jsonl").is_file()]
    if missing or not folders:
        raise ConfigError(f"folders is {given['folders']!r}{f', and {missing[0]} holds no ledger.jsonl' if missing else ''}; give folders of searches, separated by commas")
    shape = geometry(given["geometry"])
    model = shape.costs()
    found = {}
    for folder in folders:
        strategies = [c.strategy for c in read_ledger(folder / "ledger.jsonl").candidates.values()]
        found[folder.name] = {"candidates": len(strategies), **saving(strategies, model)}
    rows = [[name, str(f["candidates"]), f"{f['resumed']:.0%}", f"{f['saved']:.1%}"] for name, f in found.items()]
    print_table("resuming from the stored latents of evaluated candidates", ["search", "candidates", "could be resumed", "UNet MACs saved"], rows)
    print(write_result("prefix", given, torch.device("cpu"), {"searches": found}, given["output"]))
    return 0


def saving(strategies: Sequence[Strategy], model: CostModel) -> dict[str, float]:
    """Shares of the candidates that could be resumed, and of all MACs that this saves; all earlier ones' latents are kept."""
    def cost(step: Step) -> int:
        return model.macs(step) * (2 if step.guidance == "both" else 1)

    prefixes = set[tuple[Step, ...]]()
    resumed, saved, total = 0, 0.0, 0.0
    for strategy in strategies:
        steps = tuple(plan.step for plan in plan_calls(strategy, len(strategy)))
        total += sum(cost(s) for s in steps)
        begin = max((k for k in range(1, len(steps)) if _forgets(steps, k) and steps[:k] in prefixes), default=0)
        resumed += begin > 0
        saved += sum(cost(s) for s in steps[:begin])
        prefixes.update(steps[:k] for k in range(1, len(steps)))
    return {"resumed": resumed / len(strategies), "saved": saved / total}


def _forgets(steps: Sequence[Step], k: int) -> bool:
    """Whether step k computes everything anew, and no later one extrapolates."""
    return steps[k].cache_depth == FULL and steps[k].guidance == "both" and not any(s.order for s in steps[k:])
