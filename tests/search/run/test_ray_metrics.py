"""Ray's own metrics of a pool, read from the port that Prometheus would read."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys, time, urllib.request
import ray
from search.run.jobs import Job
from search.run.ray_cluster import connect
from search.run.ray_pool import RayPool

class Fails:
    def build(self): return self
    def run(self, strategies, batches):
        if batches[0] == 3: raise ValueError("no")
        return 1

connect(None, cpus=1)
node = ray.nodes()[0]
print("port:", node["MetricsExportPort"])
pool = RayPool(Fails(), workers=1, load_timeout_s=200)
began = time.monotonic()
done = list(pool.map(Job(i, ["s"], [i]) for i in range(100)))
print("seconds:", time.monotonic() - began)
print("done:", sum(result is not None for _, result in done))
text, end = "", time.monotonic() + 60
while node["MetricsExportPort"] > 0 and "ray_dato_candidates_total" not in text and time.monotonic() < end:
    time.sleep(1)
    text = urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").read().decode()
print(text)
pool.close()
"""


def run(tmp_path: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


AGENT = all(importlib.util.find_spec(name) for name in ("aiohttp_cors", "opencensus", "prometheus_client", "grpc"))


@pytest.mark.slow
@pytest.mark.skipif(AGENT, reason="ray[default] is installed, and with it the metrics agent")
def test_without_an_agent_nothing_is_recorded_and_nothing_is_missing(tmp_path: Path) -> None:
    said = run(tmp_path)
    assert "port: -1" in said
    assert "done: 99" in said


@pytest.mark.slow
@pytest.mark.skipif(not AGENT, reason="Ray's metrics agent comes with ray[default]")
def test_prometheus_reads_what_a_pool_does(tmp_path: Path) -> None:
    said = run(tmp_path)
    assert "done: 99" in said

    def value(name: str, labels: str = "") -> float:
        (found,) = [line for line in said.splitlines() if re.match(rf"{name}(\{{|\s)", line) and labels in line]
        return float(found.rpartition(" ")[2])

    assert value("ray_dato_candidates_total", 'outcome="done"') == 99
    assert value("ray_dato_candidates_total", 'outcome="failed"') == 1
    assert value("ray_dato_failures_total", 'cause="error"') == 3
    assert value("ray_dato_workers", 'state="loaded"') == 1
    assert value("ray_dato_piece_seconds_count", 'task="evaluate"') >= 99, "a check of the worker is one too"
    assert value("ray_dato_worker_wait_seconds_count") > 99
