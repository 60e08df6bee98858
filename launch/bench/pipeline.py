"""``dato bench pipeline``: whole images, with text encoder, UNet and VAE apart, against the rivals on the same prompts."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from dato import Strategy, baselines
from dato.baselines import Baseline
from launch.bench.timing import interleave, parse, print_table, summary, write_result
from launch.config import build, compose_config
from search.data.datasets import Data
from search.evaluate.generate import Batch, generate
from search.evaluate.pipelines import load_pipeline

DEFAULTS = {
    "model": "embedded", "data": "digits", "batch": "20", "rounds": "5", "threads": "0",
    "strategies": "paper-b1,authors-l12@0.5,deepcache-5", "output": "analysis/results",
}


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file; further key=value pairs are overrides of the search's configuration."""
    own = [a for a in arguments if a.split("=", 1)[0] in DEFAULTS]
    given = parse(own, DEFAULTS, "pipeline")
    overrides = [a for a in arguments if a not in own]
    spec = build(compose_config("search", [f"model={given['model']}", f"data={given['data']}", *overrides])).evaluator
    if int(given["threads"]):
        torch.set_num_threads(int(given["threads"]))
    pipe, data, steps = load_pipeline(spec.model), Data(spec.data), spec.model.steps
    indices = list(range(int(given["batch"])))
    variants = _variants(given["strategies"].split(","), steps)
    made: dict[str, list[Batch]] = {b.name: [] for b in variants}

    def once(baseline: Baseline) -> None:
        with baseline.applied(pipe) as (faster, count):
            made[baseline.name].append(generate(faster, spec.model, data, indices, steps=count))

    interleave({b.name: partial(once, b) for b in variants}, int(given["rounds"]), pipe.device)
    rows, found = [], {}
    plain = statistics.median(b.seconds for b in made[variants[0].name][1:])
    for baseline in variants:
        batches = made[baseline.name][1:]  # the first round warms up
        whole = summary([b.seconds / len(indices) for b in batches])
        parts = {k: statistics.median(b.parts[k] for b in batches) / len(indices) for k in batches[0].parts}
        speedup = plain / (whole["median_s"] * len(indices))
        found[baseline.name] = {**whole, "parts_s": parts, "speedup": speedup, "steps": baseline.steps}
        rows.append([baseline.name, str(baseline.steps), f"{1000 * whole['median_s']:.1f}", *(f"{1000 * parts[k]:.1f}" for k in parts), f"{speedup:.2f}x"])
    print_table(f"{spec.model.name}, {len(indices)} images a call, ms per image", ["variant", "steps", "whole", "text encoder", "UNet", "VAE", "speedup"], rows)
    result: dict[str, Any] = {"images": found, "model": spec.model.path}
    if pipe.device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated(pipe.device)
    print(write_result("pipeline", {**given, "geometry": spec.model.name}, pipe.device, result, given["output"]))
    return 0


def _variants(sources: Sequence[str], steps: int) -> list[Baseline]:
    found = [baselines.plain(steps)]
    for source in sources:
        strategy = Strategy.load(source)
        found.append(Baseline(name=source, steps=steps, strategy=strategy if len(strategy) == steps else strategy.resample(steps)))
    fewer = max(2, steps // 5)
    found += [baselines.fewer_steps("DDIM", fewer), baselines.fewer_steps("DPM++", fewer), baselines.deepcache(steps, 3)]
    if importlib.util.find_spec("tomesd") is None:
        print("tomesd is not installed: its rows are left out (pip install 'dato-search[baselines]')")
        return found
    return [*found, baselines.tomesd(steps, 0.5), baselines.deepcache_tomesd(steps, 3, 0.5)]

