"""A pool that follows real Ray nodes as they join and go, beside other jobs, and what it asks of Ray's autoscaler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

from dato.strategy import Strategy
from search.run import crew as crew_module
from search.run.autoscaler import Demand, brings_machines
from search.run.jobs import Job
from search.run.nodes import Node, nodes, places
from search.run.ray_pool import RayPool, WorkerError

QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 2}


class Where:
    """Says on which node it ran."""

    def build(self) -> Where:
        self.device = ray.get_runtime_context().get_node_id()
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> str:
        time.sleep(0.1)
        return self.device


def until(condition: Callable[[], bool], seconds: float = 150) -> Iterator[Job]:
    """Jobs until something is so."""
    end, number = time.monotonic() + seconds, 0
    while not condition():
        assert time.monotonic() < end, "not so within the time"
        yield Job(number, [Strategy.full(2)], [0])
        number += 1


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: it holds sockets, whose paths may be 107 characters
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setattr(crew_module, "LOOK_S", 0.2)
    monkeypatch.setattr(crew_module, "SETTLE_S", 1.0)
    yield folder
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(short_folder: str) -> Iterator[Cluster]:
    """A head without room for workers."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK})
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_part_of_a_gpu_is_of_one_gpu() -> None:
    assert places({"GPU": 2.0}, 0, 0.6) == 2
    assert places({"GPU": 2.0}, 0, 0.5) == 4
    assert places({"GPU": 2.0}, 0, 0.5, free={"GPU": 0.9}) == 1
    assert places({"CPU": 8.0, "GPU": 4.0}, 2, 1, free={"CPU": 5.0, "GPU": 4.0}) == 2
    assert places({"CPU": 8.0}, 2, 1) == 0


@pytest.mark.slow
def test_workers_come_and_go_with_their_nodes(cluster: Cluster) -> None:
    first = cluster.add_node(num_cpus=1)
    said: list[str] = []
    seen: list[str] = []
    third: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "0 now" in line:
            time.sleep(3)  # without any worker
            third.append(cluster.add_node(num_cpus=1).node_id)

    pool = RayPool(Where(), workers=None, address=cluster.address, load_timeout_s=150, say=say)
    assert (pool.size, pool.devices) == (1, [first.node_id])

    def run(jobs: Iterator[Job]) -> None:
        for _, result in pool.map(jobs):
            assert result
            seen.append(result)

    second = cluster.add_node(num_cpus=1)
    run(until(lambda: second.node_id in seen))
    assert pool.size == 2
    threading.Thread(target=cluster.remove_node, args=(first,), kwargs={"allow_graceful": False}).start()
    run(until(lambda: pool.size == 1))
    assert pool.devices == [second.node_id]
    # None is left for a while, and then there is one again: the search waits for it.
    cluster.remove_node(second, allow_graceful=False)
    run(until(lambda: bool(third) and third[0] in seen))
    pool.close()
    assert any("has room: 1 worker more, 2 now" in line for line in said)
    assert sum("is gone: a worker less" in line for line in said) == 2, said


@pytest.mark.slow
def test_what_other_jobs_hold_is_not_counted_and_used_once_it_is_free(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=2)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, cluster.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
    pool = RayPool(Where(), workers=None, address=cluster.address, load_timeout_s=150)
    assert pool.size == 1
    assert sum(n.total.get("CPU", 0) for n in nodes()) == 2
    holder.communicate("\n", timeout=60)
    list(pool.map(until(lambda: pool.size == 2 and len(pool.devices) == 2)))
    list(pool.map(Job(i, [Strategy.full(2)], [0]) for i in range(20)))
    assert pool.size == 2, "its own workers are not room"
    pool.close()


HOLDER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1)
class Held:
    def ready(self): pass
held = Held.remote()
ray.get(held.ready.remote())
print("held", flush=True)
sys.stdin.readline()
"""


class Choosy:
    """Leaves out the second of the nodes that it is asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, node: Node) -> Any:
        self.asked.append(node.id)
        return ray.put(len(self.asked))

    def refusal(self, node: Node, answer: Any) -> str:
        return "no model there; copy it" if answer == 2 else ""


