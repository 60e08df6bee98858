"""Hypervolumes of real searches of one model, device and protocol that compare: ``dato bench search ledgers=[...]``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dato.strategy import FULL, Strategy
from launch.bench.macs import Costs
from launch.bench.timing import print_table
from launch.config import ConfigError
from search.ledger import read_ledger
from search.optimize.pareto import hypervolume
from search.optimize.surrogate import work
from search.records import UNACCELERATED, SearchRecord


def print_ledgers(folders: Sequence[Path]) -> None:
    """Print each search's spent images and hypervolume. Raises `ConfigError` where they do not compare."""
    records = {}
    for folder in folders:
        path = folder / "ledger.jsonl" if folder.is_dir() else folder
        if not path.is_file():
            raise ConfigError(f"{folder} holds no ledger.jsonl; give folders of searches or their ledgers")
        records[str(folder)] = read_ledger(path)
    values = comparable_hypervolumes(list(records.values()))
    embedded = all(r.config["model"].get("path") == "embedded" for r in records.values())
    costs = Costs() if embedded else None
    rows = []
    for (name, r), value in zip(records.items(), values, strict=True):
        by_macs = f"{_hypervolume(r, costs.run):.4f}" if costs else "-"
        spent = f"{sum(costs.run(c.strategy) * m.images for c, m in r.evaluated()):.0f}" if costs else "-"
        rows.append([name, str(len(r.results)), str(r.images), f"{r.device_seconds():.0f}", spent, f"{value:.4f}", by_macs])
    heads = ["search", "candidates", "images", "device seconds", "full calls of candidates", "hypervolume by latency", "by UNet MACs"]
    print_table("hypervolume from twice the unaccelerated FID and its latency (of all searches in one fit) or its UNet MACs", heads, rows)


def comparable_hypervolumes(records: Sequence[SearchRecord]) -> list[float]:
    """Of each search's front on its most images, from one reference point.

    Latencies are those of one linear model of the calls of each kind, fitted to all that the searches measured: an unaccelerated
    pipeline timed at a busy moment moves no hypervolume. The reference is twice the unaccelerated FID, which is the same for all,
    and the fitted latency of the unaccelerated pipeline. Raises `ConfigError` where models, data, images or devices differ.
    """
    # Batches and intervals change no FID.
    kinds = {
        json.dumps([r.config["model"], r.config["data"], {k: v for k, v in r.config["protocol"].items() if k not in ("batch", "bootstrap")}, r.images], sort_keys=True)
        for r in records
    }
    devices = {m.device for r in records for _, m in r.evaluated()}
    if len(kinds) != 1 or len(devices) != 1:
        raise ConfigError(f"the searches have {len(kinds)} different models, data or protocols and {len(devices)} devices; give searches of one of each")
    pairs = [(c.strategy, m.latency_ms) for r in records for c, m in [*r.evaluated(), *r.baselines.values()] if m.ok]
    depths = sorted({step.cache_depth for s, _ in pairs for step in s} | {FULL})
    # Relative errors count: the fast ones are what matters.
    rows, times = np.array([[1.0, *work(s, depths)] for s, _ in pairs]), np.array([t for _, t in pairs])
    weights, *_ = np.linalg.lstsq(rows / times[:, None], np.ones(len(times)), rcond=None)

    def latency(strategy: Strategy) -> float:
        return float(np.array([1.0, *work(strategy, depths)]) @ weights)

    return [_hypervolume(record, latency) for record in records]


def _hypervolume(record: SearchRecord, price: Callable[[Strategy], float]) -> float:
    """Of what was measured on the most images, at a price of each strategy's own."""
    reference = 2 * record.plain(record.images).fid, price(record.baselines[UNACCELERATED][0].strategy)
    return hypervolume([(m.fid, price(c.strategy)) for c, m in record.evaluated(record.images)], reference)
