"""``dato bench search``: how fast searches find good fronts, at equal UNet MACs.

Every search goes through the same driver and ledger. Candidates are scored by a replay: a model fitted to recorded real
evaluations (see `launch.bench.landscape`), as ten thousands of real ones would take weeks; the result file says so.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from analysis.budget import write_budget_page
from dato.costs import CostModel
from dato.strategy import FULL, Step, Strategy
from launch.bench.landscape import Landscape, collect, noise
from launch.bench.rivals import OptunaSearch, RandomSearch, StockNsga2, TwoStages
from launch.bench.timing import parse, print_table, write_result
from launch.config import ConfigError
from search.driver import Driver
from search.evaluate import Protocol, Shard
from search.geometry import geometry
from search.kept import KeptShards
from search.ledger import Ledger, read_ledger
from search.nsga2 import Nsga2, hypervolume
from search.plan import SearchPlan
from search.records import UNACCELERATED, Measurement, SearchRecord
from search.space import SearchSpace
from search.surrogate import Surrogate
from search.workers import InProcessPool

DEFAULTS = {
    "evaluations": "analysis/results/evaluations_embedded.json",
    "collect": "",
    "candidates": "500",
    "seeds": "5",
    "population": "20",
    "images": "500",
    "fidelity": "100",
    "noise": "0.02",  # of an FID on 100 images, see dato bench fidelity
    "methods": "all",
    "output": "analysis/results",
}
WARM = ("paper-b1", "authors-l12@0.5")
METHODS: dict[str, Callable[[SearchSpace, int, int], Any]] = {
    "stepwise": lambda space, size, seed: _stepwise(space, size, seed),
    "stepwise, no presets": lambda space, size, seed: Nsga2(space=space, population=size, seed=seed),
    "stepwise, fidelities": lambda space, size, seed: _stepwise(space, size, seed),
    "stepwise, surrogate": lambda space, size, seed: _stepwise(space, size, seed, Surrogate(seed=seed)),
    "stepwise, fidelities, surrogate": lambda space, size, seed: _stepwise(space, size, seed, Surrogate(seed=seed)),
    "two stages": lambda space, size, seed: TwoStages(space, size, seed, first=250),
    "paper": lambda space, size, seed: Nsga2(space=space, population=size, seed=seed, operators="paper"),
    "pymoo NSGA-II": lambda space, size, seed: StockNsga2(space, 100, seed),
    "Optuna TPE": lambda space, size, seed: OptunaSearch(space, size, optuna.samplers.TPESampler(seed=seed)),
    "Optuna NSGA-II": lambda space, size, seed: OptunaSearch(space, size, optuna.samplers.NSGAIISampler(population_size=size, seed=seed)),
    "random": lambda space, size, seed: RandomSearch(space, size, seed),
}
POINTS = 60
"""Budgets at which curves are read off."""


def _stepwise(space: SearchSpace, size: int, seed: int, screen: Surrogate | None = None) -> Nsga2:
    return Nsga2(space=space, population=size, seed=seed, given=[Strategy.load(w) for w in WARM], screen=screen)


class Replay:
    """An evaluator that scores strategies without images. Latency is that of the MACs, full calls at one ms."""

    def __init__(self, landscape: Landscape, costs: Costs) -> None:
        self.landscape, self._costs = landscape, costs

    def build(self) -> Replay:
        """Nothing to load."""
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        """Shards that hold a strategy's FID as their only feature, and its MACs as their time."""
        images = sum(len(batch) for batch in batches)
        shards = []
        for strategy, fid in zip(strategies, self.landscape.fid(strategies), strict=True):
            shards.append(Shard(torch.tensor([[float(fid)]]), batch_ms=[self._costs.run(strategy)], seconds=images * self._costs.run(strategy), batch=images))
        return shards


class Costs:
    """UNet MACs of strategies of the embedded model, one image, in units of one full call."""

    def __init__(self) -> None:
        shape = geometry("embedded")
        self._model = CostModel(shape.meta(), shape.latent, shape.latent)

    def run(self, strategy: Strategy) -> float:
        """Of a whole run; PNDM makes one call more than it has steps."""
        return self._model.strategy_macs(strategy, 1) / self._model.macs(Step(FULL))


