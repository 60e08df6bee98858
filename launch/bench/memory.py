"""``dato bench memory``: peak memory of a process that runs the UNet, plain and accelerated, beside the cached tensors' size."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler

from dato import FULL, Step, Strategy, accelerate
from dato.hooked_model import hook_of
from launch.bench.timing import chosen_device, chosen_dtype, parse, print_table, write_result
from search.evaluate.geometry import unet_geometry

DEFAULTS = {"geometry": "sd15", "batch": "2", "dtype": "float32", "device": "auto", "output": "analysis/results"}
STRATEGIES = {
    "plain": None,
    "caching": Strategy((Step(FULL), *[Step(1)] * 4)),
    "caching and pruning": Strategy((Step(FULL, 0.5), *[Step(1, 0.5)] * 4)),
}


def run(arguments: Sequence[str]) -> int:
    """Run each variant in a process of its own, print and write the result file."""
    given = parse(list(arguments), DEFAULTS, "memory")
    device = chosen_device(given["device"])
    unet_geometry(given["geometry"])
    found: dict[str, Any] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in STRATEGIES:
            found[name] = pool.apply(_peak, (name, given))
    plain = found["plain"]["peak_bytes"]
    for entry in found.values():
        entry["over_plain_bytes"] = entry["peak_bytes"] - plain
        entry["over_plain_and_cache_share"] = (entry["peak_bytes"] - plain - entry["cached_bytes"]) / plain
    rows = [[n, *(f"{e[k] / 2**20:.0f}" for k in ("peak_bytes", "over_plain_bytes", "cached_bytes")), f"{100 * e['over_plain_and_cache_share']:.1f} %"] for n, e in found.items()]
    print_table("peak memory, MiB", ["variant", "peak", "over plain", "cached tensors", "more than that, of plain"], rows)
    print(write_result("memory", given, device, {"variants": found}, given["output"]))
    return 0


def _peak(name: str, given: dict[str, str]) -> dict[str, int]:
    device, dtype, shape = chosen_device(given["device"]), chosen_dtype(given["dtype"]), unet_geometry(given["geometry"])
    pipe = SimpleNamespace(unet=shape.random(dtype, device), scheduler=DDIMScheduler(), do_classifier_free_guidance=True)
    call = shape.example(int(given["batch"]), dtype, device)
    strategy, cached = STRATEGIES[name], 0
    with torch.inference_mode():
        pipe.scheduler.set_timesteps(5)
        if strategy is None:
            for _ in range(3):
                pipe.unet(**call)
        else:
            with accelerate(pipe, strategy):
                for t in pipe.scheduler.timesteps[:4]:  # after the last one nothing is kept
                    pipe.unet(**{**call, "timestep": t})
                hook: Any = hook_of(pipe.unet)
                kept = hook.runs.last.kept
                shared = [x for share in kept.precomputed.values() for x in (share.convolution, share.shortcut)]
                tensors = {id(x): x for x in (*kept.tensors(), *shared)}
                cached = sum(x.numel() * x.element_size() for x in tensors.values())
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_bytes": peak, "cached_bytes": cached}
