"""``dato bench transformer``: what our hook adds to a call of a transformer, and what a shallow call costs against its share of MACs.

Weights are random: speed does not depend on them. Rivals share the weights and take turns, call by call, so that a machine whose speed
drifts does so under all of them. Seconds are those of the process's CPUs where it computes on a CPU, so that others who use it too count little.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import FirstBlockCacheConfig

from dato import FULL, Step, Strategy, accelerate
from dato.cache_tools import CacheTool
from dato.costs import CostModel
from dato.transformer.blocks import Blocks
from launch.bench.timing import chosen_device, chosen_dtype, parse, print_table, summary, synchronize, write_result
from launch.config import ConfigError
from search.evaluate.geometry import Geometry, geometry

DEFAULTS = {
    "geometry": "flux", "double": "2", "single": "4", "latent": "32", "text": "64", "batch": "1", "dtype": "float32", "device": "auto", "threads": "1",
    "rounds": "5", "calls": "60", "families": "pixart,sd35,flux,qwen_image", "which": "overhead,share,whole", "output": "analysis/results",
}  # fmt: skip
TINY = {"num_attention_heads": 2, "attention_head_dim": 8}
"""Width of the models on which overhead is measured: their kernels are short, and their blocks as many as published."""
BAR_MS = 2.0
"""What our hook may add to a call."""
SHALLOW = 4
"""Shallow calls to each full one."""
_ROOM = 60 * 2**30
"""Bytes of GPU memory that a whole FLUX.1 takes in bfloat16, with two models' calls beside it."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file."""
    given = parse(list(arguments), DEFAULTS, "transformer")
    which, device = given["which"].split(","), chosen_device(given["device"])
    if unknown := set(which) - {"overhead", "share", "whole"}:
        raise ConfigError(f"which holds {sorted(unknown)[0]}; allowed are overhead, share and whole")
    torch.set_num_threads(int(given["threads"]))
    result: dict[str, Any] = {}
    with torch.inference_mode():
        if "overhead" in which:
            result["overhead"] = {name: _overhead(geometry(name), int(given["calls"])) for name in given["families"].split(",")}
            _print_overhead(result["overhead"])
        if "share" in which:
            shape = _stack(geometry(given["geometry"]), int(given["double"]), int(given["single"]), int(given["latent"]), int(given["text"]))
            result["share"] = _share(shape, int(given["batch"]), chosen_dtype(given["dtype"]), device, int(given["rounds"]))
        if "whole" in which:
            result["whole"] = _whole(geometry(given["geometry"]), int(given["batch"]), int(given["rounds"]))
    print(write_result("transformer", given, device, result, given["output"]))
    return 0


class Called:
    """A transformer that is called as its pipelines call it, step after step of a sampler.

    Args:
        model: The transformer.
        shape: Its geometry.
        call: Arguments of one call.
        steps: Of the sampler.
    """

    def __init__(self, model: Any, shape: Geometry, call: dict[str, Any], steps: int) -> None:
        self.model: Any = model
        self.call = call
        scheduler = getattr(diffusers, shape.scheduler)()
        self.pipe = SimpleNamespace(transformer=model, scheduler=scheduler, do_classifier_free_guidance=len(call["hidden_states"]) % 2 == 0)
        scheduler.set_timesteps(steps)
        self.divisor = 1000 if "img_ids" in call or "img_shapes" in call else 1

    def at(self, step: int) -> Any:
        """The call of a step."""
        given = self.call["timestep"]
        self.call["timestep"] = (self.pipe.scheduler.timesteps[step].to(given) / self.divisor).expand(len(given))
        return self.model(**self.call)[0]


