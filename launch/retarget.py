"""``dato retarget``: winners of a finished search for another device, from its cost table and no new images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dato.files import FileError, read_json, shown
from dato.strategy import Strategy
from launch.arguments import ArgumentError, parse, read_search, search_folder, target_file
from launch.config import build
from search.data.datasets import Data
from search.evaluate.evaluator import device_name
from search.evaluate.latency import CostTable, calibration, measure_costs
from search.evaluate.pipelines import load_pipeline
from search.measurements import Measurement
from search.optimize.winners import choose_winners, in_order_of_speed
from search.records import UNACCELERATED, Candidate, SearchRecord

_MAX_TABLE = 1 << 24
TAKES = {
    "folder": "<search folder>",
    "table": "<JSON of a cost table, in place of measuring this device>",
    "rounds": "<runs of each calibration strategy> (3)",
    "target": "<folder for the winners and the table> (<search folder>/retargeted)",
}


def run(arguments: Sequence[str]) -> int:
    """Price everything that was evaluated, choose anew, print and write."""
    given = parse("retarget", arguments, TAKES, required=["folder"])
    folder = search_folder(given["folder"])
    record = read_search(folder)
    if not record.evaluated() or UNACCELERATED not in record.baselines:
        raise ArgumentError(f"search {record.search_id} has no measured strategies to choose from; run the same dato search command to its end")
    table = _read_table(Path(given["table"])) if "table" in given else _measure(record, _rounds(given))
    priced = priced_record(record, table)
    images, plan = comparable_images(priced), build(record.config).plan
    chosen = choose_winners(priced, plan.winner_speedup, plan.objectives, images, speedups=plan.winner_speedups, tolerance=plan.tolerance)
    # Fresh images are for the device itself to draw: what is within the tolerance on the search's own is not validated.
    if fast := in_order_of_speed(priced, plan.tolerance, plan.objectives, images):
        chosen["fastest"] = fast[0]
    target = Path(given.get("target") or folder / "retargeted")
    target_file(target / "costs.json")
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / "costs.json").write_text(json.dumps(table.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"cannot write into {shown(str(target))} ({error.strerror}); give target=<folder> that you may write") from None
    for alias, candidate in chosen.items():
        _with_provenance(priced, alias, candidate, table, images).save(target / f"{alias}.json")
    _print(record, priced, chosen, table, images)
    if "fastest" not in chosen:
        print(f"no fastest: no candidate is within {plan.tolerance:g} FID points of the unaccelerated pipeline on the search's images (search.tolerance)")
    print(f"chosen    from {len(priced.evaluated(images))} candidates, by their FID on {images} images")
    print(f"winners   {target}/*.json, with the cost table beside them")
    return 0


def priced_record(record: SearchRecord, table: CostTable) -> SearchRecord:
    """The search as it would have looked on the table's device: the same FIDs, latencies as the table predicts them."""

    def price(strategy: Strategy, m: Measurement) -> Measurement:
        if not m.ok:
            return m
        ms = table.predict(strategy)
        return replace(m, latency_ms=ms, latency_low_ms=ms, latency_high_ms=ms, parts_ms={}, device=table.device, batch=table.batch)

    results = {n: price(record.candidates[n].strategy, m) for n, m in record.results.items()}
    promotions = {n: {k: price(record.candidates[n].strategy, m) for k, m in more.items()} for n, more in record.promotions.items()}
    baselines = {name: (c, price(c.strategy, m)) for name, (c, m) in record.baselines.items()}
    at = {name: {k: price(baselines[name][0].strategy, m) for k, m in more.items()} for name, more in record.baselines_at.items()}
    return replace(record, results=results, promotions=promotions, baselines=baselines, baselines_at=at, winners={}, hypervolumes=[])


