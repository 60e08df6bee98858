"""``dato bench fidelity``: how well FIDs on few images order strategies, to choose protocol.images and protocol.fidelities by."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr

from launch.bench.landscape import recorded_strategies
from launch.bench.timing import parse, print_table, write_result
from launch.config import ConfigError, build, compose_config
from search.evaluate.evaluator import PipelineEvaluator
from search.evaluate.measure import load_metrics

DEFAULTS = {
    "model": "embedded", "data": "digits", "evaluations": "analysis/results/evaluations_embedded.json", "strategies": "24",
    "counts": "12,25,50,100,200", "threads": "1", "output": "analysis/results",
}  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file; further key=value pairs are overrides of the search's configuration."""
    own = [a for a in arguments if a.split("=", 1)[0] in DEFAULTS]
    given = parse(own, DEFAULTS, "fidelity")
    try:
        counts = sorted({int(c) for c in given["counts"].split(",")})
    except ValueError:
        counts = []
    if len(counts) < 2 or counts[0] < 2:
        raise ConfigError(f"counts is {given['counts']!r}; give at least two numbers of images, such as counts=25,50,100")
    config = build(compose_config("search", [f"model={given['model']}", f"data={given['data']}", f"protocol.images={counts[-1]}", *(a for a in arguments if a not in own)]))
    known = recorded_strategies(Path(given["evaluations"]))
    # Evenly over all ranks: a front is chosen from the whole range.
    ranked = sorted(known, key=lambda p: p[1])
    chosen = [ranked[int(i)][0] for i in np.linspace(0, len(ranked) - 1, min(int(given["strategies"]), len(ranked)))]
    torch.set_num_threads(int(given["threads"]))
    evaluator, fid = PipelineEvaluator(config.evaluator), load_metrics(config.evaluator).fid
    assert fid is not None
    fids: dict[int, list[float]] = {count: [] for count in counts}
    for strategy in track(chosen, "strategies", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        (shard,) = evaluator.run([strategy], config.evaluator.protocol.batches())
        for count in counts:
            fids[count].append(fid(shard.features[:count]))
        if not sys.stderr.isatty():
            print(f"strategy {len(fids[counts[0]])} of {len(chosen)}: {', '.join(f'{fids[c][-1]:.3f}' for c in counts)}", file=sys.stderr, flush=True)
    found = {str(count): agreement(fids[count], fids[counts[-1]]) for count in counts}
    rows = [[c, f"{f['mean']:.3f}", f"{f['rank_correlation']:.3f}", f"{f['spread']:.4f}", f"{f['share']:.1%}"] for c, f in found.items()]
    print_table(
        f"FIDs of {len(chosen)} strategies, compared with those on {counts[-1]} images",
        ["images", "mean FID", "rank correlation", "spread around a line", "of the spread between strategies"],
        rows,
    )
    result = {"agreement": found, "fids": {str(c): v for c, v in fids.items()}, "strategies": [json.loads(s.to_json()) for s in chosen]}
    print(write_result("fidelity", {**given, "geometry": config.evaluator.model.name}, evaluator.pipe.device, result, given["output"]))
    return 0


def agreement(few: Sequence[float], many: Sequence[float]) -> Mapping[str, Any]:
    """How FIDs on few images follow those on many: a constant offset and factor between them change no order and do not count.

    Returns:
        mean: Of the FIDs on few images.
        rank_correlation: Spearman's.
        spread: Standard deviation around the straight line, in FID points on many images.
        share: That, over the standard deviation between strategies.
    """
    x, y = np.array(few), np.array(many)
    slope, start = np.polyfit(x, y, 1)
    spread = float(np.std(y - slope * x - start, ddof=2))
    return {"mean": float(x.mean()), "rank_correlation": float(spearmanr(x, y).statistic), "spread": spread, "share": spread / float(np.std(y, ddof=1))}
