import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import explorer
from analysis.explorer import explorer_rows, explorer_section
from analysis.report import write_report
from dato.strategy import Step, Strategy
from search.measurements import Measurement
from search.records import Candidate, SearchRecord, Winner


def measurement(fid: float, ms: float, images: int = 100) -> Measurement:
    return Measurement(fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=images, latency_ms=ms, latency_low_ms=0.9 * ms, latency_high_ms=1.2 * ms, calls_by_depth={"12": 1, "0": 2})


@pytest.fixture
def record() -> SearchRecord:
    found = SearchRecord(search_id="s", config={}, finished=True)
    for name, fid, ms in (("unaccelerated", 50.0, 400.0), ("DeepCache-like, every 3", 52.0, 200.0)):
        found.baselines[name] = (Candidate(number=-1, generation=-1, strategy=Strategy.full(4), origin=name), measurement(fid, ms))
    strategies = [
        Strategy((Step(12, 0.3), Step(1, 0.5, "cond"), Step(0, 0.0, "cond", 1)), sampler="UniPC"), Strategy.uniform(4, 2), Strategy((Step(0), Step(0), Step(1, 0.3), Step(12))), Strategy.full(4),
    ]  # fmt: skip
    for n, (strategy, fid, ms) in enumerate(zip(strategies, (49.0, 48.0, 70.0, 80.0), (100.0, 300.0, 350.0, 390.0), strict=True)):
        found.candidates[n] = Candidate(number=n, generation=0, strategy=strategy)
        found.results[n] = measurement(fid, ms)
    w = {"candidate": found.candidates[0], "searched": found.results[0], "fresh": measurement(49.5, 90), "fresh_baseline": measurement(50, 400)}
    found.winners = {alias: Winner(alias=alias, **w) for alias in ("quality", "fastest")}
    return found


def data_of(html: str) -> dict[str, Any]:
    return dict(json.loads(re.findall(r'id="explorer-data">(.*?)</script>', html)[0]))


def test_every_strategy_is_there_once_winners_first(record: SearchRecord) -> None:
    rows = explorer_rows(record, {})
    assert [(r["key"], r["group"]) for r in rows] == [("c0", "winner"), ("c1", "front"), ("r0", "rival"), ("r1", "rival"), ("c2", "other"), ("c3", "other")]
    assert rows[0]["label"] == "quality, fastest (candidate 0): 4.00x, FID 49.00"
    assert 'dato.Strategy.load("winners/quality.json")' in rows[0]["code"][1]
    assert 'dato.Strategy.load("candidate-1.json")' in rows[1]["code"][1], "what won nothing has no file: its JSON is saved from the page"
    for row, strategy in zip(rows, [record.candidates[n].strategy for n in (0, 1)], strict=False):
        assert Strategy.from_json(row["json"]) == strategy


def test_figures_have_their_intervals(record: SearchRecord) -> None:
    winner, front, plain, *_ = [dict(r["figures"]) for r in explorer_rows(record, {})]
    assert front["FID"] == "48.00 (95 %: 47.00 .. 49.00), 100 images"
    assert front["latency"] == "300 ms per image (batches: 270 .. 360)"
    assert front["FID less unaccelerated"].startswith("-2.00 (")
    assert winner["on 100 fresh images"].startswith("4.44x, FID 49.50 (95 %: 48.50 .. 50.50), less unaccelerated -0.50 (")
    assert winner["UNet calls"] == "1 full, 2 replayed"
    assert "FID less unaccelerated" not in plain


def test_the_schedule_is_of_what_runs(record: SearchRecord) -> None:
    data = data_of(explorer_section(record))
    run = {r["key"]: [data["steps"][n] for n in r["run"]] for r in data["rows"]}
    assert [s["words"] for s in run["c0"]] == ["full, prune ratio 0.3", "depth 1, prune ratio 0.5, conditional half alone", "replayed, conditional half alone, extrapolated"]
    assert [s["depth"] for s in run["c2"]] == [12, 0, 1, 12], "the first call has nothing to replay"
    assert {d: v["name"] for d, v in data["depths"].items()} == {"0": "replayed", "1": "depth 1", "12": "full"}


def test_axes_and_what_has_no_value(record: SearchRecord) -> None:
    data = data_of(explorer_section(record))
    values = {r["key"]: dict(zip([a["title"] for a in data["axes"]], r["values"], strict=True)) for r in data["rows"]}
    assert values["c0"]["sampler"] == "UniPC" and data["axes"][0]["names"] == ["UniPC", "own"]
    assert values["c0"]["steps with both halves of guidance"] == pytest.approx(1 / 3)
    assert values["c0"]["speedup"] == 4
    assert values["c3"]["mean depth of these"] is None
    record.results[3] = replace(record.results[3], fid=float("nan"))
    assert {r["key"]: r for r in data_of(explorer_section(record))["rows"]}["c3"]["at"][1] is None


def test_images_or_why_there_are_none(record: SearchRecord) -> None:
    with_images = {r["key"]: r for r in explorer_rows(record, {"unaccelerated": b"", "fastest": b""})}
    assert (with_images["c0"]["images"], with_images["r0"]["images"]) == ("fastest", "unaccelerated")
    assert "dato evaluate 'strategy=[candidate-1.json]'" in with_images["c1"]["no_images"]
    assert "folder of the search holds none" in explorer_rows(record, {})[0]["no_images"]
    record.finished, record.winners = False, {}
    assert "when they are chosen" in explorer_rows(record, {})[0]["no_images"]


def test_large_searches_stay_small_pages(record: SearchRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MOST", 3)
    monkeypatch.setattr(explorer, "MOST_JSON", 1)
    html = explorer_section(record)
    data = data_of(html)
    assert [r["key"] for r in data["rows"]] == ["c0", "c1", "r0", "r1", "c2"]
    assert "3 of 4 candidates" in html
    assert ["json" in r for r in data["rows"]] == [True, False, False, False, False]
    assert "candidates[1].strategy" in "".join(data["rows"][1]["code"])
    assert "save" not in "".join(data["rows"][1]["code"])


def test_no_name_ends_the_data(record: SearchRecord, tmp_path: Path) -> None:
    candidate, m = record.baselines.pop("DeepCache-like, every 3")
    record.baselines["</script><b>"] = (replace(candidate, origin="</script><b>"), m)
    page = write_report(record, tmp_path / "r.html").read_text()
    assert "</script><b>" not in page
    assert "</script><b>" in {r["figures"] and r["label"].partition(":")[0] for r in data_of(page)["rows"]}


def test_nothing_measured_shows_nothing() -> None:
    assert explorer_section(SearchRecord(search_id="s", config={})) == ""
