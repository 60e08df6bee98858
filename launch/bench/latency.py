"""``dato bench latency``: how well candidates are ordered by latency while the machine is busy with other things.

Three ways: each candidate's own time, its time over that of a short unaccelerated run beside it, and the prediction of the cost table.
The truth is each candidate's median over several rounds of a quiet machine, in turn with all others.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from scipy.stats import kendalltau

from dato.sampler import Sampler
from dato.strategy import Step, Strategy
from launch.bench.timing import interleave, parse, print_table, write_result
from launch.config import build, compose_config
from search.data.datasets import Data
from search.evaluate.evaluator import device_name
from search.evaluate.generate import generate
from search.evaluate.latency import CostTable, Timings, calibration, measure_costs
from search.evaluate.pipelines import load_pipeline
from search.optimize.space import SearchSpace

DEFAULTS = {
    "model": "embedded", "data": "digits", "batch": "10", "batches": "5", "rounds": "5", "strategies": "16", "load": "2", "seed": "0", "threads": "1",
    "output": "analysis/results",
}  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file; further key=value pairs are overrides of the search's configuration."""
    own = [a for a in arguments if a.split("=", 1)[0] in DEFAULTS]
    given = parse(own, DEFAULTS, "latency")
    config = build(compose_config("search", [f"model={given['model']}", f"data={given['data']}", *(a for a in arguments if a not in own)]))
    model, space, batch = config.evaluator.model, config.space, int(given["batch"])
    torch.set_num_threads(int(given["threads"]))
    pipe, data = load_pipeline(model), Data(config.evaluator.data)
    chance = random.Random(int(given["seed"]))
    drawn = [draw(chance, space) for _ in range(int(given["strategies"]))]
    runs = calibration(steps=space.lengths, depths=space.depths, ratios=space.ratios, guidance=space.guidance, samplers=space.samplers)
    clock = Timings(pipe, model, data, range(batch))

    def short() -> float:
        return generate(pipe, model, data, range(batch), steps=2).seconds

    clock.run(runs[-1])
    print("quiet: the truth, and a cost table", flush=True)
    truth_ms: dict[int, list[float]] = {i: [] for i in range(len(drawn))}
    turns: dict[str, Callable[[], object]] = {str(i): partial(lambda i, s: truth_ms[i].append(clock.run(s)), i, s) for i, s in enumerate(drawn)}
    interleave(turns, int(given["rounds"]), pipe.device, warmup=0)
    truth = [statistics.median(truth_ms[i]) for i in range(len(drawn))]
    quiet = measure_costs(pipe, model, data, range(batch), runs, device_name(pipe.device))
    print(f"busy: {given['load']} other processes that work and pause at random", flush=True)
    with _busy(int(given["load"]), int(given["seed"])):
        table = measure_costs(pipe, model, data, range(batch), runs, device_name(pipe.device))
        alone, beside = [], []
        for strategy in drawn:
            own_ms, reference = [], []
            for _ in range(int(given["batches"])):
                reference.append(short())
                own_ms.append(clock.run(strategy))
            alone.append(statistics.median(own_ms))
            beside.append(statistics.median(a / b for a, b in zip(own_ms, reference, strict=True)))
    ways = {
        "its own time": alone,
        "over a short run beside it": beside,
        "cost table measured while busy": [_predict(table, s) for s in drawn],
        "cost table measured while quiet": [_predict(quiet, s) for s in drawn],
    }
    found = {name: compare(values, truth) for name, values in ways.items()}
    rows = [[name, f"{f['kendall']:.3f}", f"{f['mean_rank_error']:.2f}", f"{f['worst_rank_error']}", f"{100 * f['median_error']:.1f} %", f"{100 * f['worst_error']:.0f} %"] for name, f in found.items()]
    print_table(f"order of {len(drawn)} candidates on a busy machine", ["way", "Kendall's tau", "mean rank error", "worst", "median error", "worst error"], rows)
    result = {"ways": found, "truth_ms": truth, "values": ways, "strategies": [f"{s.sampler or 'own'} {s}" for s in drawn]}
    print(write_result("latency", {**given, "geometry": model.name}, pipe.device, result, given["output"]))
    return 0


def compare(values: Sequence[float], truth: Sequence[float]) -> dict[str, Any]:
    """How a way of timing orders candidates, and its errors once the common factor (the median ratio) is taken out."""
    factor = statistics.median(v / t for v, t in zip(values, truth, strict=True))
    errors = [abs(v / t / factor - 1) for v, t in zip(values, truth, strict=True)]
    moved = [abs(a - b) for a, b in zip(_ranks(values), _ranks(truth), strict=True)]
    return {
        "kendall": float(kendalltau(values, truth).statistic), "mean_rank_error": statistics.fmean(moved), "worst_rank_error": max(moved),
        "median_error": statistics.median(errors), "worst_error": max(errors),
    }  # fmt: skip


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    return [order.index(i) for i in range(len(values))]


def _predict(table: CostTable, strategy: Strategy) -> float:
    return table.predict(strategy)


def draw(chance: random.Random, space: SearchSpace) -> Strategy:
    """A random strategy of a space with its own shares of the depths, so that slow and fast ones appear alike."""
    weights = [chance.random() for _ in space.depths]
    steps = [
        Step(chance.choices(space.depths, weights)[0], chance.choice(space.ratios), chance.choice(space.guidance), chance.choice(space.orders))
        for _ in range(chance.choice(space.lengths))
    ]
    return Strategy(tuple(steps), sampler=Sampler.of(chance.choice(space.samplers))).canonical(space.depths_without_pruning)


def _work(seed: int, end: Any) -> None:
    chance, x = random.Random(seed), torch.randn(400, 400)
    torch.set_num_threads(1)
    while not end.is_set():
        until = time.monotonic() + chance.uniform(1, 15)
        while time.monotonic() < until and not end.is_set():
            x = torch.tanh(x @ x)
        end.wait(chance.uniform(1, 15))


@contextmanager
def _busy(processes: int, seed: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    end = context.Event()
    workers = [context.Process(target=_work, args=(seed + i, end), daemon=True) for i in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        end.set()
        for worker in workers:
            worker.join(5)
