"""``dato bench pipeline``: whole images, with text encoder, UNet and VAE apart, against the rivals on the same prompts."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from launch.bench.timing import interleave, parse, print_table, summary, write_result
from launch.config import build, compose_config
from search.data.datasets import Data
from search.evaluate.generate import Batch, generate
from search.evaluate.pipelines import load_pipeline
from search.evaluate.rivals import RivalSettings, rival_variants
from search.evaluate.variants import Variant, strategy_variants

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
    made: dict[str, list[Batch]] = {v.name: [] for v in variants}

    def once(variant: Variant) -> None:
        with variant.baseline.applied(pipe) as (faster, count):
            made[variant.name].append(generate(faster, spec.model, data, indices, steps=count))

    interleave({v.name: partial(once, v) for v in variants}, int(given["rounds"]), pipe.device)
    rows, found = [], {}
    plain = statistics.median(b.seconds for b in made[variants[0].name][1:])
    for variant in variants:
        batches, count = made[variant.name][1:], variant.baseline.steps  # the first round warms up
        whole = summary([b.seconds / len(indices) for b in batches])
        parts = {k: statistics.median(b.parts[k] for b in batches) / len(indices) for k in batches[0].parts}
        speedup = plain / (whole["median_s"] * len(indices))
        found[variant.name] = {**whole, "parts_s": parts, "speedup": speedup, "steps": count}
        rows.append([variant.name, str(count), f"{1000 * whole['median_s']:.1f}", *(f"{1000 * parts[k]:.1f}" for k in parts), f"{speedup:.2f}x"])
    print_table(f"{spec.model.name}, {len(indices)} images a call, ms per image", ["variant", "steps", "whole", "text encoder", "UNet", "VAE", "speedup"], rows)
    result: dict[str, Any] = {"images": found, "model": spec.model.path}
    if pipe.device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated(pipe.device)
    print(write_result("pipeline", {**given, "geometry": spec.model.name}, pipe.device, result, given["output"]))
    return 0


def _variants(sources: Sequence[str], steps: int) -> list[Variant]:
    fewer = [f"{sampler}-{max(2, steps // 5)}" for sampler in ("DDIM", "DPM++")]
    rivals: dict[str, Any] = {"fewer_steps": fewer, "limited_guidance": fewer[1:], "deepcache": [3]}
    if importlib.util.find_spec("tomesd") is None:
        print("tomesd is not installed: its rows are left out (pip install 'dato-search[baselines]')")
    else:
        rivals |= {"tomesd": [0.5], "naive": [(3, 0.5)]}
    plain, *others = rival_variants(steps, RivalSettings(**rivals))
    return [plain, *strategy_variants(sources, steps), *others]
