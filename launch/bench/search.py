"""``dato bench search``: how fast searches find good fronts, at equal UNet MACs.

All methods have the same budget, counted the same way: the MACs of every image that was looked at, promotions included, while each
method runs until it has spent it. Presets and fidelities are for all (table `with`) or for none (`without`). A strategy suggested
again is told what is known of it, at no cost. With `ledgers=`, real searches are compared in place of replayed ones.

Every search goes through the same driver and ledger. Candidates are scored by a replay: a model fitted to recorded real
evaluations (see `launch.bench.landscape`), as ten thousands of real ones would take weeks; the result file says so.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from analysis.budget import write_budget_page
from dato.strategy import Strategy
from launch.bench.landscape import Landscape, SampledImages, collect
from launch.bench.ledgers import print_ledgers
from launch.bench.macs import Costs
from launch.bench.methods import METHODS, chosen
from launch.bench.timing import parse, print_table, write_result
from launch.config import ConfigError, build, compose_config
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.ledger import Ledger, read_ledger
from search.measurements import Measurement
from search.optimize.pareto import hypervolume
from search.records import UNACCELERATED, SearchRecord
from search.run.driver import Driver
from search.run.loops import make_loop
from search.run.pools import InProcessPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan

DEFAULTS = {
    "space": "whole",
    "evaluations": "",  # of the space, in analysis/results
    "collect": "",
    "ledgers": "",
    "candidates": "60",
    "seeds": "10",
    "first_seed": "0",
    "population": "10",
    "images": "100",
    "fidelity": "50",
    "noise": "0.06",  # FID points: what sets of 100 images differ by in a strategy's FID less the unaccelerated one's
    "tables": "both",
    "methods": "all",
    "output": "analysis/results",
}
EVALUATIONS = {"whole": "analysis/results/evaluations_embedded_whole.json", "paper": "analysis/results/evaluations_embedded.json"}
"""Recorded evaluations of a search space, as `collect` makes them."""
TABLES = {"with": "the same presets and fidelities for all", "without": "neither presets nor fidelities"}
SHARES = (0.25, 1 / 3, 0.5, 1.0)
"""Of the budget, at which the table reads the curves."""


class Replay:
    """An evaluator that scores strategies without images. Latency is that of the MACs, full calls at one ms."""

    def __init__(self, landscape: Landscape, costs: Costs, sampled: SampledImages) -> None:
        self.landscape, self._costs, self.sampled = landscape, costs, sampled

    def build(self) -> Replay:
        """Nothing to load."""
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        """Shards that hold a strategy's FID on these images as their only feature, and its MACs as their time."""
        images = sum(len(batch) for batch in batches)
        fids = self.landscape.fid(strategies) + self.sampled.error(strategies, batches[0][0], images)
        shards = []
        for strategy, fid in zip(strategies, fids, strict=True):
            shards.append(Shard(torch.tensor([[float(fid)]]), batch_ms=[self._costs.run(strategy)], seconds=images * self._costs.run(strategy), batch=images))
        return shards