def comparable_images(priced: SearchRecord) -> int:
    """On how many images to compare: the most that every candidate of the front on the fewest was measured on.

    A search measures on more images what was promising where it ran; what is promising here may have been left behind.
    """
    everyone = {m.images for _, m in priced.evaluated()}
    promising = {c.number for c, _ in priced.front(min(everyone))}
    counts = everyone | {n for more in priced.promotions.values() for n in more}
    return max(n for n in counts if promising <= {c.number for c, _ in priced.evaluated(n)})


def _rounds(given: dict[str, str]) -> int:
    text = given.get("rounds", "3")
    if not (text.isascii() and text.isdigit() and len(text) < 5) or int(text) < 1:
        raise ArgumentError(f"rounds is {shown(text)}; give an integer of at least 1, at most 9999")
    return int(text)


def _read_table(path: Path) -> CostTable:
    try:
        data = read_json(path, _MAX_TABLE)
    except FileError as error:
        raise ArgumentError(f"table is {str(path)!r}, which cannot be read as JSON ({error}); give the costs.json of an earlier retarget") from None
    try:
        return CostTable.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"table is {str(path)!r}, which is no cost table ({type(error).__name__}: {error}); give the costs.json of an earlier retarget") from None


def _measure(record: SearchRecord, rounds: int) -> CostTable:
    config = build(record.config)
    spec = config.evaluator
    if spec.threads:
        torch.set_num_threads(spec.threads)
    pipe = load_pipeline(spec.model)
    # All that was evaluated, and the baselines.
    strategies = [c.strategy for c, _ in (*record.evaluated(), *record.baselines.values())]
    entries = [step for strategy in strategies for step in strategy]
    runs = calibration(
        steps=[*map(len, strategies)],
        depths=sorted({e.cache_depth for e in entries}),
        ratios=sorted({e.prune_ratio for e in entries}),
        guidance=sorted({e.guidance for e in entries}),
        samplers=list(dict.fromkeys(s.sampler for s in strategies)),
    )
    device = device_name(pipe.device)

    def tick(done: int, of: int) -> None:
        print(f"\rmeasuring {device}: run {done} of {of}", end="" if done < of else "\n", flush=True)

    return measure_costs(pipe, spec.model, Data(spec.data), spec.protocol.batches()[0], runs, device, rounds, tick)


def _with_provenance(priced: SearchRecord, alias: str, candidate: Candidate, table: CostTable, images: int) -> Strategy:
    m, plain = {c.number: m for c, m in priced.evaluated(images)}[candidate.number], priced.plain(images)
    return candidate.strategy.with_provenance(
        search_id=priced.search_id,
        alias=alias,
        validated=False,
        quality={"metric": f"FID, {priced.config['protocol']['features']} features", "value": m.fid, "interval": [m.fid_low, m.fid_high], "baseline": plain.fid, "images": m.images, "reference": priced.reference},
        latency={"value": m.latency_ms, "baseline": plain.latency_ms, "unit": "ms per image", "speedup": plain.latency_ms / m.latency_ms, "device": table.device, "batch": table.batch, "predicted": True},
    )


def _print(record: SearchRecord, priced: SearchRecord, chosen: dict[str, Candidate], table: CostTable, images: int) -> None:
    shown = Table(title=f"winners on {table.device}; latencies are predicted, FIDs are those of the search, against {record.reference}", title_justify="left")
    for heading in ("winner", "speedup", "ms per image", "FID", "speedup where it was searched", "strategy"):
        shown.add_column(heading, justify="left" if heading in ("winner", "strategy") else "right")
    plain, before = priced.plain(images), record.plain(record.results[min(record.results)].images)
    measured = {c.number: m for c, m in priced.evaluated(images)}
    for alias, candidate in chosen.items():
        m, searched = measured[candidate.number], record.results[candidate.number]
        shown.add_row(
            alias, f"{plain.latency_ms / m.latency_ms:.2f}x", f"{m.latency_ms:.1f}", f"{m.fid:.2f}", f"{before.latency_ms / searched.latency_ms:.2f}x", str(candidate.strategy)
        )
    Console().print(shown)
