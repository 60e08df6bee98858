"""Winners for another device: two made-up devices that order strategies differently, and this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dato import Step, Strategy
from dato.schedule import Work
from launch.__main__ import main
from launch.retarget import priced_record
from search.latency import CostTable
from search.ledger import read_ledger

RATIOS = (0.0, 0.3, 0.5, 0.7)


def make_table(name: str, full: float, pruned: float) -> CostTable:
    """`pruned`: what a ratio of 1 would save of any call; negative where pruning costs more than it saves."""
    priced = {Work(Step(0)): 0.01}
    for ratio in RATIOS:
        priced[Work(Step(12, ratio))] = full * (1 - pruned * ratio)
        priced |= {Work(Step(1, ratio), share): 2.0 * (1 - pruned * ratio) for share in ("none", "made", "used")}
    return CostTable(device=name, batch=10, calls=21, order=1, fixed_ms=1.0, work_ms=priced)


def test_another_device_has_other_winners(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_search(tmp_path / "toy")
    before = (folder / "ledger.jsonl").read_bytes()
    record, found = read_ledger(folder / "ledger.jsonl"), {}
    # On one device pruning pays and a full call is dear; on the other a full call is cheap and pruning costs.
    for table in (make_table("pruner", 20.0, 0.9), make_table("fused", 2.2, -3.0)):
        path = tmp_path / f"{table.device}.json"
        path.write_text(json.dumps(table.to_dict()))
        assert main(["retarget", f"folder={folder}", f"table={path}", f"target={tmp_path / table.device}"]) == 0
        assert f"winners on {table.device}" in capsys.readouterr().out
        priced = priced_record(record, table)
        found[table.device] = [c.number for c, _ in priced.front()]
        for alias in ("quality", "balanced", "fastest"):
            strategy = Strategy.load(tmp_path / table.device / f"{alias}.json")
            latency = strategy.provenance["latency"]
            assert latency["value"] == pytest.approx(table.predict(strategy))
            assert latency["predicted"] is True
            assert strategy.provenance["validated"] is False
            assert strategy.digest in {c.strategy.digest for c, _ in record.evaluated()}
    assert found["pruner"] != found["fused"]
    assert (folder / "ledger.jsonl").read_bytes() == before


def test_failures_stay_failures(make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    priced = priced_record(record, make_table("a", 10, 0.5))
    assert [n for n, m in priced.results.items() if not m.ok] == [n for n, m in record.results.items() if not m.ok] == [1]
    assert all(priced.results[n].fid == m.fid for n, m in record.results.items() if m.ok)


def test_bad_input(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, toy = make_search(tmp_path / "empty", "empty"), make_search(tmp_path / "toy")
    poor = tmp_path / "poor.json"
    poor.write_text(json.dumps({**make_table("poor", 10, 0.5).to_dict(), "work_ms": []}))
    for arguments, message in (
        ([], "needs folder=..."),
        ([f"folder={empty}"], "has no measured strategies to choose from"),
        ([f"folder={toy}", "rounds=none"], "rounds is 'none'; give an integer"),
        ([f"folder={toy}", "table=/nowhere.json"], "give the costs.json of an earlier retarget"),
        ([f"folder={toy}", f"table={poor}"], "the cost table of poor has no price for"),
    ):
        assert main(["retarget", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_this_device_is_measured(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy")
    assert main(["retarget", f"folder={folder}", "rounds=1"]) == 0
    table = CostTable.from_dict(json.loads((folder / "retargeted" / "costs.json").read_text()))
    assert table.calls == 21
    assert table.work_ms[Work(Step(12))] > table.work_ms[Work(Step(0))]
    assert Strategy.load(folder / "retargeted" / "fastest.json").provenance["latency"]["device"] == table.device
