"""Evaluations, ablations, transfers and figures as a user runs them, on the embedded model, made short."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from dato.strategy import Strategy
from launch.config import compose_config, evaluation_keys
from search.ledger import read_ledger

ROOT = Path(__file__).parents[2]
SHORT = [
    "model.steps=4", "evaluation.images=6", "protocol.batch=2", "protocol.interval_groups=5", "evaluation.samples=2",
    "rivals.fewer_steps=[DDIM-2,DPM++-2]", "rivals.limited_guidance=[]", "rivals.tomesd=[0.5]", "rivals.deepcache=[2]", "rivals.naive=[[2,0.5]]",
]
HERE = [*SHORT, "cluster.workers=0", "cluster.threads=1", "model.device=cpu"]


def only(folder: Path, start: str) -> Path:
    (found,) = (folder / "outputs").glob(f"{start}-*")
    return found


@pytest.fixture
def dato(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The command in this process, in an empty folder."""
    from launch.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATO_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: main(list(arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cluster.gpus=1"], ["1 asked for with 1 CPUs and 1 GPUs each, room for 0", "cluster.wait_for_nodes_s", "dato doctor"]),
        (["cluster.latency_device=H100"], ["cluster.latency_device is 'H100', and no worker has such a device"]),
    ],
)
def test_an_evaluation_looks_at_its_workers_as_a_search_does(words: list[str], named: list[str], dato, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert dato("evaluate", *SHORT, "cluster.workers=1", *words) == 1
    said = capsys.readouterr().err
    assert all(n in said for n in named), said
    assert not ray.is_initialized()


@pytest.mark.slow
def test_an_evaluation_over_ray_is_a_table_and_continues(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "DATO_CACHE": str(tmp_path / "cache")}

    def evaluate() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", "evaluate", *SHORT, "strategy=[paper-b1]", "evaluation.quoted=table1/imagenet/sd15"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = evaluate()
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only(tmp_path, "evaluate")
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [r["method"] for r in rows] == [
        "unaccelerated", "DDIM-2", "DPM++-2", "ToMeSD, 0.5", "DeepCache, every 2", "DeepCache, every 2 + ToMeSD, 0.5", "paper-b1 (50 steps resampled to 4)",
    ]
    assert rows[-1]["FID, quoted"] == "25.40"
    assert "Quoted from arXiv 2501.00375" in (folder / "table.md").read_text()
    found = json.loads((folder / "evaluation.json").read_text())
    assert all(r["images"] == 6 and r["error"] is None for r in found["results"])
    assert found["reference_images"] == 500
    assert (folder / "samples.png").is_file()
    files = sorted(folder.glob("shards/*.safetensors"))
    assert len(files) == 7 * 3
    files[0].unlink()
    times = {f: f.stat().st_mtime_ns for f in files[1:]}
    again = evaluate()
    assert again.returncode == 0, again.stderr
    assert "of which 2 are there already" in again.stdout
    assert files[0].is_file()
    assert {f: f.stat().st_mtime_ns for f in files[1:]} == times
    shown = json.loads((folder / "evaluation.json").read_text())
    assert {r["name"]: r["metrics"]["fid"]["value"] for r in shown["results"]} == pytest.approx(
        {r["name"]: r["metrics"]["fid"]["value"] for r in found["results"]}, rel=1e-6
    )
    assert sum(r["timed_apart"] for r in shown["results"]) in (1, 6)


def test_every_metric_at_once(dato, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings = [s for s in HERE if "images" not in s and "rivals" not in s]
    no_rivals = ["rivals.fewer_steps=[]", "rivals.limited_guidance=[]", "rivals.tomesd=[]", "rivals.deepcache=[2]", "rivals.naive=[]"]
    assert dato("evaluate", *settings, *no_rivals, "evaluation.images=12", "evaluation.metrics=[fid,kid,is]") == 0
    found = json.loads((only(tmp_path, "evaluate") / "evaluation.json").read_text())
    for r in found["results"]:
        assert set(r["metrics"]) - {"feature distance"} == {"fid", "kid", "is"}
        assert r["metrics"]["is"]["low"] <= r["metrics"]["is"]["value"] <= 10


def test_an_ablation_is_a_matrix_with_effects(dato, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert dato("ablate", "table=3", *HERE, "ablation.ratios=[0.7]", "ablation.caches=[2,deepcache-5]") == 0
    (row,) = csv.DictReader((only(tmp_path, "ablate") / "ablation-3.csv").open())
    assert set(row) == {"prune ratio", "every 2, aligned", "every 2, unaligned", "deepcache-5, aligned", "deepcache-5, unaligned"}
    assert row["prune ratio"] == "0.7"
    text = (only(tmp_path, "ablate") / "ablation-3.md").read_text()
    assert "Against 'aligned', fid on the same prompts and seeds" in text
    assert "57.45" in text
    capsys.readouterr()
    assert dato("ablate") == 0
    assert "table=4" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("table", ["4", "source", "plan", "patch", "align", "order", "extrapolation"])
def test_every_ablation_runs(dato, tmp_path: Path, table: str) -> None:  # type: ignore[no-untyped-def]
    more = ["model.steps=8"] if table == "extrapolation" else []  # three values before one that is extrapolated by order 2
    assert dato("ablate", f"table={table}", *HERE, "evaluation.images=2", "ablation.ratios=[0.5]", "ablation.caches=[2]", "ablation.patches=[2,3]", *more) == 0
    rows = list(csv.reader((only(tmp_path, "ablate") / f"ablation-{table}.csv").open()))
    assert all(rows[1][1:])
    values = [c for row in rows[1:] for c in row[1:]]
    assert len(set(values)) == len(values) > 1, "the variants differ"


def test_a_transfer_is_a_matrix(dato, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from search.evaluate.pipelines import EMBEDDED

    other = tmp_path / "second"
    other.symlink_to(EMBEDDED)
    # Found on another UNet: enabling it here would be refused, to try it here is what a transfer is.
    found = Strategy.load("deepcache-2@0.5").with_provenance(model={"path": "elsewhere", "unet": {"block_out_channels": [8, 16, 16, 16]}})
    found.save(tmp_path / "found.json")
    assert dato("transfer", f"strategy=[deepcache-5,{tmp_path / 'found.json'}]", f"targets=[embedded,embedded:{other}]", *HERE, "evaluation.images=4") == 0
    rows = list(csv.DictReader((tmp_path / "outputs" / "transfer" / "matrix.csv").open()))
    assert [r["strategy"] for r in rows] == ["deepcache-5", str(tmp_path / "found.json")]
    assert rows[1]["embedded"].startswith("fid ")
    assert rows[0]["embedded"].startswith("fid ")
    assert rows[0]["embedded"].split(",")[0] == rows[0][f"embedded:{other}"].split(",")[0], "the same weights give the same images"


@pytest.mark.slow
def test_a_strategy_goes_over_from_a_unet_to_a_transformer(dato, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert dato("transfer", "strategy=[deepcache-2]", "targets=[embedded,embedded_dit]", *HERE, "evaluation.images=4") == 0
    (row,) = csv.DictReader((tmp_path / "outputs" / "transfer" / "matrix.csv").open())
    assert row["embedded"].startswith("fid ") and row["embedded_dit"].startswith("fid ")


def test_figures_of_a_transformer_are_refused_with_the_way_out(dato, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert dato("figures", "model=embedded_dit", *HERE, "figures.images=2") == 2
    assert "StableDiffusion3Pipeline, which has no UNet; the figures are of the features of one: give a model with a UNet, such as model=sd15" in capsys.readouterr().err


@pytest.mark.slow
def test_ablations_of_a_transformer_run_or_say_that_it_prunes_nothing(dato, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    given = ["model=embedded_dit", *HERE, "evaluation.images=2", "ablation.ratios=[0.5]", "ablation.caches=[2]"]
    assert dato("ablate", "table=extrapolation", *given, "model.steps=8") == 0
    assert dato("ablate", "table=3", *given) == 1
    assert "ive prune_ratio 0 in every step" in capsys.readouterr().out


def test_figures_are_one_page(dato, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert dato("figures", *HERE, "figures.images=2", "figures.heat_maps=1") == 0
    folder = only(tmp_path, "figures")
    numbers = json.loads((folder / "figures.json").read_text())
    assert list(numbers) == ["unaccelerated", "cache only", "DaTo: every 5, r=0.5"]
    assert numbers["unaccelerated"]["distance"] == 0
    assert numbers["cache only"]["distance"] > 0
    assert all(len(n["means"]) == 4 for n in numbers.values())
    assert "Figure 4" in (folder / "figures.html").read_text()
    assert (folder / "figure2.png").is_file()


def test_figures_of_a_strategy_of_another_sampler_and_length(dato, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert dato("figures", *HERE, "figures.images=2", "figures.heat_maps=1", "strategy=[dpmpp-3-limited-guidance@0.5]") == 0
    folder = only(tmp_path, "figures")
    numbers = json.loads((folder / "figures.json").read_text())
    assert [len(n["means"]) for n in numbers.values()] == [4, 2, 2], "PNDM makes a call more than it has steps"
    page = (folder / "figures.html").read_text()
    assert "50% of the run" in page
    assert "call 2" not in page, "calls of runs of different length do not compare"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "protocol.images=5"], "set evaluation.images"),
        (["evaluate", "evaluation.metrics=[is]", "evaluation.images=9"], "the Inception Score, which needs evaluation.images of at least 10; it is 9"),
        (["evaluate", "evaluation.metrics=[fid,fid]"], "give one or more different ones"),
        (["evaluate", "evaluation.metrics=[beauty]", "evaluation.images=2", "cluster.workers=0", "model.steps=2"], "metric is 'beauty'; allowed are 'fid'"),
        (["evaluate", "evaluation.metrics=[fid,lpips]"], "lpips:/path/to/alexnet-owt-7be5be79.pth"),
        (["evaluate", "evaluation.metrics=['lpips:/nowhere.pth']"], "'/nowhere.pth' of lpips cannot be loaded"),
        (["evaluate", "evaluation.metrics=['feature distance']"], "evaluation.metrics holds 'feature distance'; allowed are psnr"),
        (["evaluate", "evaluation.shard=0"], "evaluation.shard is 0"),
        (["evaluate", "evaluation.quoted=table9"], "allowed are 'table1/imagenet/sd15'"),
        (["evaluate", "evaluation.edit={strong: 1}"], "evaluation.edit is {'strong': 1}"),
        (["evaluate", "strategy=[nowhere]"], "nowhere"),
        (["evaluate", "strategy=5"], "cannot read a strategy from '5'"),
        (["evaluate", "rivals.tomesd=[0.9]"], "merge_ratio is 0.9"),
        (["evaluate", "experiment=none"], "none"),
        (["ablate", "table=9"], "it takes one table=, of 3, 4, source"),
        (["ablate", "table=3", "ablation.ratios=[0.75]"], "prune_ratio is 0.75"),
        (["transfer", "strategy=[paper-b1]"], "it takes strategy=[...], targets=[...]"),
        (["transfer", "targets=[embedded]"], "strategy is empty"),
        (["transfer", "strategy=[paper-b1]", "targets=[vgg]"], "the target 'vgg' is unknown; give a model of conf/model"),
        (["figures", "strategy=[deepcache-5]"], "prunes nothing"),
        (["figures", "strategy=[paper-b1,deepcache-5]"], "names 2 strategies"),
        (["figures", "figures.images=0"], "figures.images is 0"),
    ],
)
def test_bad_input_is_one_message(dato, capsys, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    assert dato(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_shows_a_searchs_strategies_beside_their_rivals(dato, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    search = make_search(tmp_path / "toy", population=4)
    first = search / "one.json"
    read_ledger(search / "ledger.jsonl").front()[0][0].strategy.save(first)
    assert dato("evaluate", *HERE, f"strategy=[{first}]", "model.steps=20", "rivals.tomesd=[]", "rivals.naive=[]") == 0
    folder = only(tmp_path, "evaluate")
    assert dato("report", f"folder={search}", f"evaluation={folder}") == 0
    page = (search / "report.html").read_text()
    assert "<h2>Rivals</h2>" in page
    assert "DeepCache, every 2" in page
    other = make_search(tmp_path / "other", name="sd15")
    capsys.readouterr()
    for arguments, message in (
        ([f"folder={other}", f"evaluation={folder}"], "evaluation is of model 'embedded', the search of 'sd15'; run dato evaluate model=sd15"),
        ([f"folder={search}", "evaluation=/nowhere"], "whose evaluation.json cannot be read"),
        ([f"folder={search},{other}", f"evaluation={folder}"], "evaluation goes with one search"),
    ):
        before = (search / "report.html").read_bytes()
        assert dato("report", *arguments) == 2
        assert message in capsys.readouterr().err
        assert (search / "report.html").read_bytes() == before


@pytest.mark.parametrize(("words", "edit"), [([], {}), (["evaluation.edit=null"], None), (["evaluation.edit={strength: 0.5}"], {"strength": 0.5}), (["evaluation.edit.size=48"], {"size": 48})])
def test_image_to_image_is_set_as_a_whole_or_by_its_keys(words: list[str], edit: dict[str, object] | None) -> None:
    assert evaluation_keys(compose_config("evaluate", words)).evaluation.edit == edit
