"""The benchmarks run and write what they measured; how fast anything is, is not tested."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dato.strategy import Strategy
from launch.__main__ import main
from launch.bench.rivals import TwoStages
from launch.config import build, compose_config
from search.ledger import Ledger
from search.measurements import Measurement
from search.optimize.space import SearchSpace
from search.records import Candidate


def only_json(folder: Path) -> dict:  # type: ignore[type-arg]
    (found,) = folder.glob("*.json")
    return json.loads(found.read_text())


@pytest.mark.slow
def test_unet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("DeepCache", reason="the extra 'baselines' is not installed")
    assert main(["bench", "unet", "geometry=embedded", "rounds=1", "batch=2", "threads=1", f"output={tmp_path}"]) == 0
    result = only_json(tmp_path)
    assert {"plain", "dato d=1 r=0.5", "DeepCache shallow + tomesd 0.5"} <= set(result["actions"])
    assert all(a["median_s"] > 0 for a in result["actions"].values())
    assert result["actions"]["dato d=1 r=0"]["gmacs_per_sample"] < result["actions"]["plain"]["gmacs_per_sample"] / 5
    assert result["actions"]["dato d=1 r=0, conditional half"]["gmacs_per_sample"] == pytest.approx(result["actions"]["dato d=1 r=0"]["gmacs_per_sample"] / 2)
    assert set(result["conditional_alone"]) == {"dato d=full r=0", "dato d=1 r=0", "dato d=1 r=0.5"}
    assert abs(result["overhead"]["seconds_per_call"]) < result["overhead"]["ours"]["median_s"]
    assert set(result["schedules"]) >= {"paper-b1", "DeepCache package, every 5"}
    assert result["schedules"]["deepcache-5"]["mac_limit"] == pytest.approx(3.3, abs=0.2)
    assert result["environment"]["versions"]["torch"]
    assert "MAC limit" in capsys.readouterr().out


@pytest.mark.slow
def test_transformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["geometry=sd35", "families=sd35,flux", "calls=4", "double=2", "latent=8", "text=4", "rounds=1", "device=cpu"]
    assert main(["bench", "transformer", *given, f"output={tmp_path}"]) == 0
    result = only_json(tmp_path)
    assert {name: found["blocks"] for name, found in result["overhead"].items()} == {"sd35": 24, "flux": 57}
    assert all(found["seconds"]["d=1"]["median_s"] < found["seconds"]["full"]["median_s"] for found in result["overhead"].values())
    share = result["share"]
    assert share["blocks"] == 2 and 0.4 < share["mac_share"] < 0.7
    assert set(share["of_plain"]) == {"plain", "full", "d=1", "one block"}
    assert set(share["not_compared"]) == {"FirstBlockCache", "cache-dit F1B0"}, "neither runs a bare Stable Diffusion 3"
    assert share["of_plain"]["d=1"] < 1
    assert "which" in result["settings"] and ("skipped" in result["whole"]) is not torch.cuda.is_available()
    assert "2 blocks of true width" in capsys.readouterr().out


@pytest.mark.slow
def test_pipeline_and_memory(tmp_path: Path) -> None:
    assert main(["bench", "pipeline", "rounds=1", "batch=2", "threads=1", "model.steps=5", f"output={tmp_path / 'a'}"]) == 0
    images = only_json(tmp_path / "a")["images"]
    assert {"unaccelerated", "paper-b1 (50 steps resampled to 5)", "DPM++-2", "DPM++-2, limited guidance"} <= set(images)
    assert images["unaccelerated"]["parts_s"]["unet"] < images["unaccelerated"]["median_s"]
    assert main(["bench", "memory", "geometry=embedded", f"output={tmp_path / 'b'}"]) == 0
    variants = only_json(tmp_path / "b")["variants"]
    # Kept at d = 1, batch 2, 24 channels of 20 x 20: the cached tensor, what it adds to two convolutions, and to prune two predictions of 4 channels.
    assert variants["caching"]["cached_bytes"] == 4 * 2 * 20 * 20 * (24 + 2 * 24)
    assert variants["caching and pruning"]["cached_bytes"] == 4 * 2 * 20 * 20 * (24 + 2 * 24 + 2 * 4)
    assert variants["plain"]["cached_bytes"] == 0


@pytest.mark.slow
def test_pruning(tmp_path: Path) -> None:
    small = ["images=2", "ratios=0.2,0.5", "tokens=64", "timed_tokens=64", "rounds=1", "blocks=PixArt-Sigma;SD3-medium", "model.steps=5", f"output={tmp_path}"]
    assert main(["bench", "pruning", *small]) == 0
    found: dict[str, Any] = {}
    for path in tmp_path.glob("pruning_*.json"):
        found |= {k: v for k, v in json.loads(path.read_text()).items() if k in ("images", "calls", "price")}
    images = found["images"]
    assert images["unaccelerated"] | {"macs": 1.0, "distance": 0.0, "difference": 0.0} == images["unaccelerated"]
    assert images["all computed, r=0.5"]["macs"] < images["all computed, r=0.2"]["macs"] < 1
    assert images["all computed, r=0.5"]["distance"] > 0 and images["every third step a line"]["macs"] == pytest.approx(4 / 5)
    assert {len(values) for values in found["calls"].values()} == {3} and set(found["calls"]) >= {"r=0.2", "r=0.2, the best choice", "no call: the last prediction"}
    sd3, pixart = found["price"]["SD3-medium, 64 tokens"], found["price"]["PixArt-Sigma, 64 tokens"]
    # Of the image tokens queries, keys, values and output go by as they are fewer, and attention's products with the square of all that attend.
    wide, text = 1536, 333
    saved = 4 * 32 * wide**2 + 2 * ((64 + text) ** 2 - (32 + text) ** 2) * wide
    assert sd3["macs"] * (1 - sd3["pruned"]["0.5"]["macs"]) == pytest.approx(saved - 48 * 16 * wide / 24)
    assert pixart["pruned"]["0.5"]["time"] > 0 and len(pixart["seconds"]) == 1
    assert main(["bench", "pruning", "parts=calls", "images=2", "ratios=0.2", "model=embedded", "model.steps=5", f"output={tmp_path}"]) == 0


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    real = ["workers=2", "seconds=1", "mean_s=0.1", "population=4", "batches=2"]
    simulated = ["simulated_workers=20", "simulated_candidates=200", "shorter_s=0.05", "memory_candidates=40"]
    measured = ["measured_candidates=40", "features=16", "images=20"]
    assert main(["bench", "scale", *real, *simulated, *measured, f"output={tmp_path}"]) == 0
    (sleeping,), (simulated_file,) = tmp_path.glob("scale_sleeping*.json"), tmp_path.glob("scale_simulated*.json")
    result = {**json.loads(sleeping.read_text()), **json.loads(simulated_file.read_text())}
    assert [r["mode"] for r in result["real"]] == ["generational", "sharded", "steady", "steady-sharded", "tune"]
    assert all(0 < r["utilisation"] <= 1 for r in result["real"])
    runs = {(s["mode"], s["weather"], s["mean_s"]): s for s in result["simulated"]}
    assert len(runs) == 9
    assert {s["candidates"] for s in runs.values() if s["mean_s"] == 36} == {200}
    # Twenty workers of candidates of 0.05 s would need a driver that takes 2.5 ms for each.
    assert runs["steady-sharded", "calm", 0.05]["utilisation"] < runs["steady-sharded", "calm", 36]["utilisation"]
    assert all((s["lost_pieces"] > 0) <= (s["weather"] in ("storm", "growth")) for s in result["simulated"])
    found = json.loads(next(tmp_path.glob("scale_measured*.json")).read_text())["measured"]
    assert (found["candidates"], found["failed"], found["images"], found["features"], found["groups"]) == (40, 0, 20, 16, [10])
    assert 0 < found["driver_cpu_ms_per_candidate"] < 1000 * found["seconds"] / 40
    assert result["driver"]["peak_mib"] > result["driver"]["growth_mib"] >= 0


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["bench", "everything"], "there is no benchmark 'everything'; there are unet"),
        (["bench", "unet", "speed=1"], "dato bench unet was given speed; it takes geometry=sd15, batch=2"),
        (["bench", "unet", "geometry=sd3"], "geometry is 'sd3'; allowed are sd15"),
        (["bench", "unet", "geometry=flux"], "geometry is 'flux', a transformer; allowed are the UNets sd15"),
        (["bench", "memory", "geometry=flux"], "geometry is 'flux', a transformer; allowed are the UNets sd15"),
        (["bench", "transformer", "which=all"], "which holds all; allowed are overhead, share and whole"),
        (["bench", "unet", "dtype=int8"], "dtype is 'int8'; allowed are float32"),
        (["bench", "scale", "modes=fast"], "modes holds fast; allowed are generational, sharded, steady, steady-sharded, tune"),
        (["bench", "scale", "workers=1,2,3", "seconds=1,2"], "seconds is 1,2; give one number, or one for each of workers=1,2,3"),
        (["bench", "unet", "rounds=0"], "rounds is 0; give an integer of at least 1"),
        (["bench", "cost", "batch=many"], "batch is 'many'; give an integer of at least 1"),
        (["bench", "latency", "load=-1"], "load is -1; give an integer of at least 0"),
        (["bench", "scale", "mean_s=0"], "mean_s is 0; give a number above 0"),
        (["bench", "scale", "workers=1,-8"], "workers is '1,-8'; give an integer of at least 1, at most 1,000,000,000, or several, such as workers=1,8,64"),
        (["bench", "intervals", "make=perhaps"], "make is 'perhaps'; give true or false"),
        (["strategies", "geometry=sd15"], "geometry is now called model; write model="),
        (["strategies", "model=sd3"], "model is 'sd3'; allowed are sd15"),
        (["strategies", "model=flux", "calls=7"], "calls is '7'; allowed are 50, 51"),
        (["strategies", "model=sd15", "calls=7"], "calls is '7'; allowed are 51, 50"),
        (["bench", "pruning", "ratios=0.2,0.8"], "prune_ratio is 0.8; allowed is 0 <= prune_ratio < 0.75"),
        (["bench", "pruning", "parts=speed"], "parts names 'speed'; there are images; calls; price"),
        (["bench", "pruning", "blocks=SDXL"], "blocks names 'SDXL'; there are SD3-medium; PixArt-Sigma"),
        (["bench", "pruning", "model=embedded"], "has a UNet2DConditionModel; parts=images,calls,price needs a PixArtTransformer2DModel or a SD3Transformer2DModel"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert main(["bench"]) == 0
    assert "dato bench memory" in capsys.readouterr().out


def test_strategies_are_listed_with_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", "model=embedded"]) == 0
    out = capsys.readouterr().out
    for name in ("paper-b1", "authors-l12", "deepcache-10"):
        assert name in out
    assert "own ratios" in out
    # Its entries are 4 full, 21 of d = 1 and 25 of d = 0: of 51 calls the first one is full whatever the first entry says.
    assert re.search(r"authors-l12 +│ +50 │ own +│ +100% │ +5 │ +21 │ +25 │", out)


def test_strategies_of_a_transformer_are_those_that_it_can_follow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", "model=embedded_dit"]) == 0
    out = capsys.readouterr().out
    for name in ("paper-b1", "ddim-20", "at r=0.5"):
        assert name not in out
    assert "3 presets prune tokens" in out and "12 │" not in out
    assert re.search(r"deepcache-5 +│ +50 │ own +│ +100% │ +10 │ +40 │ +0 │ +3.67x │", out)
    assert re.search(r"0.0% │ +9.1% │", out), "the share of each depth"
    assert main(["strategies", "model=flux"]) == 0
    out = capsys.readouterr().out
    assert "37,192.3 GMACs" in out and re.search(r"blocks: 0 to 56 but\s+12", out)
    assert "limited-guidance" not in out and "guided" not in out, "it has no halves to choose from"


@pytest.mark.parametrize("calls", [50, 51])
def test_mac_limits_of_presets_count_sampler_steps_and_guidance(calls: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["strategies", "model=embedded", f"calls={calls}"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    # Of equal calls that compute everything, only the number counts: 2 halves of each unaccelerated one, against 8 x 2, and 4 x 2 + 4 x 1.
    for name, sampler, guided, halves in (("dpmpp-8", r"DPM\+\+", "100%", 16), ("dpmpp-8-limited-guidance", r"DPM\+\+", "50%", 12), ("unipc-8", "UniPC", "100%", 16)):
        assert re.search(rf"{name} +│ +8 │ {sampler} +│ +{guided} │ +8 │ +0 │ +0 │ +{2 * calls / halves:.2f}x │", out)
    assert f"{calls} calls of both guidance halves" in " ".join(out.split())


def recorded_search(folder: Path, space: SearchSpace, count: int = 40, images: int = 20) -> None:
    """A ledger as a search of the embedded model would write it, with made-up FIDs."""
    config = {"model": {"name": "embedded", "steps": 20}, "data": {"name": "digits"}, "protocol": {"images": images, "batch": 10, "interval_groups": 0}}
    ledger = Ledger(folder / "ledger.jsonl", folder.name, config, {})
    plain = Candidate(number=-1, generation=-1, strategy=Strategy.full(20), origin="unaccelerated")
    ledger.baseline(plain, Measurement(fid=2.0, images=images, latency_ms=400.0))
    chance = np.random.default_rng(0)
    for n in range(count):
        strategy = space.decode(chance.integers(0, space.upper + 1))
        full = 20 * strategy.calls_by_depth.get(12, 0) / len(strategy)
        ledger.ask(Candidate(number=n, generation=0, strategy=strategy))
        ledger.result(n, Measurement(fid=2.0 + 0.05 * (20 - full) + 0.03 * sum(s.prune_ratio for s in strategy), images=images, latency_ms=10.0 * full + 20))
    ledger.close()


@pytest.mark.slow
def test_search(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'baselines' is not installed")
    recorded_search(tmp_path / "recorded", SearchSpace(steps=20))
    table = tmp_path / "evaluations.json"
    assert main(["bench", "search", f"collect={tmp_path / 'recorded'}", f"evaluations={table}"]) == 0
    assert len(json.loads(table.read_text())["evaluations"]) == 41
    assert main(["bench", "search", "space=paper", f"evaluations={table}", "candidates=100", "seeds=1", f"output={tmp_path / 'out'}"]) == 0
    result = only_json(tmp_path / "out")
    assert result["mode"].startswith("replay")
    assert result["replay"]["rank_correlation"] > 0.5, "made-up FIDs are smooth"
    assert set(result["tables"]) == {"with", "without"}
    for table in result["tables"].values():
        found = table["methods"]
        assert {"default", "paper", "Optuna TPE", "Optuna NSGA-II", "pymoo NSGA-II", "random"} <= set(found)
        for name, method in found.items():
            assert all(0 < value < 1 for value in method["median"][-1:]), name


@pytest.mark.slow
def test_an_ablation_of_the_genes(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'baselines' is not installed")
    recorded_search(tmp_path / "recorded", build(compose_config("search", [])).space)
    table = tmp_path / "evaluations.json"
    assert main(["bench", "search", f"collect={tmp_path / 'recorded'}", f"evaluations={table}"]) == 0
    assert main(["ablate", "table=genes", f"evaluations={table}", "candidates=40", "seeds=1", f"output={tmp_path / 'out'}"]) == 0
    found = only_json(tmp_path / "out")["tables"]["with"]["methods"]
    assert set(found) == {"default", "random", *(f"without {gene}" for gene in ("sampler", "steps", "guidance", "order", "depth", "ratio"))}
    assert main(["bench", "search", f"evaluations={table}", "candidates=30", "seeds=1", "tables=with", "methods=fewer steps only;caching only", f"output={tmp_path / 'few'}"]) == 0
    few = only_json(tmp_path / "few")["tables"]["with"]["methods"]
    assert all(method["median"][-1] > 0 for method in few.values())


def test_search_refuses_what_it_cannot_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra 'baselines' is not installed")
    assert main(["bench", "search", f"evaluations={tmp_path / 'none.json'}"]) == 2
    assert "make it with dato bench search collect=<search folders>" in capsys.readouterr().err
    assert main(["bench", "search", f"collect={tmp_path}"]) == 2
    assert "holds no ledger.jsonl" in capsys.readouterr().err
    assert main(["bench", "search", "space=narrow"]) == 2
    assert "space is 'narrow'" in capsys.readouterr().err
    assert main(["bench", "search", "space=paper", "methods=simulated annealing"]) == 2
    assert "methods names 'simulated annealing'" in capsys.readouterr().err


def test_two_stages_search_depths_and_then_ratios() -> None:
    rival = TwoStages(SearchSpace(steps=8), population=4, seed=0, first=8)
    first: list[Strategy] = []
    for _ in range(2):
        asked = rival.ask()
        first += asked
        rival.tell([(sum(12 - s.cache_depth for s in strategy), sum(s.cache_depth for s in strategy)) for strategy in asked])
    assert {s.prune_ratio for strategy in first for s in strategy if s.cache_depth} == {0.5}
    then = rival.ask()
    (depths,) = {tuple(s.cache_depth for s in strategy) for strategy in then}
    assert depths in {tuple(s.cache_depth for s in strategy) for strategy in first}
    assert len({s.prune_ratio for strategy in then for s in strategy}) > 2
    rival.tell([(1.0, 1.0)] * len(then))
    assert {tuple(s.cache_depth for s in strategy) for strategy in rival.ask()} == {depths}