def _twin(model: Any, blocks: int | None = None) -> Any:
    """Another transformer of the same weights, held once, of the first blocks alone where a number is given."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, held)
    if blocks is not None:
        for name in Blocks.of(other).lists:
            listed = getattr(other, name)
            setattr(other, name, listed[:blocks])
            blocks -= len(getattr(other, name))
    return other


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: of the process's CPUs, or of a GPU by the clock."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    began = clock()
    call()
    synchronize(device)
    return clock() - began


def _overhead(published: Geometry, calls: int) -> dict[str, Any]:
    """Milliseconds that our hook adds: to full calls against the plain model, to calls at depth 1 against a model of one block."""
    narrow = {"caption_projection_dim": 16} if published.name == "sd35" else {"cross_attention_dim": 16} if published.name == "pixart" else {"axes_dims_rope": (2, 2, 4)}
    shape = replace(published, config={**published.config, **TINY, **narrow}, latent=8, text=8)
    device, batch = torch.device("cpu"), 2 if published.name in ("sd35", "pixart") else 1
    model = shape.random()
    made = partial(Called, shape=shape, call=shape.example(batch), steps=2 * calls)
    ours, plain, bare = (made(m, call=shape.example(batch)) for m in (model, _twin(model), _twin(model, 1)))
    added: dict[str, list[float]] = {"full": [], "d=1": []}
    seconds: dict[str, list[float]] = {"full": [], "plain": [], "d=1": [], "one block": []}
    with accelerate(ours.pipe, Strategy((Step(FULL), Step(1)) * calls)):
        for step in range(2 * calls):
            name, rival, other = ("full", "plain", plain) if step % 2 == 0 else ("d=1", "one block", bare)
            a, b = _timed(partial(ours.at, step), device), _timed(partial(other.at, step), device)
            if step >= 4:  # the first ones look modules up
                added[name].append(a - b)
                seconds[name].append(a)
                seconds[rival].append(b)
    return {
        "blocks": len(Blocks.of(model)), "added_ms": {name: 1000 * statistics.median(each) for name, each in added.items()},
        "seconds": {name: summary(each) for name, each in seconds.items()},
    }  # fmt: skip


def _print_overhead(found: dict[str, Any]) -> None:
    rows = [[name, str(f["blocks"]), *(f"{f['added_ms'][k]:.2f} ms" for k in ("full", "d=1")), *(f"{1000 * f['seconds'][k]['median_s']:.1f} ms" for k in ("plain", "one block"))] for name, f in found.items()]
    print_table(f"what our hook adds to a call of narrow models, of CPU time (bar {BAR_MS:g} ms)", ["model", "blocks", "full over plain", "d=1 over one block", "plain", "one block"], rows)


def _stack(published: Geometry, double: int, single: int, latent: int, text: int) -> Geometry:
    """A model of true width and fewer blocks, fewer tokens."""
    layers: dict[str, Any] = {"num_layers": double} | ({"num_single_layers": single} if published.kind == "FluxTransformer2DModel" else {})
    if "dual_attention_layers" in published.config:
        layers["dual_attention_layers"] = tuple(range(double // 2 + 1))
    return replace(published, config={**published.config, **layers}, latent=latent, text=text)


def _share(shape: Geometry, batch: int, dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, Any]:
    """Calls at depth 1 against full ones, and against those of diffusers' FirstBlockCache and of cache-dit that reuse all blocks but the first."""
    costs, model, steps = shape.costs(), shape.random(dtype, device), (1 + SHALLOW) * (rounds + 1)
    made, missing = {"plain": _twin(model), "one block": _twin(model, 1)}, {}
    for name, rival in RIVALS.items():
        if (why := _tool_of(name).why_not(shape.kind)) is not None:
            missing[name] = f"it does not run {shape.kind}: {why}"
            continue
        try:
            made[name] = rival(_twin(model), steps)
        except ImportError as error:
            missing[name] = f"not installed ({error}): pip install cache-dit"
            print(f"{name} is left out, {missing[name]}")
        except ValueError as error:  # cache-dit knows some models by their pipeline alone
            missing[name] = str(error)
    called = {name: Called(each, shape, shape.example(batch, dtype, device), steps) for name, each in made.items()}
    ours = Called(model, shape, shape.example(batch, dtype, device), steps)
    plain, shallow = called.pop("plain"), {"d=1": ours, **called}
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "full", *shallow)}
    with accelerate(ours.pipe, Strategy((Step(FULL), *[Step(1)] * SHALLOW) * (rounds + 1))):
        for step in range(0, steps, 1 + SHALLOW):
            took = {"plain": [_timed(partial(_one, plain, step), device)], "full": [_timed(partial(_one, ours, step), device)]}
            for k in range(SHALLOW):
                for name, one in shallow.items():
                    took.setdefault(name, []).append(_timed(partial(_one, one, step + 1 + k), device))
            took["plain"].append(_timed(partial(_one, plain, step), device))  # before and after, so that a steady drift is none
            for name, each in took.items() if step else ():  # the first round warms up, and rivals compute everything in it
                seconds[name].append(statistics.mean(each))
    return _compared(shape, costs, seconds, missing)


