"""``dato bench pruning``: whether pruning tokens in the attention of a diffusion transformer pays. The three parts:

- images: whole runs with tokens pruned, beside runs that reuse predictions or residuals and runs of fewer steps;
- calls: how far single calls of a plain run, made again with tokens pruned, are from what they were, beside no call at all;
- price: what pruning saves in a block at the geometry of real models, in multiply-accumulates and in seconds of the processor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dato import pruning
from dato.denoiser import denoiser_of
from dato.options import Options
from dato.strategy import FULL, Step, Strategy, StrategyError
from dato.transformer.refusals import BATCHED
from launch.bench.pruned_attention import PrunedRun, attention_of, prune_attention
from launch.bench.timing import parse, print_table, write_result
from launch.bench.transformer_blocks import GEOMETRIES, BlockGeometry
from launch.config import ConfigError, build, compose_config
from search.evaluate.evaluator import PipelineEvaluator
from search.evaluate.generate import generate
from search.evaluate.measure import load_metrics
from search.metrics.similarity import PlainFeatures, feature_distance

DEFAULTS = {
    "parts": "images,calls,price", "model": "embedded_dit", "data": "digits", "images": "100", "ratios": "0.1,0.2,0.4,0.6", "blocks": "all", "tokens": "1024,4096",
    "timed_tokens": "4096", "rounds": "3", "threads": "1", "output": "analysis/results",
}  # fmt: skip
PAYS_MOST = ("SD3-medium", 4096)
"""Geometry at which the table of images counts: of those measured nearly the one where pruning saves the most."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file; further key=value pairs are overrides of the search's configuration."""
    own = [a for a in arguments if a.split("=", 1)[0] in DEFAULTS]
    given = parse(own, DEFAULTS, "pruning")
    ratios = [float(r) for r in given["ratios"].split(",")]
    try:
        for ratio in ratios:
            Step(FULL, ratio)
    except StrategyError as error:
        raise ConfigError(f"ratios is {given['ratios']!r}: {error}") from None
    parts, names = given["parts"].split(","), list(GEOMETRIES) if given["blocks"] == "all" else given["blocks"].split(";")
    for key, chosen, choices in (("parts", parts, DEFAULTS["parts"].split(",")), ("blocks", names, list(GEOMETRIES))):
        if unknown := [c for c in chosen if c not in choices]:
            raise ConfigError(f"{key} names {unknown[0]!r}; there are {'; '.join(choices)}")
    torch.set_num_threads(int(given["threads"]))
    if set(parts) & {"images", "calls"}:
        config = build(compose_config("search", [f"model={given['model']}", f"data={given['data']}", f"protocol.images={given['images']}", *(a for a in arguments if a not in own)]))
        evaluator = PipelineEvaluator(config.evaluator)
        kind = type(denoiser_of(evaluator.pipe)).__name__
        allowed = (*BATCHED, *(() if "images" in parts else ("UNet2DConditionModel",)))
        if kind not in allowed:
            raise ConfigError(f"model is {given['model']!r}, which has a {kind}; parts={given['parts']} needs a {' or a '.join(allowed)}, such as that of model={DEFAULTS['model']}")
    for part in parts:
        found: dict[str, Any]
        if part == "images":
            found = whole_runs(evaluator, ratios)
        elif part == "calls":
            found = single_calls(evaluator, ratios)
        else:
            wanted = [(name, int(n)) for n in given["tokens"].split(",") for name in names]
            found = {f"{name}, {n} tokens": price(GEOMETRIES[name], n, ratios, int(given["rounds"]) if n <= int(given["timed_tokens"]) else 0) for name, n in wanted}
            _print_price(found, ratios)
        named = {**given, "geometry": part if part == "price" else f"{part}_{given['model']}"}
        print(write_result("pruning", named, torch.device("cpu"), {part: found}, given["output"]))
    return 0


