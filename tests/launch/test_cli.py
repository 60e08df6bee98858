"""The command as a user runs it: real Ray, real sqlite MLflow, the embedded model, made short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.search import waiting_workers
from search.ledger import read_ledger
from search.run.settings import SearchPlan

ROOT = Path(__file__).parents[2]
SHORT = ["protocol.images=6", "protocol.batch=3", "protocol.interval_groups=5", "model.steps=5", "search.population=4", "search.generations=2", "search.min_speedup=null", "search.latency=measured", "search.tolerance=1000", "search.winner_speedups=[]"]


def dato(folder: Path, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def only_search(folder: Path) -> Path:
    (found,) = [p for p in (folder / "outputs").iterdir() if ".before-" not in p.name]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("search")
    done = dato(folder, "search", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_a_search_delivers_what_it_promises(finished: tuple[Path, str]) -> None:
    folder, out = finished
    search = only_search(folder)
    record = read_ledger(search / "ledger.jsonl")
    assert record.finished
    assert len(record.results) == 8
    assert all(m.ok and m.images == 3 for m in record.results.values())
    assert {m.images for _, m in record.front()} == {6}
    assert set(record.winners) == {"quality", "balanced", "fastest"}
    assert "Traceback" not in out
    for promised in ("winners", "report.html", "mlflow ui", 'dato.Strategy.load("models:/dato-embedded@fastest")'):
        assert promised in out
    strategy = json.loads((search / "winners" / "fastest.json").read_text())
    assert strategy["provenance"]["latency"]["unit"] == "ms per image"
    assert len(strategy["provenance"]["model"]["unet_sha256"]) == 64
    assert len(list((search / "samples").glob("*.png"))) == 1 + len({w.candidate.number for w in record.winners.values()}), "a row for each that won, and the unaccelerated one"


@pytest.mark.slow
def test_mlflow_holds_the_search(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dato/embedded")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["dato.kind"] == "search"]
    children = [r for r in runs if r.data.tags["dato.kind"] == "candidate"]
    assert len(children) == 8
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    record = read_ledger(only_search(folder) / "ledger.jsonl")
    promoted = {candidate.number: m for candidate, m in record.evaluated(record.images)}
    assert 0 < len(promoted) < 8
    for child in children:
        number = int(child.data.tags["dato.candidate"])
        final = promoted.get(number, record.results[number])  # a promoted candidate's run ends with its figures on all images
        assert child.data.metrics["fid"] == final.fid
    assert [m.value for m in client.get_metric_history(parent.info.run_id, "hypervolume")] == record.hypervolumes
    assert parent.info.status == "FINISHED"
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"front.html", "fronts", "report.html", "search.json"} <= artifacts


@pytest.mark.slow
def test_a_winner_is_used_in_a_fresh_process(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    code = """
import dato
from diffusers import StableDiffusionPipeline
from search.evaluate.pipelines import EMBEDDED
pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED)
strategy = dato.Strategy.load("models:/dato-embedded@fastest")
with dato.accelerate(pipe, strategy):
    image = pipe("a handwritten seven", num_inference_steps=len(strategy)).images[0]
    print(image.size, dato.status(pipe).finished, strategy.digest)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, timeout=200)
    record = read_ledger(only_search(folder) / "ledger.jsonl")
    assert done.stdout.split("\n")[-2] == f"(40, 40) True {record.winners['fastest'].candidate.strategy.digest}", done.stderr


@pytest.mark.slow
def test_the_finished_search_is_shown_again_without_work(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = (only_search(folder) / "ledger.jsonl").read_bytes()
    done = dato(folder, "search", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "this search is finished" in done.stdout
    assert (only_search(folder) / "ledger.jsonl").read_bytes() == before


@pytest.mark.slow
def test_with_recorded_latencies_the_search_repeats_exactly(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    first = read_ledger(only_search(folder) / "ledger.jsonl")
    done = dato(tmp_path, "search", *SHORT, f"latency_from={only_search(folder)}", "mlflow.enabled=false")
    assert done.returncode == 0, done.stderr
    again = read_ledger(only_search(tmp_path) / "ledger.jsonl")
    assert again.candidates == first.candidates
    assert {n: (m.fid, m.latency_ms) for n, m in again.results.items()} == {n: (m.fid, m.latency_ms) for n, m in first.results.items()}
    assert again.hypervolumes == first.hypervolumes
    assert {a: w.candidate for a, w in again.winners.items()} == {a: w.candidate for a, w in first.winners.items()}
    assert not (tmp_path / "mlflow.db").exists()


def test_workers_that_would_wait_are_told_of() -> None:
    said = waiting_workers(SearchPlan(generations=2, population=10), 11)
    assert said
    assert "11 workers share generations of 10 candidates" in said
    assert "search.mode=asynchronous" in said
    assert waiting_workers(SearchPlan(generations=2, population=10), 10) is None
    assert waiting_workers(SearchPlan(generations=2, population=10, mode="asynchronous"), 64) is None


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_same_command_continues(tmp_path: Path) -> None:
    arguments = ["search", *SHORT, "mlflow.enabled=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", *arguments], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs, as these tests may be one, ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not _results(tmp_path):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "The same command continues" in out
    assert "Traceback" not in out + err
    before = _results(tmp_path)
    assert before
    other = dato(tmp_path, *arguments, "cluster.threads=2")
    assert other.returncode == 2, other.stdout + other.stderr
    assert "and its workers are now" in other.stderr
    assert "they do not compare. Go on with cluster.threads and machines as before, or search anew with fresh_start=true" in other.stderr
    assert _results(tmp_path) == before
    done = dato(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing:" in done.stdout
    assert _results(tmp_path)[: len(before)] == before
    assert len(_results(tmp_path)) == 8


def _results(folder: Path) -> list[str]:
    ledgers = list(folder.glob("outputs/*/ledger.jsonl"))
    return [line for path in ledgers for line in path.read_text().splitlines() if '"event":"result"' in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seach"], "there is no command 'seach'"),
        (["search", "sed=1"], "sed"),
        (["search", "seed"], "write key=value"),
        (["search", "model=sd99"], "sd99"),
        (["search", "cluster.workers=0"], "cluster.workers is 0; give at least 1"),
        (["search", "model.path=/tmp"], "has no model_index.json"),
        (["search", "model.steps=many"], "model.steps is 'many'"),
        (["search", "space.depths=[0,1000,12]"], "cache_depth is 1000"),
        (["search", "space.ratios=[0.8]"], "prune_ratio is 0.8"),
        (["search", "search.operators=best"], "search.operators is 'best'; allowed are stepwise and paper"),
        (["search", "search.generations=0"], "give an integer of at least 1"),
        (["search", "mlflow.children=some"], "allowed are all, front and none"),
        (["search", "data=folder"], "data.prompts"),
        (["search", "protocol.images=1"], "protocol.images is 1"),
        (["search", "latency_from=/nowhere"], "holds no ledger.jsonl"),
        (["search", "output=/dev/null/x"], "set output to a folder that you may write"),
        (["report"], "needs folder=..."),
        (["report", "folder=/nowhere"], "holds no ledger.jsonl"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    from launch.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []
