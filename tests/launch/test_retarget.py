"""Winners for another device: two made-up devices that order strategies differently, and this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dato import Step, Strategy
from dato.call_plan import CallPlan
from dato.sampler import SAMPLERS
from launch.__main__ import main
from launch.retarget import comparable_images, priced_record
from search.evaluate.latency import CostTable, SamplerCost
from search.ledger import Ledger, read_ledger
from search.records import UNACCELERATED, Candidate

RATIOS = (0.0, 0.3, 0.5, 0.7)


def make_table(name: str, full: float, pruned: float) -> CostTable:
    """`pruned`: what a ratio of 1 would save of any call; negative where pruning costs more than it saves."""
    priced = {CallPlan(Step(0)): 0.01}
    for ratio in RATIOS:
        priced[CallPlan(Step(12, ratio))] = full * (1 - pruned * ratio)
        priced |= {CallPlan(Step(1, ratio), share): 2.0 * (1 - pruned * ratio) for share in ("none", "precompute", "reuse")}
    return CostTable(device=name, batch=10, fixed_ms=1.0, samplers={None: SamplerCost(extra=1)}, work_ms=priced)


def test_another_device_has_other_winners(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    before = (folder / "ledger.jsonl").read_bytes()
    record, found = read_ledger(folder / "ledger.jsonl"), {}
    # On one device pruning pays and a full call is dear; on the other pruning costs.
    for table in (make_table("pruner", 20.0, 0.9), make_table("fused", 20.0, -3.0)):
        path = tmp_path / f"{table.device}.json"
        path.write_text(json.dumps(table.to_dict()))
        assert main(["retarget", f"folder={folder}", f"table={path}", f"target={tmp_path / table.device}"]) == 0
        assert f"winners on {table.device}" in capsys.readouterr().out
        priced = priced_record(record, table)
        found[table.device] = [c.number for c, _ in priced.front()]
        assert not (tmp_path / table.device / "fastest.json").exists(), "the toy's faster strategies are all worse"
        for alias in ("quality", "balanced", "at-2x"):
            strategy = Strategy.load(tmp_path / table.device / f"{alias}.json")
            latency = strategy.provenance["latency"]
            assert latency["value"] == pytest.approx(table.predict(strategy))
            assert latency["predicted"] is True
            assert strategy.provenance["validated"] is False
            assert strategy.digest in {c.strategy.digest for c, _ in record.evaluated()}
    assert found["pruner"] != found["fused"]
    assert (folder / "ledger.jsonl").read_bytes() == before


def test_what_is_promising_on_the_other_device_is_compared_on_equal_images(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    record = read_ledger(folder / "ledger.jsonl")
    ledger = Ledger(folder / "ledger.jsonl", record.search_id, record.config, record.environment)
    (plain, m), front = record.baselines[UNACCELERATED], record.front()[:3]
    ledger.baseline(plain, replace(m, images=40))
    for candidate, measured in front:  # what was promising where it ran, and nothing else
        ledger.promotion(candidate.number, 40, replace(measured, images=40))
    ledger.close()
    record = read_ledger(folder / "ledger.jsonl")
    odd = priced_record(record, make_table("fused", 20.0, -3.0))
    promising = {c.number for c, _ in odd.front(20)}
    assert not promising <= {c.number for c, _ in front}
    assert comparable_images(odd) == 20
    every = replace(odd, promotions={n: {40: replace(m, images=40)} for n, m in odd.results.items() if m.ok})
    assert comparable_images(every) == 40
    path = tmp_path / "fused.json"
    path.write_text(json.dumps(make_table("fused", 20.0, -3.0).to_dict()))
    assert main(["retarget", f"folder={folder}", f"table={path}"]) == 0
    out = capsys.readouterr().out
    assert "from 23 candidates, by their FID on 20 images" in out
    assert "no fastest" in out and "search.tolerance" in out
    chosen = {Strategy.load(folder / "retargeted" / f"{alias}.json").digest for alias in ("quality", "balanced", "at-2x")}
    assert chosen <= {record.candidates[n].strategy.digest for n in promising}


def test_the_limits_of_the_search_hold_on_the_other_device(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = make_search(tmp_path / "toy"), tmp_path / "slow.json"
    path.write_text(json.dumps(replace(make_table("slow", 20.0, 0.0), fixed_ms=100_000.0).to_dict()))  # nothing there is much faster
    assert main(["retarget", f"folder={folder}", f"table={path}"]) == 1
    assert "no candidate keeps the limits of the search (max_fid, max_latency_ms, min_speedup" in capsys.readouterr().err
    assert not (folder / "retargeted").exists()


def test_failures_stay_failures(make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    priced = priced_record(record, make_table("a", 10, 0.5))
    assert [n for n, m in priced.results.items() if not m.ok] == [n for n, m in record.results.items() if not m.ok] == [1]
    assert all(priced.results[n].fid == m.fid for n, m in record.results.items() if m.ok)


def test_strategies_of_other_samplers_and_lengths_are_priced_where_the_table_knows_them(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    record = read_ledger(folder / "ledger.jsonl")
    ledger = Ledger(folder / "ledger.jsonl", record.search_id, record.config, record.environment)
    best, number = min((m for m in record.results.values() if m.ok), key=lambda m: m.fid), len(record.candidates)
    ledger.ask(Candidate(number=number, generation=0, strategy=Strategy.full(4, "DPM++")))
    ledger.result(number, replace(best, fid=best.fid - 1))
    ledger.close()
    table = make_table("new", 20.0, 0.5)
    knows = replace(table, samplers={**table.samplers, SAMPLERS["DPM++"]: SamplerCost(call_ms=0.5)})
    priced = priced_record(read_ledger(folder / "ledger.jsonl"), knows)
    assert priced.results[number].latency_ms == 1 + 4 * 20.5
    old = {"schema": "dato.costs/1", "device": "old", "batch": 10, "calls": 21, "order": 1, "fixed_ms": 1.0, "work_ms": [[k.step.cache_depth, k.step.prune_ratio, k.share, ms] for k, ms in table.work_ms.items()]}
    for name, document, told in (("knows", knows.to_dict(), ""), ("own", table.to_dict(), "no price for the sampler DPM++"), ("old", old, "no price for the sampler DPM++")):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        assert main(["retarget", f"folder={folder}", f"table={tmp_path / f'{name}.json'}", f"target={tmp_path / name}"]) == (2 if told else 0)
        assert told in capsys.readouterr().err
    assert Strategy.load(tmp_path / "knows" / "quality.json") == Strategy.full(4, "DPM++")
    before = CostTable.from_dict(old)
    assert all(before.predict(c.strategy) == table.predict(c.strategy) for c in record.candidates.values())


def test_bad_input(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, toy = make_search(tmp_path / "empty", "empty"), make_search(tmp_path / "toy")
    poor = tmp_path / "poor.json"
    poor.write_text(json.dumps({**make_table("poor", 10, 0.5).to_dict(), "work_ms": []}))
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "short.json").write_text(json.dumps({k: v for k, v in make_table("short", 10, 0.5).to_dict().items() if k != "work_ms"}))
    for arguments, message in (
        ([], "needs folder=..."),
        ([f"folder={empty}"], "has no measured strategies to choose from"),
        ([f"folder={toy}", "rounds=none"], "rounds is 'none'; give an integer"),
        ([f"folder={toy}", "table=/nowhere.json"], "give the costs.json of an earlier retarget"),
        ([f"folder={toy}", f"table={poor}"], "the cost table of poor has no price for"),
        ([f"folder={toy}", f"table={tmp_path / 'list.json'}"], "which is no cost table (AttributeError"),
        ([f"folder={toy}", f"table={tmp_path / 'short.json'}"], "which is no cost table (KeyError: 'work_ms'); give the costs.json of an earlier retarget"),
    ):
        assert main(["retarget", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_this_device_is_measured(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy")
    assert main(["retarget", f"folder={folder}", "rounds=1"]) == 0
    table = CostTable.from_dict(json.loads((folder / "retargeted" / "costs.json").read_text()))
    assert table.samplers[None].calls(20) == 21
    assert table.work_ms[CallPlan(Step(12))] > table.work_ms[CallPlan(Step(0))]
    assert Strategy.load(folder / "retargeted" / "quality.json").provenance["latency"]["device"] == table.device
