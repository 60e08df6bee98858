"""Searches and evaluations without a real image, and how long they say they will take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from analysis.report import report_parts
from launch.__main__ import main
from launch.config import build, compose_config
from launch.doctor import check_inception, check_time
from launch.estimate import Workload, search_workload
from launch.preflight import needed_paths
from launch.terminal import SearchView
from search.embedded.digits import prompt
from search.evaluate.pipelines import EMBEDDED
from search.ledger import Ledger, read_ledger
from search.publish.strategies import winner_strategies
from search.run.own_reference import FILE

DIGITS = "\n".join(prompt(i % 10, i // 10) for i in range(40))
SHORT = ["data.num_reference_images=40", "model.steps=4", "protocol.batch=10", "protocol.interval_groups=4"]
HERE = [f"model.path={EMBEDDED}", "model.dtype=float32", "model.height=null", "model.width=null", "model.guidance=3", "model.device=cpu", "protocol.features=embedded"]
"""The small model in the place of Stable Diffusion v1.5, which is not at hand."""


def test_the_work_of_a_search_is_counted() -> None:
    config = build(compose_config("search", ["data=prompts", "search.max_minutes=30", "search.min_speedup=4", "search.winner_speedups=[]"]))
    work = search_workload(config)
    # 500 of the reference; 100 of the unaccelerated pipeline, 100 fresh and 10 samples; 60 candidates on 50 and 10 on 50 more; three winners, and 40 samples of the front.
    assert sum(work.plain.values()) == 500 + 210
    assert sum(work.fast.values()) == 100 + 60 * 50 + 10 * 50 + 3 * 110 + 40
    said = work.timed(0.5, 4, "NVIDIA A100", "its first batch")
    assert work.seconds(0.5, 4) == pytest.approx(0.5 * (710 + 3970 / 4) / 4)
    assert said.startswith(f"about {round(0.5 * (710 + 3970 / 4) / 4) // 60} min on 4 workers (NVIDIA A100): 4,680 images")
    for told in ("500 of the reference", "0.5 s per unaccelerated image (its first batch)", "4 times faster on average", "search.max_minutes=30"):
        assert told in said
    real = search_workload(build(compose_config("search", ["search.min_speedup=null", "search.max_candidates=7", "protocol.fidelities=[]"])))
    assert "reference" not in real.in_words()
    assert "promoted" not in real.in_words()
    assert "700 of candidates" in real.in_words()
    assert real.speedup == 3
    table = search_workload(build(compose_config("search", ["search.latency=predicted"])), calibration=6)
    assert table.alone == {"for the cost table": 180}
    assert table.seconds(1.0, 1_000_000) == pytest.approx(60, abs=0.1), "one worker, whatever there are"
    assert not any(search_workload(build(compose_config("search", ["search.latency=measured"])), calibration=6).alone.values())
    assert "about 40 s on 1 worker:" in Workload(plain={"x": 10}, fast={"y": 90}).timed(1.0, 1, "", "guess")


def test_a_search_that_goes_on_counts_what_is_left(make_search, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    record = read_ledger(make_search(tmp_path, stop="running", population=10, generations=6) / "ledger.jsonl")
    config = build(compose_config("search", []))
    work = search_workload(config, record)
    assert work.fast["of candidates"] == (60 - len(record.results)) * 50
    assert work.plain["of the unaccelerated pipeline"] == 110, "its baselines are there"


def test_every_node_needs_ones_own_prompts_only() -> None:
    assert needed_paths(build(compose_config("search", ["data=prompts"]))) == {}
    assert needed_paths(build(compose_config("search", ["data=prompts", "data.prompts=/a/mine.txt"]))) == {"data.prompts": "/a/mine.txt"}


def test_doctor_says_how_long_and_how_to_time_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_time(build(compose_config("search", ["data=prompts"])), 4, timed=False)
    assert not found.fix
    assert "500 of the reference" in found.found
    assert "time=true" in found.found
    assert main(["doctor", "time=soon"]) == 2
    assert "write time=true" in capsys.readouterr().err
    assert "downloads" in check_inception("").found or Path(check_inception("").found.split()[-1]).is_file()
    assert "protocol.features=inception:" in check_inception(str(tmp_path / "none.pth")).fix
    (tmp_path / "some.pth").touch()
    assert not check_inception(str(tmp_path / "some.pth")).fix


def test_what_the_reference_was_is_told_everywhere(make_search, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make_search(tmp_path / "search")
    old = read_ledger(folder / "ledger.jsonl")
    assert old.reference == "the real images of digits", "a ledger of before it was noted"
    ledger = Ledger(folder / "ledger.jsonl", old.search_id, old.config, old.environment)
    ledger.append("notes", notes={"reference": "40 images of the unaccelerated pipeline", "measured_without": ["safety checker"]})
    ledger.close()
    record = read_ledger(folder / "ledger.jsonl")
    record.config["data"]["kind"] = "prompts"
    console = Console(record=True, width=200)
    SearchView(1, 1, console).winners(record)
    page = "".join(report_parts(record))
    for said in (console.export_text(), page, record.reference_note):
        assert "FID against 40 images of the unaccelerated pipeline" in said
        assert "noise floor" in said
    assert "Measured without the model's safety checker" in page
    strategy = winner_strategies(record, {"measured_without": ["safety checker"]})["fastest"]
    assert strategy.provenance["quality"]["reference"] == "40 images of the unaccelerated pipeline"
    assert strategy.provenance["model"]["measured_without"] == ["safety checker"]


@pytest.mark.slow
def test_a_search_needs_no_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "digits.txt").write_text(DIGITS)
    given = ["model=sd15", *HERE, *SHORT, f"data.prompts={tmp_path / 'digits.txt'}"]  # and no data=...
    assert main(["search", *given, "protocol.images=20", "search.population=4", "search.generations=1", "search.min_speedup=null"]) == 0
    said = capsys.readouterr().out
    against = "40 images of the unaccelerated pipeline, seeds 2000000 to 2000039, prompts digits.txt"
    order = [said.index(s) for s in (f"the reference is {against}; they are drawn once", "how long  about", "the unaccelerated pipeline and the DeepCache-like schedule", "noise floor, ", f"FID against {against}")]
    assert order == sorted(order)
    (folder,) = (tmp_path / "outputs").iterdir()
    record = read_ledger(folder / "ledger.jsonl")
    assert record.finished
    assert record.reference == against
    assert record.notes["measured_without"] == []
    plain = record.baselines["unaccelerated"][1]
    assert plain.fid < 5, "the same pipeline's images of other seeds"
    assert against in (folder / "winners" / "quality" / "card.md").read_text()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("dato/sd15")
    assert experiment is not None
    assert {r.data.tags["dato.reference"] for r in client.search_runs([experiment.experiment_id])} == {against}
    (version, *_) = client.search_model_versions("name = 'dato-sd15'")
    assert version.tags["dato.reference"] == against
    drawn = load_file(folder / FILE)["features"]
    short = ["evaluation.images=10", "cluster.workers=0", "cluster.threads=1", "rivals={fewer_steps: [DDIM-2], limited_guidance: [], tomesd: [], deepcache: [], naive: []}"]
    for _ in range(2):
        assert main(["evaluate", *given, *short]) == 0
    said = capsys.readouterr().out
    assert said.count("how long  about") == 1, "there is nothing left to draw the second time"
    (evaluated,) = (tmp_path / "outputs").glob("evaluate-*")
    assert torch.equal(load_file(evaluated / FILE)["features"], drawn), "the search's own, not drawn again"
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert (found["reference"], found["reference_images"], found["measured_without"]) == (against, 40, [])
    for name in ("table.md", "table.tex"):
        assert against in (evaluated / name).read_text().replace(r"\_", "_")