def whole_runs(evaluator: PipelineEvaluator, ratios: Sequence[float]) -> dict[str, dict[str, float]]:
    """Of each way to run: FID less the unaccelerated one with its interval, feature distance, and its share of the multiply-accumulates (`PAYS_MOST`)."""
    steps, blocks = evaluator.spec.model.steps, len(evaluator.pipe.transformer.transformer_blocks)
    half, name, macs = blocks // 2, PAYS_MOST[0], {r: block_macs(GEOMETRIES[PAYS_MOST[0]], PAYS_MOST[1], r) for r in (0.0, *ratios)}
    low = min(ratios)

    def pattern(*signs: Step) -> Strategy:
        return Strategy(tuple(signs[i % len(signs)] for i in range(steps)))

    full, line = Step(FULL), Step(0, order=1)
    ways: dict[str, tuple[Strategy, tuple[float, ...]]] = {"unaccelerated": (Strategy.full(steps), (0.0,))}
    for ratio in ratios:
        ways[f"all computed, r={ratio:g}"] = (Strategy.full(steps), (ratio,))
    ways[f"all computed, every second one r={low:g}"] = (Strategy.full(steps), (0.0, low))
    for label, strategy in {
        "every third step a line": pattern(full, full, line),
        f"every third step {half} of {blocks} blocks": pattern(full, full, Step(half)),
        f"two of three steps {half} of {blocks} blocks": pattern(full, Step(half), Step(half)),
        "two of three steps a line": pattern(full, line, line),
    }.items():
        ways[label] = (strategy, (0.0,))
    ways[f"every third step a line, r={low:g}"] = (pattern(full, full, line), (low,))
    for count in sorted({max(2, round(share * steps)) for share in (0.7, 0.5, 0.35)}, reverse=True):
        ways[f"{count} steps"] = (Strategy.full(count), (0.0,))

    found: dict[str, dict[str, float]] = {}
    metrics, plain_fid, plain = load_metrics(evaluator.spec), None, None
    for label, (strategy, pruned) in ways.items():
        shards = []
        for batch in evaluator.spec.protocol.batches():
            with PrunedRun(evaluator.pipe, pruned):
                shards += evaluator.run([strategy], [batch])
        fid = metrics.of(shards, intervals=("fid",))["fid"]
        plain_fid, plain = plain_fid or fid, plain or PlainFeatures.of_shards(shards)
        difference, distance = fid.minus(plain_fid), feature_distance(shards, plain)
        assert distance is not None
        calls = [macs[pruned[i % len(pruned)]] * (1 if s.cache_depth == FULL else s.cache_depth / blocks) for i, s in enumerate(strategy)]
        found[label] = {
            "macs": sum(calls) / (steps * macs[0.0]), "fid": fid.value, "difference": difference.value, "low": difference.low, "high": difference.high, "distance": distance.value,
        }  # fmt: skip
        print(f"{label}: FID {fid.value:.3f}, distance {distance.value:.3f}", file=sys.stderr, flush=True)
    rows = [[label, f"{f['macs']:.0%}", f"{f['difference']:+.2f} [{f['low']:+.2f}, {f['high']:+.2f}]", f"{f['distance']:.3f}"] for label, f in found.items()]
    print_table(f"{evaluator.spec.protocol.images} images, {steps} steps", ["run", f"MACs of {name} at {PAYS_MOST[1]} tokens", "FID less unaccelerated [95 %]", "feature distance"], rows)
    return found


