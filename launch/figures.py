"""``dato figures``: the paper's Figures 1, 2 and 4 on one model, as one HTML page and a PNG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from analysis.dynamics import Series, write_page
from dato import baselines
from dato.strategy import FULL, Strategy
from launch.config import ConfigError
from launch.evaluate import caption
from launch.evaluation import Evaluation, build_evaluation, say
from launch.hydra_app import run_with_hydra
from launch.image_grid import grid, write_row
from search.data.datasets import Data
from search.evaluate.dynamics import BINS, HIGHEST, LOWEST, Dynamics, Recorder, require_unet
from search.evaluate.generate import generate
from search.evaluate.model_files import EMBEDDED_MODELS
from search.evaluate.pipelines import denoiser_in, load_pipeline
from search.evaluate.variants import Variant

FAMILIES_RECORDED = ("plain", "deepcache", "strategy")
"""Of what `figure_variants` records, for its colours: caching alone is what DeepCache does."""


def run(overrides: Sequence[str]) -> int:
    """Run the pipeline in each way, recording, and write ``figures.html``, ``figure2.png`` and ``figures.json``."""
    return run_with_hydra("figures", "evaluate", overrides, lambda raw: _run(build_evaluation("figures", raw)))


def _run(evaluation: Evaluation) -> int:
    settings = evaluation.keys.figures
    recorded, shown = figure_variants(evaluation)
    if evaluation.spec.threads:
        torch.set_num_threads(evaluation.spec.threads)
    require_unet(*denoiser_in(evaluation.spec.model))
    pipe, data, model = load_pipeline(evaluation.spec.model), Data(evaluation.spec.data), evaluation.spec.model
    protocol = replace(evaluation.spec.protocol, images=max(2, settings.images))
    batches = protocol.batches(fresh=evaluation.keys.evaluation.held_out)
    found: list[Dynamics] = []
    columns: list[dict[str, int]] = []
    of_one_length = len({v.baseline.steps for v in recorded}) == 1
    for variant in [*recorded, *shown]:
        say(variant.name)
        calls = heat_map_calls(variant.baseline.steps, of_one_length)
        recorder = Recorder(variant.name, settings.heat_maps, list(calls.values()))
        for batch in batches if variant in recorded else batches[:1]:
            with variant.baseline.applied(pipe, variant.options) as (faster, steps), recorder.recording(faster):
                made = generate(faster, model, data, batch, steps=steps)
            if batch is batches[0]:
                write_row(evaluation.folder / "rows" / f"{variant.digest}.png", made.images[:10])
        if variant in recorded:
            found.append(recorder.dynamics)
            columns.append(calls)
    series = [_series(d, family, found[0], calls) for d, family, calls in zip(found, FAMILIES_RECORDED, columns, strict=True)]
    rows = {v.name: evaluation.folder / "rows" / f"{v.digest}.png" for v in [*recorded, *shown]}
    grid(list(rows.items()), scale=2 if model.path in EMBEDDED_MODELS else 1).save(evaluation.folder / "figure2.png")
    numbers = {s.name: {"median": 10**s.median, "mean": float(np.mean(s.means)), "distance": s.distance, "means": list(s.means)} for s in series}
    (evaluation.folder / "figures.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    note = f"{found[0].images} images. {caption(replace(evaluation, spec=replace(evaluation.spec, protocol=protocol)))}"
    say(str(write_page(evaluation.folder / "figures.html", f"Feature dynamics of {model.name}", note, series, {name: path.read_bytes() for name, path in rows.items()})))
    return 0


def heat_map_calls(steps: int, of_one_length: bool) -> dict[str, int]:
    """The calls whose heat maps Figure 4 shows, by heading: runs of different length compare at the same places, not at the same calls."""
    calls = {place: max(1, min(steps - 1, round(place * steps))) for place in (0.1, 0.25, 0.5, 0.75, 0.95)}
    return {f"call {call}": call for call in calls.values()} if of_one_length else {f"{place:.0%} of the run": call for place, call in calls.items()}


def figure_variants(evaluation: Evaluation) -> tuple[list[Variant], list[Variant]]:
    """What Figures 1 and 4 record (plain, cache only, DaTo), and what Figure 2 shows besides."""
    steps, given = evaluation.steps, evaluation.strategies()
    if len(given) > 1:
        raise ConfigError(f"strategy names {len(given)} strategies; Figures 1 and 4 are of one, such as strategy=[paper-b1]")
    strategy = given[0].baseline.strategy if given else Strategy.uniform(steps, 5, prune_ratio=0.5)
    assert strategy is not None
    if not any(s.cache_depth and s.prune_ratio for s in strategy):
        raise ConfigError(f"{given[0].name} prunes nothing, so that DaTo and cache only are the same; give one with prune ratios, such as deepcache-5@0.5")
    cache_only = replace(strategy, steps=tuple(replace(s, prune_ratio=0.0) for s in strategy), provenance={})
    name = given[0].name if given else "every 5, r=0.5"
    recorded = [Variant.unaccelerated(steps), Variant.of(cache_only, "cache only"), Variant.of(strategy, f"DaTo: {name}")]
    rivals = evaluation.keys.rivals
    ratio = (rivals.tomesd or (0.5,))[-1]
    interval = max(1, round(len(strategy) / strategy.calls_by_depth.get(FULL, 1)))  # as many full calls as the strategy has
    shown = [
        Variant(name=b.name, baseline=b, family="tomesd")
        for b in (baselines.tomesd(steps, ratio), baselines.deepcache_tomesd(steps, interval, ratio))
    ]
    return recorded, shown


def _series(d: Dynamics, family: str, first: Dynamics, calls: dict[str, int]) -> Series:
    return Series(
        name=d.name,
        family=family,
        edges=np.linspace(LOWEST, HIGHEST, BINS + 1),
        histogram=d.histogram.numpy(),
        means=d.means,
        maps={heading: d.maps[call].numpy() for heading, call in calls.items() if call in d.maps},
        median=d.median(),
        distance=d.distance(first),
    )
