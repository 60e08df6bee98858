"""``dato bench cost``: how well the cost table predicts the latency of strategies that it was not made from.

Calibration runs and random strategies take turns, so that a machine whose speed drifts does so under both.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

from launch.bench.latency import draw
from launch.bench.timing import interleave, parse, print_table, write_result
from launch.config import build, compose_config
from search.data.datasets import Data
from search.evaluate.evaluator import device_name
from search.evaluate.latency import Timings, calibration
from search.evaluate.pipelines import load_pipeline

DEFAULTS = {"model": "embedded", "data": "digits", "batch": "20", "rounds": "4", "strategies": "20", "seed": "0", "threads": "1", "output": "analysis/results"}


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file; further key=value pairs are overrides of the search's configuration."""
    own = [a for a in arguments if a.split("=", 1)[0] in DEFAULTS]
    given = parse(own, DEFAULTS, "cost")
    config = build(compose_config("search", [f"model={given['model']}", f"data={given['data']}", *(a for a in arguments if a not in own)]))
    model, space = config.evaluator.model, config.space
    torch.set_num_threads(int(given["threads"]))
    pipe, data, indices = load_pipeline(model), Data(config.evaluator.data), range(int(given["batch"]))
    random_source = random.Random(int(given["seed"]))
    drawn = [draw(random_source, space) for _ in range(int(given["strategies"]))]
    known, unknown = Timings(pipe, model, data, indices), Timings(pipe, model, data, indices)
    measured: dict[int, list[float]] = {i: [] for i in range(len(drawn))}
    runs = calibration(steps=space.lengths, depths=space.depths, ratios=space.ratios, guidance=space.guidance, samplers=space.samplers)
    turns: dict[str, Callable[[], object]] = {f"calibration {i}": partial(known.run, s) for i, s in enumerate(runs)}
    turns |= {f"strategy {i}": partial(lambda i, s: measured[i].append(unknown.run(s)), i, s) for i, s in enumerate(drawn)}
    random_source.shuffle(names := list(turns))
    known.run(runs[-1])
    known.clear()
    interleave({name: turns[name] for name in names}, int(given["rounds"]), pipe.device, warmup=0)
    table = known.table(device_name(pipe.device))
    errors, rows = [], []
    for i, strategy in enumerate(drawn):
        real, predicted = statistics.median(measured[i]), table.predict(strategy)
        errors.append(abs(predicted / real - 1))
        rows.append([str(strategy), f"{real:.1f}", f"{predicted:.1f}", f"{100 * (predicted / real - 1):+.1f} %"])
    print_table("latency of strategies outside the table, ms per image", ["strategy", "measured", "predicted", "error"], rows)
    print(f"median error {100 * statistics.median(errors):.1f} %, largest {100 * max(errors):.1f} %")
    result = {"median_error": statistics.median(errors), "errors": errors, "table": table.to_dict(), "measured_ms": [measured[i] for i in measured]}
    print(write_result("cost", {**given, "geometry": model.name}, pipe.device, result, given["output"]))
    return 0