def single_calls(evaluator: PipelineEvaluator, ratios: Sequence[float]) -> dict[str, list[float]]:
    """Of calls of one unaccelerated run of a batch, made again in other ways: |difference| / |guided prediction|, a value for each of the places 1/5 to 4/5 of the run."""
    pipe, spec = evaluator.pipe, evaluator.spec
    places = {max(2, spec.model.steps * k // 5) for k in (1, 2, 3, 4)}
    found: dict[str, list[float]] = {}
    earlier: list[torch.Tensor] = []
    busy, calls = False, 0

    def guided(prediction: torch.Tensor) -> torch.Tensor:
        uncond, cond = prediction.chunk(2)
        return uncond + spec.model.guidance * (cond - uncond)

    def again(ratio: float, call: Callable[[], Any], best: bool) -> torch.Tensor:
        with PrunedRun(pipe, [ratio], best) as pruned:
            pruned.compared = list(earlier)
            prediction: torch.Tensor = call()[0]
            return prediction

    def look(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy, calls
        if busy:
            return
        busy = True
        if calls in places:
            ways = {"no call: the last prediction": earlier[0], "no call: a line through the last two": 2 * earlier[0] - earlier[1]}
            for ratio in ratios:
                for best, choice in ((False, ""), (True, ", the best choice")):
                    ways[f"r={ratio:g}{choice}"] = again(ratio, lambda: model(*args, **kwargs), best)
            true = guided(output[0])
            for label, prediction in ways.items():
                found.setdefault(label, []).append(float((guided(prediction) - true).norm() / true.norm()))
        earlier[:] = [output[0], *earlier[:1]]
        busy, calls = False, calls + 1

    handle = denoiser_of(pipe).register_forward_hook(look, with_kwargs=True)
    try:
        generate(pipe, spec.model, evaluator.data, spec.protocol.batches()[0], warm_up=True)
    finally:
        handle.remove()
    rows = [[label, *(f"{v:.1%}" for v in values)] for label, values in found.items()]
    print_table("error of the guided prediction of one call", ["call", *(f"call {p}" for p in sorted(places))], rows)
    return found


def price(geometry: BlockGeometry, image: int, ratios: Sequence[float], rounds: int) -> dict[str, Any]:
    """MACs of one block, plain and pruned, with its share of the plan that a call makes once for all; and seconds of the processor in so many rounds."""
    macs = {r: block_macs(geometry, image, r) for r in (0.0, *ratios)}
    found: dict[str, Any] = {"macs": macs[0.0], "plan_macs": _plan_macs(geometry, image), "pruned": {f"{r:g}": {"macs": macs[r] / macs[0.0]} for r in ratios}}
    if not rounds:
        return found
    block, call = geometry.block().eval(), geometry.call(image, geometry.text)
    plans: dict[float, pruning.PrunePlan | None] = {0.0: None, **{r: _plan(geometry, call, r) for r in ratios}}
    current: list[pruning.PrunePlan | None] = [None]
    prune_attention(attention_of(block), lambda _tokens, _own: current[0], geometry.text_first)
    seconds: dict[float, list[float]] = {r: [] for r in plans}
    planning: list[float] = []
    with torch.no_grad():
        block(**call)  # warm
        for _ in range(rounds):
            for ratio, times in seconds.items():
                current[0] = plans[ratio]
                times.append(_spent(lambda: block(**call)))
            planning.append(_spent(lambda: _plan(geometry, call, max(ratios))))
    print(f"{type(block).__name__}, {image} tokens: {[round(median(t), 3) for t in seconds.values()]} s", file=sys.stderr, flush=True)
    for ratio in ratios:
        time_of = (median(seconds[ratio]) + median(planning) / geometry.blocks) / median(seconds[0.0])
        found["pruned"][f"{ratio:g}"] |= {"seconds": seconds[ratio], "time": time_of}
    return {**found, "seconds": seconds[0.0], "plan_seconds": planning}


def _spent(work: Callable[[], Any]) -> float:
    """Seconds of the processor, which a machine that does other things does not lengthen much."""
    began = time.process_time()
    work()
    return time.process_time() - began


def block_macs(geometry: BlockGeometry, image: int, ratio: float) -> float:
    """MACs of a block with its share of the plan, counted on the meta device."""
    with torch.device("meta"), torch.no_grad():
        block, call = geometry.block(), geometry.call(image, geometry.text)
        made = _plan(geometry, call, ratio) if ratio else None
        handles = prune_attention(attention_of(block), lambda _tokens, _own: made, geometry.text_first)
        with FlopCounterMode(display=False) as counter:
            block(**call)
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() / 2 + (_plan_macs(geometry, image) / geometry.blocks if ratio else 0)


def _plan_macs(geometry: BlockGeometry, image: int) -> int:
    base = image // Options().patch ** 2
    return (image - base) * base * geometry.channels


def _plan(geometry: BlockGeometry, call: dict[str, Any], ratio: float) -> pruning.PrunePlan:
    """Of random tokens: which ones are chosen changes no cost."""
    tokens = call["hidden_states"]
    image, device = tokens.shape[1], tokens.device
    base = torch.arange(0, image, Options().patch ** 2, device=device)[None]
    return pruning.plan(tokens, base, int(ratio * image + 1e-9))


def _print_price(found: dict[str, Any], ratios: Sequence[float]) -> None:
    rows = [
        [name, f"{f['macs'] / 1e9:.0f}", *(", ".join(f"{v:.2f}" for k, v in f["pruned"][f"{r:g}"].items() if k != "seconds") for r in ratios)] for name, f in found.items()
    ]
    print_table("a block with tokens pruned, of the plain one: MACs, seconds of the processor", ["block", "GMACs", *(f"r={r:g}" for r in ratios)], rows)