def run(arguments: Sequence[str]) -> int:
    """Search with every method and seed, print, write the result file."""
    given = parse(list(arguments), DEFAULTS, "search")
    if given["collect"]:
        path = Path(given["evaluations"])
        path.parent.mkdir(parents=True, exist_ok=True)
        found = collect([Path(p) for p in given["collect"].split(",")])
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
        print(f"{len(found['evaluations'])} evaluations in {path}")
        return 0
    names = list(METHODS) if given["methods"] == "all" else given["methods"].split(";")
    unknown = [n for n in names if n not in METHODS]
    if unknown:
        raise ConfigError(f"methods names {unknown[0]!r}; there are {'; '.join(METHODS)}, separated by semicolons")
    landscape, costs = Landscape(Path(given["evaluations"])), Costs()
    print(f"replay fitted to {landscape.held_out['evaluations']} evaluations; held out: R2 {landscape.held_out['r2']:.3f}, rank correlation {landscape.held_out['rank_correlation']:.3f}")
    size, count = int(given["population"]), int(given["candidates"])
    protocol = Protocol(images=int(given["images"]), batch=int(given["images"]), fidelities=(int(given["fidelity"]),))
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    # What `paper` spends on its candidates is everyone's budget.
    for seed in range(int(given["seeds"])):
        budget = None
        for name in sorted(names, key=lambda n: n != "paper"):
            began = time.monotonic()
            record = _search(name, Replay(landscape, costs), protocol, float(given["noise"]), size, count, seed, budget)
            curve = hypervolume_curve(record, landscape, costs)
            budget = budget or curve["macs"][-1]
            curves[name].append({"seed": seed, **curve})
            print(f"seed {seed}, {name}: {len(record.results)} candidates, hypervolume {curve['hypervolume'][-1]:.4f}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    result = {"replay": landscape.held_out, "mode": "replay: FIDs are those of a model fitted to recorded evaluations", **compare(curves)}
    _print(result, names)
    path = write_result("search", {**given, "geometry": "embedded"}, torch.device("cpu"), result, given["output"])
    note = f"Replayed: candidates are scored by a model fitted to {landscape.held_out['evaluations']} real evaluations (R2 on held-out ones {landscape.held_out['r2']:.2f}). Lines are medians over {given['seeds']} seeds, bands go from the least to the most."
    print(path)
    print(write_budget_page(path.with_suffix(".html"), result, note))
    return 0


def _search(name: str, replay: Replay, protocol: Protocol, spread: float, size: int, count: int, seed: int, budget: float | None) -> SearchRecord:
    """One search from its first candidate to its budget; only its ledger is looked at."""
    steps = replay.landscape.steps
    folder = Path(tempfile.mkdtemp(prefix="dato-bench-"))
    # A unit of budget is a full call of one image; the driver counts hours of devices, here 3600 units.
    limit = None if budget is None else budget / 3600
    population = 100 if name == "pymoo NSGA-II" else size
    # Fast strategies are cheap, so that many more of them fit into the budget: no limit but the budget's own.
    generations = max(1, count // population) if budget is None else 1_000_000
    try:
        ledger = Ledger(folder / "ledger.jsonl", f"{name}-{seed}", {}, {})

        def measure(shards: Sequence[Shard]) -> Measurement:
            return Measurement(
                fid=float(shards[0].features[0, 0]),
                images=sum(s.batch for s in shards),
                latency_ms=shards[0].batch_ms[0],
                seconds=sum(s.seconds for s in shards),
            )

        class Noisy(Driver):
            def _to_measurement(self, strategy: Strategy, job: Any, shards: Any) -> Measurement:
                m = super()._to_measurement(strategy, job, shards)
                return replace(m, fid=max(1e-3, m.fid + noise(strategy, m.images, spread)))

            def _validate_winners(self) -> None:
                return None

        driver = Noisy(
            ledger=ledger,
            algorithm=METHODS[name](SearchSpace(steps=steps), size, seed),
            plan=SearchPlan(generations=generations, population=population, max_device_hours=limit),
            protocol=protocol if "fidelities" in name else replace(protocol, fidelities=()),
            pool=InProcessPool(replay),
            measure=measure,
            baselines={UNACCELERATED: Strategy.full(steps)},
            kept=KeptShards(folder / "kept"),
        )
        driver.run()
        ledger.close()
        return read_ledger(folder / "ledger.jsonl")
    finally:
        shutil.rmtree(folder)


def hypervolume_curve(record: SearchRecord, landscape: Landscape, costs: Costs) -> dict[str, list[float]]:
    """Hypervolume of the true front over the MACs spent, from a search's record. A repeated strategy is not paid for again.

    The front is taken by what the search measured, as a user would take it, and then valued without noise.
    """
    reference = (2 * landscape.plain_fid, costs.run(Strategy.full(landscape.steps)))
    candidates = record.evaluated()
    true = dict(zip([c.number for c, _ in candidates], landscape.fid([c.strategy for c, _ in candidates]), strict=True))
    spent, seen, total = [], set[str](), 0.0
    for candidate, m in candidates:
        if candidate.strategy.digest not in seen:
            seen.add(candidate.strategy.digest)
            total += m.images * costs.run(candidate.strategy)
        spent.append(total)
    macs, values = [], []
    for cut in np.unique(np.linspace(1, len(candidates), POINTS).round().astype(int)):
        front, lowest = [], float("inf")
        for c, m in sorted(candidates[:cut], key=lambda p: (p[1].latency_ms, p[1].fid)):
            if m.fid < lowest:
                front.append((float(true[c.number]), m.latency_ms))
                lowest = m.fid
        macs.append(spent[cut - 1])
        values.append(hypervolume(front, reference))
    if record.promotions:
        # Paid for at the end, and only then is the front that of more images.
        extra = sum((max(more) - record.results[n].images) * costs.run(record.candidates[n].strategy) for n, more in record.promotions.items())
        best = [(float(true[c.number]), m.latency_ms) for c, m in record.front()]
        macs.append(macs[-1] + extra)
        values.append(hypervolume(best, reference))
    return {"macs": macs, "hypervolume": values}


def compare(curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each method's median, least and most hypervolume over a common budget, and when it reaches `paper`'s last one."""
    most = min(c["macs"][-1] for runs in curves.values() for c in runs)
    budgets = np.geomspace(most / 200, most, 40)
    table: dict[str, Any] = {}
    for name, runs in curves.items():
        read = np.array([np.interp(budgets, c["macs"], c["hypervolume"], left=0.0) for c in runs])
        table[name] = {"median": np.median(read, 0).tolist(), "least": read.min(0).tolist(), "most": read.max(0).tolist(), "runs": runs}
    if "paper" in curves:
        finals = {c["seed"]: c["hypervolume"][-1] for c in curves["paper"]}
        costs = {c["seed"]: c["macs"][-1] for c in curves["paper"]}
        for name, runs in curves.items():
            shares = []
            for c in runs:
                reached = [m for m, h in zip(c["macs"], c["hypervolume"], strict=True) if h >= finals[c["seed"]]]
                shares.append(reached[0] / costs[c["seed"]] if reached else None)
            table[name]["share_of_papers_macs"] = shares
    return {"budgets": budgets.tolist(), "methods": table}


def _print(result: dict[str, Any], names: Sequence[str]) -> None:
    rows = []
    for name in names:
        found = result["methods"][name]
        shares = [s for s in found.get("share_of_papers_macs", []) if s is not None]
        missed = len(found.get("share_of_papers_macs", [])) - len(shares)
        rows.append(
            [
                name,
                *(f"{found['median'][i]:.4f}" for i in (13, 26, 39)),
                f"{found['least'][39]:.4f} .. {found['most'][39]:.4f}",
                (f"{statistics.median(shares):.2f}" if shares else "-") + (f" ({missed} never)" if missed else ""),
            ]
        )
    budgets = [result["budgets"][i] / result["budgets"][-1] for i in (13, 26, 39)]
    print_table(
        "hypervolume at equal UNet MACs, median of the seeds (replayed evaluations)",
        ["method", *(f"at {b:.0%} of the budget" for b in budgets), "least .. most", "share of paper's MACs to its last value"],
        rows,
    )