def run(arguments: Sequence[str]) -> int:
    """Search with every method and seed, print, write the result file."""
    given = parse(list(arguments), DEFAULTS, "search")
    if given["space"] not in EVALUATIONS:
        raise ConfigError(f"space is {given['space']!r}; allowed are {' and '.join(EVALUATIONS)}, see conf/space")
    given["evaluations"] = given["evaluations"] or EVALUATIONS[given["space"]]
    if given["collect"]:
        path = Path(given["evaluations"])
        path.parent.mkdir(parents=True, exist_ok=True)
        found = collect([Path(p) for p in given["collect"].split(",")])
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
        print(f"{len(found['evaluations'])} evaluations in {path}")
        return 0
    if given["ledgers"]:
        print_ledgers([Path(p) for p in given["ledgers"].strip("[]").split(",")])
        return 0
    names = chosen(given["methods"], given["space"])
    if given["tables"] not in (*TABLES, "both"):
        raise ConfigError(f"tables is {given['tables']!r}; allowed are {', '.join(TABLES)} (presets and fidelities) and both")
    landscape, costs = Landscape(Path(given["evaluations"])), Costs()
    config = build(compose_config("search", [f"space={given['space']}"]))
    space, warm = config.space, [Strategy.load(name) for name in config.keys.search.warm_start]
    print(f"replay fitted to {landscape.held_out['evaluations']} evaluations; held out: R2 {landscape.held_out['r2']:.3f}, rank correlation {landscape.held_out['rank_correlation']:.3f}")
    images, fidelity = int(given["images"]), int(given["fidelity"])
    budget = int(given["candidates"]) * fidelity * costs.mean(space)
    tables: dict[str, Any] = {}
    for table in TABLES if given["tables"] == "both" else (given["tables"],):
        counts = (fidelity, images) if table == "with" else (images,)
        presets = warm if table == "with" else []
        curves: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for seed in range(int(given["first_seed"]), int(given["first_seed"]) + int(given["seeds"])):
            sampled = SampledImages(landscape, float(given["noise"]), seed)
            for name in names:
                began = time.monotonic()
                algorithm = METHODS[name](space, int(given["population"]), seed, presets)
                algorithm.bounds = reference_of(landscape, costs)
                record = _search(algorithm, Replay(landscape, costs, sampled), counts, int(given["population"]), budget)
                curve = hypervolume_curve([c.strategy for c, _ in record.evaluated()], landscape, costs, sampled, counts)
                curves[name].append({"seed": seed, "candidates": len(record.results), **curve})
                value = read(curve, budget)
                print(f"{table}, seed {seed}, {name}: {len(record.results)} candidates, hypervolume {value:.4f}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        tables[table] = {"settings": TABLES[table], "images": counts, **compare(curves, budget)}
        _print(table, tables[table])
    result = {"replay": landscape.held_out, "mode": "replay: FIDs are those of a model fitted to recorded evaluations", "budget": budget,
              "reference": reference_of(landscape, costs), "tables": tables}  # fmt: skip
    path = write_result("search", {**given, "geometry": "embedded"}, torch.device("cpu"), result, given["output"])
    print(path)
    shown = next(iter(tables.values()))
    note = f"Replayed: candidates are scored by a model fitted to {landscape.held_out['evaluations']} real evaluations (R2 on held-out ones {landscape.held_out['r2']:.2f}); {shown['settings']}. Lines are medians over {given['seeds']} seeds, bands go from the least to the most."
    print(write_budget_page(path.with_suffix(".html"), shown, note))
    return 0


def _search(algorithm: Any, replay: Replay, counts: Sequence[int], size: int, budget: float) -> SearchRecord:
    """One search from its first candidate to the budget; only its ledger is looked at."""
    steps = replay.landscape.steps
    folder = Path(tempfile.mkdtemp(prefix="dato-bench-"))
    try:
        ledger = Ledger(folder / "ledger.jsonl", "bench", {}, {})

        def measure(shards: Sequence[Shard]) -> Measurement:
            images = sum(s.batch for s in shards)
            fid = sum(float(s.features[0, 0]) * s.batch for s in shards) / images
            return Measurement(fid=max(1e-3, fid), images=images, latency_ms=shards[0].batch_ms[0], seconds=sum(s.seconds for s in shards))

        baseline = counts[-1] * Costs().run(Strategy.full(steps))
        # A unit of budget is a full call of one image; a search counts hours of devices, here 3600 units, and baselines with them.
        plan = SearchPlan(generations=1_000_000, population=size, max_device_hours=(budget + baseline) / 3600)
        protocol = EvaluationProtocol(images=counts[-1], batch=counts[0], fidelities=tuple(counts[:-1]))
        driver = Driver(Recorder(ledger, plan, measure), protocol, make_loop(algorithm), {UNACCELERATED: Strategy.full(steps)}, kept=ShardStore(folder / "kept"))
        pool = InProcessPool(replay)
        driver.prepare(pool)
        driver.search(pool)  # no more: what promotions add is read off the curve at every budget, not only at the end
        ledger.close()
        return read_ledger(folder / "ledger.jsonl")
    finally:
        shutil.rmtree(folder)


def reference_of(landscape: Landscape, costs: Costs) -> tuple[float, float]:
    """Where every hypervolume is measured from: twice the unaccelerated FID, and the MACs of an unaccelerated run."""
    return 2 * landscape.plain_fid, costs.run(Strategy.full(landscape.steps))


def hypervolume_curve(strategies: Sequence[Strategy], landscape: Landscape, costs: Costs, sampled: SampledImages, counts: Sequence[int]) -> dict[str, list[float]]:
    """What a search would have, and would have spent, had it stopped after each candidate and promoted its front.

    The front is taken by what is measured, on the few images and then on the many, as a user would take it, and then valued by
    the landscape's own FIDs. MACs are those of every candidate on the few images, and of the front on the further ones.
    """
    true = landscape.fid(strategies)
    macs = np.array([costs.run(s) for s in strategies])
    few = true + sampled.error(strategies, 0, counts[0])
    rest = counts[-1] - counts[0]
    many = (few * counts[0] + (true + sampled.error(strategies, counts[0], rest)) * rest) / counts[-1] if rest else few
    spent, values = [], []
    for cut in range(1, len(strategies) + 1):
        promoted = _front(few[:cut], macs[:cut])
        kept = promoted[_front(many[promoted], macs[promoted])]
        spent.append(float(counts[0] * macs[:cut].sum() + rest * macs[promoted].sum()))
        values.append(hypervolume([(float(true[i]), float(macs[i])) for i in kept], reference_of(landscape, costs)))
    return {"macs": spent, "hypervolume": values}


def _front(fids: np.ndarray, macs: np.ndarray) -> np.ndarray:
    """Numbers of those that none beats in both."""
    found, lowest = [], float("inf")
    for i in np.lexsort((fids, macs)):
        if fids[i] < lowest:
            found.append(i)
            lowest = fids[i]
    return np.array(found, dtype=int)


def read(curve: dict[str, Any], budget: float) -> float:
    """The hypervolume of a search that stopped in time for its promotions to keep the budget; 0 before its first candidate."""
    within = [h for m, h in zip(curve["macs"], curve["hypervolume"], strict=True) if m <= budget]
    return float(within[-1]) if within else 0.0


def compare(curves: dict[str, list[dict[str, Any]]], budget: float) -> dict[str, Any]:
    """Each method's median, least and most hypervolume over the budget, and the share of it that reaches random search's last median."""
    budgets = np.geomspace(budget / 50, budget, 60)
    table: dict[str, Any] = {}
    target = float(np.median([read(c, budget) for c in curves["random"]])) if "random" in curves else None
    for name, runs in curves.items():
        grid = np.array([[read(c, b) for b in budgets] for c in runs])
        table[name] = {"median": np.median(grid, 0).tolist(), "least": grid.min(0).tolist(), "most": grid.max(0).tolist(), "runs": runs}
        table[name]["at"] = {f"{share:.2f}": [read(c, share * budget) for c in runs] for share in SHARES}
        if target is not None:
            reached = np.flatnonzero(np.median(grid, 0) >= target)
            table[name]["share_to_random"] = float(budgets[reached[0]] / budget) if len(reached) else None
        if "default" in curves and name != "default":
            table[name]["default_less_this"] = {f"{share:.2f}": _paired(curves["default"], runs, share * budget) for share in SHARES}
    return {"budgets": budgets.tolist(), "methods": table}


def _paired(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], budget: float) -> dict[str, float]:
    """Mean difference over seeds, whose images are the same for both; its 95 % t interval; seeds in which ours is higher."""
    difference = np.array([read(a, budget) - read(b, budget) for a, b in zip(ours, theirs, strict=True)])
    count = len(difference)
    half = float(student.ppf(0.975, count - 1) * difference.std(ddof=1) / count**0.5) if count > 1 else float("nan")
    return {"mean": float(difference.mean()), "low": float(difference.mean()) - half, "high": float(difference.mean()) + half, "ahead": int((difference > 0).sum())}


def _print(table: str, result: dict[str, Any]) -> None:
    rows = []
    for name, found in result["methods"].items():
        lead = found.get("default_less_this", {})
        share = found.get("share_to_random")
        rows.append(
            [
                name,
                *(f"{np.median(v):.3f}" + (f" ({lead[s]['mean']:+.3f} [{lead[s]['low']:+.3f}, {lead[s]['high']:+.3f}])" if lead else "") for s, v in found["at"].items()),
                "-" if share is None else f"{share:.2f}",
            ]
        )
    heads = [f"at {s:.0%} of the budget" for s in SHARES]
    print_table(f"{TABLES[table]}: median hypervolume (default less this, mean [95 %])", ["method", *heads, "share of MACs to random's last"], rows)