@pytest.mark.slow
def test_a_node_that_cannot_run_workers_is_left_out_with_a_message(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, gate = cluster.add_node(num_cpus=1), Choosy()
    pool = RayPool(Where(), workers=3, min_workers=1, address=cluster.address, load_timeout_s=150, gate=gate)
    bad = cluster.add_node(num_cpus=1)
    list(pool.map(until(lambda: "left out" in caplog.text)))
    good = cluster.add_node(num_cpus=1)
    seen: set[str] = set()
    for _, result in pool.map(until(lambda: good.node_id in seen)):
        seen.add(result)
    pool.close()
    assert seen <= {first.node_id, good.node_id}
    assert gate.asked == [first.node_id, bad.node_id, good.node_id], "each is asked once, and the head, where no worker fits, never"
    (record,) = [r for r in caplog.records if "left out" in r.message]
    assert "has joined and is left out: no model there; copy it" in record.message
    assert " at " in record.message


def test_a_pool_without_bound_needs_a_cluster() -> None:
    with pytest.raises(WorkerError, match=r"cluster.workers is null, which needs a running cluster"):
        RayPool(Where(), workers=None)


FAKE_AUTOSCALER = {
    "cluster_name": "fake", "max_workers": 2, "upscaling_speed": 100.0, "idle_timeout_minutes": 0.05, "auth": {}, "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node": {}, "worker_nodes": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    **{key: [] for key in ("setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
}  # fmt: skip
FAKE_PROVIDER = {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True, "use_node_id_as_ip": True}
"""Ray's own for tests, whose machines are raylets on this one."""


@pytest.fixture
def autoscaled(short_folder: str) -> Iterator[str]:
    """The address of a head without workers, whose autoscaler may start two."""
    address = f"{ray.util.get_node_ip_address()}:{6390 + os.getpid() % 100}"
    config = Path(short_folder) / "autoscaler.json"
    config.write_text(json.dumps({**FAKE_AUTOSCALER, "provider": {**FAKE_PROVIDER, "gcs_address": address}}))
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=0", "--include-dashboard=false"]
    options = [f"--autoscaling-config={config}", "--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
    environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    subprocess.run([*start, *options], env=environment, check=True, capture_output=True, timeout=120)
    yield address
    ray.shutdown()
    mine = [p for p in psutil.process_iter(["cmdline", "environ"]) if (p.info["environ"] or {}).get("RAY_TMPDIR") == short_folder and p.pid != os.getpid()]
    for process in mine:
        process.kill()
    psutil.wait_procs(mine, timeout=10)


@pytest.mark.slow
def test_the_autoscaler_is_asked_for_machines_which_may_go_when_the_pool_closes(autoscaled: str) -> None:
    ray.init(address=autoscaled, log_to_driver=False)
    end = time.monotonic() + 60
    while not brings_machines() and time.monotonic() < end:
        time.sleep(0.5)
    assert brings_machines()
    demand = Demand(2, 1, 0)
    pool = RayPool(Where(), workers=2, min_workers=1, load_timeout_s=200, demand=demand)
    assert json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"null") == [{"CPU": 1}] * 2
    list(pool.map(until(lambda: len(set(pool.devices)) == 2, 200)))
    pool.close()
    assert json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"null") == []
    end = time.monotonic() + 60
    while len(nodes()) > 1 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(nodes()) == 1, "idle machines are ended"


@pytest.mark.slow
def test_a_cluster_without_autoscaler_is_known_as_such(cluster: Cluster) -> None:
    cluster.connect()
    assert not brings_machines()


def test_what_others_hold_is_asked_for_on_top_once_it_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr("search.run.autoscaler.request_resources", lambda bundles: asked.append(bundles))
    demand, mine = Demand(2, 4, 1), {"CPU": 4, "GPU": 1}
    node = Node(id="n", name="n", total={"CPU": 16.0, "GPU": 4.0}, free={"CPU": 4.0, "GPU": 1.0})
    demand.ask([node], {"n": 1})
    assert asked == [[mine, mine]], "Ray's figures lag: nothing is made of one look"
    demand.ask([node], {"n": 1})
    demand.ask([node], {"n": 1})
    assert asked[1:] == [[mine, mine, {"CPU": 8.0, "GPU": 2.0}]]
