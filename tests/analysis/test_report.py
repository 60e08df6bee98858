import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.compare import differences, write_comparison
from analysis.figures import evaluations, hypervolume_figure
from analysis.importance import importance_figure, importance_section
from analysis.report import write_report
from analysis.rivals import rivals_figure
from analysis.steps import depth_figure, how_to_read, ratio_figure, statistics_figure
from dato.strategy import Step, Strategy
from search.measurements import Measurement
from search.optimize.importance import Gene, Importance
from search.records import Candidate, SearchRecord, Winner


def measurement(fid: float, ms: float) -> Measurement:
    return Measurement(fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=100, latency_ms=ms, device="a <device>", calls_by_depth={"1": 3, "12": 1})


@pytest.fixture
def record() -> SearchRecord:
    found = SearchRecord(search_id="toy<script>alert(1)</script>", config={"model": {"name": "<b>"}, "registry": {"name": "dato-toy"}}, finished=True)
    found.baselines = {
        "unaccelerated": (Candidate(number=-1, generation=-1, strategy=Strategy.full(4)), measurement(50, 400)),
        "DeepCache-like, every 3": (Candidate(number=-1, generation=-1, strategy=Strategy.uniform(4, 3)), measurement(52, 200)),
    }
    for i, (fid, ms) in enumerate([(49, 250), (48, 300), (60, 100), (61, 120)]):
        found.candidates[i] = Candidate(number=i, generation=i // 2, strategy=Strategy.uniform(4, i + 1, prune_ratio=0.3))
        found.results[i] = measurement(fid, ms)
    found.candidates[4] = Candidate(number=4, generation=2, strategy=Strategy.uniform(4, 4))
    found.results[4] = Measurement(error="out of <memory>")
    found.hypervolumes = [0.3, 0.4]
    winner = {"searched": found.results[0], "fresh": measurement(49.5, 130), "fresh_baseline": measurement(50, 400)}
    found.winners = {a: Winner(alias=a, candidate=found.candidates[0], **winner) for a in ("quality", "balanced", "fastest")}
    return found


def test_the_front_is_what_none_beats(record: SearchRecord) -> None:
    assert [c.number for c, _ in record.front()] == [2, 0, 1]


def test_the_differences_of_winners_carry_their_interval(record: SearchRecord, tmp_path: Path) -> None:
    winner = record.winners["quality"]
    # Of two independent FIDs, each +- 1: wider than either.
    assert "-0.50 (-1.91 .. +0.91)" in write_report(record, tmp_path / "report.html").read_text()
    record.winners["quality"] = replace(winner, fresh=replace(winner.fresh, difference_low=-0.75, difference_high=-0.25))
    assert "-0.50 (-0.75 .. -0.25)" in write_report(record, tmp_path / "report.html").read_text()


def test_rivals_of_an_evaluation_stand_beside_the_front(record: SearchRecord, tmp_path: Path) -> None:
    def result(name: str, family: str, speedup: float, fid: float) -> dict[str, Any]:
        value = {"value": fid, "low": fid - 1, "high": fid + 1}
        return {
            "name": name, "family": family, "steps": 4, "images": 50, "error": None, "timed_apart": False, "equal_latency": None, "metrics": {"fid": value},
            "differences": {} if family == "plain" else {"fid": value}, "latency": {"value": 100 / speedup, "low": 1, "high": 200},
            "speedup": {"value": speedup, "low": None, "high": None},
        }  # fmt: skip

    results = [
        result("unaccelerated", "plain", 1, 5), result("DDIM-4", "fewer", 3, 6), result("DPM++-4", "fewer", 3, 7), result("DPM++-4, limited guidance", "limited", 3, 6), result("DeepCache-5", "deepcache", 2, 6.5),
        result("mine <b>", "strategy", 3.5, 5.5), {**result("broken", "tomesd", 1, 1), "error": "no luck", "metrics": {}, "differences": {}},
    ]  # fmt: skip
    figure = rivals_figure([r for r in results if not r["error"]])
    assert [trace.name for trace in figure.data] == ["unaccelerated", "DDIM, fewer steps", "DPM++, fewer steps", "DPM++, limited guidance", "DeepCache", "strategies"]
    assert figure.data[3].line.color == figure.data[2].line.color, "a sampler has one colour"
    assert figure.data[-1].y[0] == 5.5
    assert figure.data[-1].error_y.array[0] == 1
    page = write_report(record, tmp_path / "report.html", evaluation={"name": "evaluate-toy", "results": results}).read_text()
    for shown in ("<h2>Rivals</h2>", "on 50 images of the same prompts and seeds", "failed: no luck", "mine &lt;b&gt;", "evaluate-toy"):
        assert shown in page


def test_the_report_is_one_file_that_loads_nothing(record: SearchRecord, tmp_path: Path) -> None:
    path = write_report(record, tmp_path / "report.html", {"unaccelerated": b"\x89PNG", "fastest": b"\x89PNG"})
    page = path.read_text()
    assert not re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)\s*=\s*(?!["\']?data:)', page)
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', page)) == 2
    for shown in ("3.08x", "quality", "models:/dato-toy@fastest", "Failed candidates: 1", "DeepCache-like"):
        assert shown in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_text_is_escaped(record: SearchRecord, tmp_path: Path) -> None:
    page = write_report(record, tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "out of &lt;memory&gt;" in page


def test_an_empty_search_has_a_report(tmp_path: Path) -> None:
    page = write_report(SearchRecord(search_id="empty", config={}), tmp_path / "report.html").read_text()
    assert "was not finished when this page was written" in page and "0 strategies measured by then" in page
    assert "Nothing can be drawn" in page


def test_a_search_that_ended_without_winners_says_so(record: SearchRecord, tmp_path: Path) -> None:
    record.winners = {}
    record.results = {n: Measurement(error="out of memory") for n in record.candidates}
    page = write_report(record, tmp_path / "report.html").read_text()
    assert "ended without winners: 5 of 5 candidates failed" in page
    assert "No strategy measured; FID against" in page
    record.results = {n: measurement(50, 100) for n in record.candidates}
    page = write_report(record, tmp_path / "report.html").read_text()
    assert "none was validated on fresh images" in page and "failures below" not in page


def test_hypervolume_is_drawn_over_evaluations(record: SearchRecord) -> None:
    assert evaluations(record) == [2, 4]
    assert list(hypervolume_figure([record]).data[0].x) == [2, 4]


def test_statistics_of_the_front_by_step(record: SearchRecord) -> None:
    figure = statistics_figure(record)
    shares = {trace.name: list(trace.y) for trace in figure.data}
    # The front's strategies: uniform(4, 3), uniform(4, 1) and uniform(4, 2), all with ratio 0.3.
    assert shares["full"] == pytest.approx([1, 1 / 3, 2 / 3, 2 / 3])
    assert shares["depth 1"] == pytest.approx([0, 2 / 3, 1 / 3, 1 / 3])
    assert shares["mean prune ratio"] == pytest.approx([0.3] * 4)


@pytest.fixture
def mixed(record: SearchRecord) -> SearchRecord:
    """The front's strategies, fastest first: 2 steps of DPM++ of limited guidance, 4 of UniPC that extrapolate, 4 of the pipeline's own sampler."""
    extrapolated = Strategy((Step(12), Step(12, 0.3), Step(0, 0.0, "both", 1), Step(1, 0.5, "both", 1)), sampler="UniPC")
    for number, strategy in {2: Strategy.load("dpmpp-2-limited-guidance"), 0: extrapolated, 1: Strategy.uniform(4, 2, prune_ratio=0.3)}.items():
        record.candidates[number] = replace(record.candidates[number], strategy=strategy)
    record.winners = {alias: replace(w, candidate=record.candidates[2 if alias == "fastest" else 0]) for alias, w in record.winners.items()}
    return record


def test_runs_of_different_length_stand_on_relative_time(mixed: SearchRecord) -> None:
    figure = depth_figure(mixed)
    first, second, third, crosses = figure.data
    assert (list(first.x), list(second.x)) == ([0, 50, 100], [0, 25, 50, 75, 100])
    replayed, shallow, full = range(3)
    # The upper half of a row is the conditional half of guidance, the lower one the unconditional.
    assert [list(half) for half in first.z] == [[full, full], [full, None]]
    assert [list(half) for half in second.z] == [[full, full, replayed, shallow]] * 2
    assert [list(half) for half in third.z] == [[full, shallow, full, shallow]] * 2
    assert list(zip(crosses.x, crosses.y, strict=True)) == [(62.5, 1), (87.5, 1)]
    assert list(figure.layout.yaxis.ticktext) == ["DPM++ 2, 100 ms", "UniPC 4, 250 ms", "own 4, 300 ms"]
    assert "% of the run (2 to 4 steps)" in figure.layout.xaxis.title.text
    assert list(first.customdata[0][1]) == ["full, prune ratio 0, conditional half alone", "100 ms, FID 60.0; 2 steps of DPM++; conditional half alone in 1", 2]
    assert [list(half) for half in ratio_figure(mixed).data[1].z] == [[0, 0.3, None, 0.5]] * 2
    for said in ("half its height", "A cross", "whole run"):
        assert said in how_to_read(mixed)


def test_pictures_show_what_runs(record: SearchRecord) -> None:
    """Where nothing is kept to reuse, a call is full: at the beginning, and where the unconditional half is computed first."""
    strategy = Strategy((Step(0, 0.0, "cond", 1), Step(1, 0.3, "cond"), Step(0), Step(0)))
    record.candidates[2] = replace(record.candidates[2], strategy=strategy)
    first, *_, crosses = [*depth_figure(record).data, None]
    replayed, shallow, full = range(3)
    assert [list(half) for half in first.z] == [[full, shallow, full, replayed], [None, None, full, replayed]]
    assert crosses is None, "what is computed is not extrapolated"


def test_strategies_of_one_kind_need_no_words(record: SearchRecord) -> None:
    figure = depth_figure(record)
    assert how_to_read(record) == ""
    assert len(figure.data) == 3
    assert list(figure.data[0].x) == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert list(figure.layout.yaxis.ticktext) == ["100 ms", "250 ms", "300 ms"]


def test_statistics_of_runs_of_different_length(mixed: SearchRecord) -> None:
    shares = {trace.name: list(trace.y) for trace in statistics_figure(mixed).data}
    assert list(statistics_figure(mixed).data[0].x) == [12.5, 37.5, 62.5, 87.5]
    assert shares["full"] == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3])
    assert shares["conditional half alone"] == pytest.approx([0, 0, 1 / 3, 1 / 3])
    assert shares["extrapolated"] == pytest.approx([0, 0, 1 / 3, 1 / 3])
    assert shares["mean prune ratio"] == pytest.approx([0.1, 0.2, 0.15, 0.8 / 3])


def test_a_report_of_strategies_of_any_sampler_and_length(mixed: SearchRecord, tmp_path: Path) -> None:
    page = write_report(mixed, tmp_path / "r.html").read_text()
    for said in ("2 steps of DPM++; conditional half alone in 1", "4 steps of UniPC; 2 extrapolated", "num_inference_steps=2", "num_inference_steps=4", "FF0+1+"):
        assert said in page
    assert "2 steps of DPM++" in write_comparison([mixed, mixed], tmp_path / "c.html").read_text()


def test_winners_and_rivals_are_compared_with_the_unaccelerated_images(record: SearchRecord, tmp_path: Path) -> None:
    assert "The same picture?" not in write_report(record, tmp_path / "r.html").read_text(), "a search of before anything was compared"
    for alias, winner in record.winners.items():
        compared = replace(winner.fresh, feature_distance=0.31, feature_distance_low=0.28, feature_distance_high=0.34, similarity={"ssim": (0.81, 0.78, 0.84)})
        record.winners[alias] = replace(winner, fresh=compared)
    record.results[0] = replace(record.results[0], feature_distance=0.27)
    page = write_report(record, tmp_path / "r.html").read_text()
    assert "feature distance (lower is closer) [95 %]" in page
    assert "SSIM (higher is closer) [95 %]" in page
    assert page.count("0.310 [0.280, 0.340]") == page.count("0.810 [0.780, 0.840]") == 1, "one strategy, whatever it won"
    assert "quality, balanced, fastest, fresh images" in page
    assert "feature distance 0.270" in page, "in what a point says"


def test_what_matters_is_drawn_where_it_is_known(record: SearchRecord, tmp_path: Path) -> None:
    few = write_report(record, tmp_path / "r.html").read_text()
    assert "For FID there is no importance: 4 candidates were measured; importance needs at least 20." in few
    genes = [Gene(kind="depth", first=3, last=4, share=0.75, spread=0.1), Gene(kind="ratio", first=1, last=2, share=0.25, spread=0.1)]
    known = Importance(target="fid", candidates=30, images=50, r2=0.87, genes=tuple(genes))
    text = importance_section([known, Importance(target="latency", candidates=30, images=50, r2=-0.1, why_not="it explains nothing")])
    assert "R2 on such candidates is 0.87 for FID" in text
    assert "For time there is no importance: it explains nothing." in text
    depth, ratio = importance_figure([known]).data
    assert (list(depth.x), list(depth.y), list(depth.width)) == ([3.5], [0.75], [1.7])
    assert (list(ratio.x), list(ratio.y)) == ([1.5], [0.25])


def test_genes_of_the_whole_run_stand_beside_the_steps() -> None:
    given = [("depth", 1, 1, 0.2), ("guidance", 4, 4, 0.1), ("order", 2, 2, 0.1), ("sampler", 1, 4, 0.25), ("steps", 1, 4, 0.35)]
    genes = tuple(Gene(kind=kind, first=first, last=last, share=share, spread=0.1) for kind, first, last, share in given)
    known = Importance(target="fid", candidates=30, images=50, r2=0.5, genes=genes)
    alone = replace(known, target="latency", genes=genes[-1:])
    traces = importance_figure([known, alone]).data
    places = {t.name: list(t.x) for t in traces[:5]}
    assert list(places) == ["cache depth", "guidance", "extrapolation", "sampler", "number of steps"]
    assert (places["cache depth"], places["guidance"], places["extrapolation"]) == ([1], [4], [2])
    assert places["number of steps"][0] > places["sampler"][0] > 4.5, "beside the last step, not on one"
    assert [t.name for t in traces if t.showlegend] == list(places)
    text = importance_section([known, alone])
    for said in ("number of steps</td>", "guidance of step 4</td>", "sampler</td>"):
        assert said in text


def test_a_comparison_says_what_does_not_compare(record: SearchRecord, tmp_path: Path) -> None:
    other = copy.deepcopy(record)
    other.search_id, other.finished = "other", False
    other.config = {"model": {"name": "another"}, "seed": 1}
    page = write_comparison([record, other], tmp_path / "c.html").read_text()
    assert "differ in model.name: their FIDs or latencies do not compare" in page
    assert "Not finished: other." in page
    assert differences([record, record]) == {}
    same = write_comparison([record, record], tmp_path / "c.html").read_text()
    assert "do not compare" not in same


def test_the_command_line(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.__main__ import main

    monkeypatch.chdir(tmp_path)
    one, two = make_search(tmp_path / "one"), make_search(tmp_path / "two", "running", seed=1)
    assert main(["report", f"folder={one},{two}"]) == 0
    assert main(["report", f"folder={two}", "target=mine.html"]) == 0
    assert capsys.readouterr().out.split() == ["comparison.html", "mine.html"]
    for arguments, message in (
        ([f"folder={one},{one}"], "names a search twice"),
        ([f"folder={one},/nowhere"], "holds no ledger.jsonl"),
        ([f"folder={one}", "target=/nowhere/r.html"], "no file in a folder that exists"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
