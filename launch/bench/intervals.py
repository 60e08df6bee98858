"""``dato bench intervals``: how often 95 % intervals of FID and of its paired differences cover what many other images give.

Features of many images are made once and kept in `folder`, block by block, so that a run that was cut short goes on. Then they are cut
into disjoint sets: in the order of their prompts, as a search draws them, and in a random order, as from a list of prompts without classes.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from scipy.special import stdtrit

from dato.strategy import Strategy
from launch.bench.timing import parse, print_table, write_result
from launch.config import ConfigError, build, compose_config
from search.data.datasets import Data
from search.evaluate.evaluator import PipelineEvaluator
from search.evaluate.measure import load_metrics
from search.evaluate.tensor_file import write_tensors
from search.metrics.intervals import Groups, Value
from search.metrics.quality import Fid
from search.records import UNACCELERATED

DEFAULTS = {
    "model": "embedded", "data": "digits", "sets": "40", "counts": "50,100,200", "first": "2000000", "threads": "1",
    "folder": "outputs/intervals", "make": "true", "output": "analysis/results",
}  # fmt: skip
BLOCK = 200


def strategies(steps: int) -> dict[str, Strategy]:
    """What is compared: the unaccelerated pipeline first, then five strategies from careful to reckless."""
    return {
        UNACCELERATED: Strategy.full(steps),
        "every3-r5": Strategy.uniform(steps, 3, 1, 0.5),
        "every5-r5": Strategy.uniform(steps, 5, 1, 0.5),
        "every10-r5": Strategy.uniform(steps, 10, 1, 0.5),
        "paper-b1": Strategy.preset("paper-b1").resample(steps),
        "authors-l12": Strategy.preset("authors-l12@0.5").resample(steps),
    }


def run(arguments: Sequence[str]) -> int:
    """Make what is missing, measure, print and write the result file; further key=value pairs are overrides of the search's configuration."""
    own = [a for a in arguments if a.split("=", 1)[0] in DEFAULTS]
    given = parse(own, DEFAULTS, "intervals")
    try:
        sets, counts = int(given["sets"]), sorted({int(c) for c in given["counts"].split(",")})
    except ValueError:
        sets, counts = 0, []
    if sets < 2 or not counts or counts[0] < 20:
        raise ConfigError(f"sets is {given['sets']!r} and counts {given['counts']!r}; give at least 2 sets and numbers of at least 20 images, such as sets=40 counts=50,100")
    config = build(compose_config("search", [f"model={given['model']}", f"data={given['data']}", "protocol.batch=20", *(a for a in arguments if a not in own)]))
    torch.set_num_threads(int(given["threads"]))
    folder, chosen = Path(given["folder"]) / config.evaluator.model.name, strategies(config.evaluator.model.steps)
    if given["make"] == "true":
        _make(PipelineEvaluator(config.evaluator), chosen, folder, sets * counts[-1], int(given["first"]))
    features = _read(folder)
    available = len(features[UNACCELERATED])
    fid, turn = load_metrics(config.evaluator).fid, Data(config.evaluator.data).turn
    assert fid is not None
    order = torch.randperm(available, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for count in counts:
        if available // count < 2:
            print(f"{available} images are too few for two sets of {count}: left out", file=sys.stderr)
            continue
        number = min(sets, available // count)
        for kind, places, groups in (("prompts in turn", torch.arange(available), Groups(turn=turn)), ("prompts at random", order, Groups())):
            rows += coverage(fid, {n: x[places] for n, x in features.items()}, count, number, groups, kind)
    print_table(
        "intervals of disjoint sets of images against the mean of all of them",
        ["images", "sets", "order", "of", "mean", "spread between sets", "median standard error", "coverage of 95 %"],
        [[str(r["images"]), str(r["sets"]), r["order"], r["of"], f"{r['mean']:+.3f}", f"{r['spread']:.3f}", f"{r['error']:.3f}", f"{r['coverage']:.0%}"] for r in rows],
    )
    for (order_of, count), group in itertools.groupby(sorted(rows, key=lambda r: (r["order"], r["images"])), key=lambda r: (r["order"], r["images"])):
        pairs = [r["coverage"] for r in group if r["of"] != UNACCELERATED]
        print(f"{order_of}, {count} images: paired differences covered in {min(pairs):.0%} to {max(pairs):.0%}, {statistics.fmean(pairs):.1%} in all")
    print(write_result("intervals", {**given, "geometry": config.evaluator.model.name}, torch.device("cpu"), {"rows": rows, "images": available}, given["output"]))
    return 0


def coverage(fid: Fid, features: Mapping[str, torch.Tensor], count: int, number: int, groups: Groups, kind: str) -> list[dict[str, Any]]:
    """How the intervals of `number` disjoint sets of `count` images do, of the unaccelerated FID and of each strategy's difference to it.

    The value to cover is the mean over all disjoint sets of this size: FID depends on the number of images.
    """
    every = min(len(x) for x in features.values()) // count
    values = {name: [fid.value(x[i * count : (i + 1) * count], groups) for i in range(every)] for name, x in features.items()}
    plain = values[UNACCELERATED]
    rows = []
    for name, found in values.items():
        of = found if name == UNACCELERATED else [v.minus(p) for v, p in zip(found, plain, strict=True)]
        truth = statistics.fmean(v.value for v in of)
        judged = of[:number]
        rows.append(
            {
                "images": count, "sets": len(judged), "order": kind, "of": name, "mean": truth, "spread": statistics.stdev(v.value for v in of),
                "error": statistics.median(_error(v) for v in judged), "coverage": statistics.fmean(float(v.low <= truth <= v.high) for v in judged),
            }
        )  # fmt: skip
    return rows


def _error(value: Value) -> float:
    return (value.high - value.value) / float(stdtrit(len(value.left_out) - 1, 0.975))


def _make(evaluator: PipelineEvaluator, chosen: Mapping[str, Strategy], folder: Path, images: int, first: int) -> None:
    blocks = -(-images // BLOCK)
    for block in range(blocks):
        path = folder / f"{block:03d}.safetensors"
        if path.is_file():
            continue
        began, indices = time.monotonic(), range(first + BLOCK * block, first + BLOCK * (block + 1))
        shards = evaluator.run(list(chosen.values()), [list(indices[i : i + 20]) for i in range(0, BLOCK, 20)])
        write_tensors(path, {name: shard.features for name, shard in zip(chosen, shards, strict=True)})
        print(f"block {block + 1} of {blocks}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no features; run dato bench intervals with make=true")
    blocks = [load_file(f) for f in files]
    return {name: torch.cat([b[name] for b in blocks]) for name in blocks[0]}