def _one(called: Called, step: int) -> Any:
    with called.model.cache_context("cond") if hasattr(called.model, "cache_context") else nullcontext():  # as pipelines do, and FirstBlockCache needs
        return called.at(step)


def _with_first_block_cache(model: Any, steps: int) -> Any:
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))  # reuses in every call but the first
    return model


def _with_cache_dit(model: Any, steps: int) -> Any:
    package = import_module("cache_dit")
    settings = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 1, "residual_diff_threshold": 1e9, "num_inference_steps": steps}
    package.enable_cache(model, cache_config=package.DBCacheConfig(**settings))
    return model


RIVALS: dict[str, Callable[[Any, int], Any]] = {"FirstBlockCache": _with_first_block_cache, "cache-dit F1B0": _with_cache_dit}
"""What puts a rival on a model for so many steps, so that it computes the first block alone in every call but the first."""


def _tool_of(name: str) -> CacheTool:
    """The tool of a rival, which knows what it runs."""
    tool = name.partition(" ")[0]
    return CacheTool(tool=tool, setting="F1B0_W1_R9" if tool == "cache-dit" else "9")


def _compared(shape: Geometry, costs: CostModel, seconds: dict[str, list[float]], missing: dict[str, str]) -> dict[str, Any]:
    share = costs.share(Step(1))
    ratios = {name: [a / b for a, b in zip(took, seconds["plain"], strict=True)] for name, took in seconds.items()}
    found: dict[str, Any] = {
        "blocks": len(Blocks.of(shape.meta())), "tokens": (shape.latent // 2) ** 2, "text": shape.text, "gmacs_full": costs.macs(Step(FULL)) / 1e9, "mac_share": share,
        "seconds": {name: summary(took) for name, took in seconds.items()}, "of_plain": {name: statistics.median(r) for name, r in ratios.items()},
        "of_plain_each": ratios, "over_share": statistics.median(ratios["d=1"]) / share - 1, "not_compared": missing,
    }  # fmt: skip
    rows = [[name, f"{statistics.median(took):.3f}", f"{100 * found['of_plain'][name]:.1f} %", " ".join(f"{100 * r:.1f}" for r in ratios[name])] for name, took in seconds.items()]
    print_table(
        f"{shape.name}, {found['blocks']} blocks of true width, {found['tokens']} tokens: d=1 is {100 * share:.2f} % of the MACs, and took {100 * found['of_plain']['d=1']:.2f} % of the time",
        ["call", "seconds", "of plain", "of each round"], rows,
    )  # fmt: skip
    return found


def _whole(published: Geometry, batch: int, rounds: int) -> dict[str, Any]:
    """The same of all published blocks at the published size, on a GPU with room for it; why not otherwise."""
    if not torch.cuda.is_available():
        return _skipped("PyTorch sees no GPU here")
    free, _ = torch.cuda.mem_get_info()
    if free < _ROOM:
        return _skipped(f"{free / 2**30:.0f} GiB of GPU memory are free, and it takes {_ROOM / 2**30:.0f}")
    return _share(published, batch, torch.bfloat16, torch.device("cuda"), rounds)


def _skipped(why: str) -> dict[str, Any]:
    print(f"the whole model is left out: {why}")
    return {"skipped": why}
