"""MLflow's own pages in Chromium: the search is there and described, links lead on, its front opens, candidates can be compared."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from launch.config import build
from launch.deliver import make_tracker, to_log
from launch.samples import write_samples
from search.ledger import read_ledger
from search.publish.mlflow_notes import WORKFLOW
from search.publish.registry import register
from search.publish.strategies import winner_strategies

pytestmark = pytest.mark.slow


@pytest.fixture
def server(browser: Any, make_search: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[str, str, Any]]:
    uri, before = f"sqlite:///{tmp_path / 'mlflow.db'}", mlflow.get_tracking_uri()
    folder = make_search(tmp_path / "toy", population=12)
    record = read_ledger(folder / "ledger.jsonl")
    MlflowClient(uri).create_experiment("dato/embedded", artifact_location=(tmp_path / "artifacts").as_uri())
    write_samples(folder, record, {n: torch.full((4, 3, 8, 8), 100, dtype=torch.uint8) for n in (-1, record.winners["fastest"].candidate.number)})
    tracker = make_tracker(build({**record.config, "mlflow": {**record.config["mlflow"], "uri": uri}}), folder)
    tracker.started(record)
    for generation in range(3):
        tracker.generation_done(record, generation)
    tracker.finished(record, to_log(folder))
    tracker.registered(record, "toy", register("toy", winner_strategies(record), tracker.run_id).versions, to_log(folder))
    mlflow.set_tracking_uri(before)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "no_proxy": "127.0.0.1"}, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process, tmp_path / "server.log")
        yield address, tracker.run_id or "", MlflowClient(uri)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            opener.open(f"{address}/health", timeout=5).read()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"MLflow's server does not answer:\n{log.read_text()[-2000:]}")


def test_a_person_finds_the_search_and_its_front(server: tuple[str, str, Any], browser: Any, keep: Callable[..., None]) -> None:
    address, parent, client = server
    experiment = client.get_experiment_by_name("dato/embedded").experiment_id
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(90_000)
    page.goto(f"{address}/#/experiments/{experiment}?{WORKFLOW}")
    page.get_by_text("embedded-digits-0000000000").first.wait_for()
    assert "/runs?" in page.url, "it opens on its runs"
    page.wait_for_timeout(1500)
    keep(page, "mlflow-experiment")
    page.goto(f"{address}/#/experiments/{experiment}/runs/{parent}?{WORKFLOW}")
    page.get_by_text("x faster, FID").first.wait_for()
    page.get_by_text("Show more").first.click()
    page.wait_for_timeout(1500)
    keep(page, "mlflow-search")
    page.goto(f"{address}/{page.get_by_role('link', name='version 1').first.get_attribute('href')}")  # links may open a tab of their own
    page.get_by_text("dato.Strategy.load").first.wait_for()
    assert "models:/toy@" in page.content()
    keep(page, "mlflow-version")
    page.goto(f"{address}/{page.get_by_role('link', name='its run').first.get_attribute('href')}")
    page.get_by_text("Registered as").first.wait_for()
    assert "/runs/" in page.url, "and back"
    page.goto(f"{address}/#/models/toy")
    page.get_by_text("models:/toy@quality").first.wait_for()
    wanted = "searchFilter=tags.%60dato.front%60%20%3D%20'true'&orderByKey=metrics.%60latency_ms%60&orderByAsc=true"
    page.goto(f"{address}/#/experiments/{experiment}/runs?{wanted}")
    page.get_by_text("candidate").first.wait_for()
    page.wait_for_timeout(1500)
    assert page.get_by_text("candidate").count() > 0
    keep(page, "mlflow-front-runs")
    page.goto(f"{address}/#/experiments/{experiment}/runs/{parent}/artifacts/front.html")
    frame = page.frame_locator("iframe").first
    frame.locator(".js-plotly-plot .main-svg").first.wait_for()
    page.wait_for_timeout(500)
    keep(page, "mlflow-front")
    assert frame.locator(".js-plotly-plot .main-svg").count() > 0
    children = client.search_runs([experiment], "tags.`dato.front` = 'true'")
    assert children, "the front's runs are found by their tag"
    runs = ",".join(f'"{r.info.run_id}"' for r in children)
    page.goto(f'{address}/#/compare-runs?runs=[{runs}]&experiments=["{experiment}"]')
    page.get_by_text("Scatter Plot").first.click()
    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="latency_ms", exact=True).click()
    axes = "[...document.querySelectorAll('.js-plotly-plot')].map(g=>[g.layout.xaxis.title?.text,g.layout.yaxis.title?.text].join())"
    page.wait_for_function(f"{axes}.includes('latency_ms,fid')")
    page.wait_for_timeout(500)
    assert "latency_ms,fid" in page.evaluate(axes), "FID is plotted against latency"
    keep(page, "mlflow-compare")
    page.close()
