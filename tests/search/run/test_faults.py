"""A search on several real Ray nodes (a raylet each) while workers, nodes, the head and the driver die.

After each: the search ends, no recorded result is lost or measured again, and the front is that of an undisturbed search.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from dato.strategy import Strategy
from search.evaluate.measure import measure_shards
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.shards import make_join
from search.ledger import Ledger, read_ledger
from search.measurements import Measurement
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.records import UNACCELERATED, Candidate, SearchRecord
from search.run.driver import Driver
from search.run.jobs import Job, Measure
from search.run.loops import GenerationalLoop
from search.run.pools import InProcessPool
from search.run.ray_pool import RayPool, WorkerError
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import toy_measurement
from tests.search.run.test_ray_measuring import MEASURE, Drawn

pytestmark = pytest.mark.slow
TOTAL = 24
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 4000, "health_check_failure_threshold": 3}


@dataclass
class Toy:
    """Deterministic; notes every evaluation in a file of its own. Waits for the node that the file "awaited" names, if there is one."""

    folder: str
    pause: float = 0.15

    def build(self) -> Toy:
        self.device = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        with (Path(self.folder) / "built").open("a") as file:
            file.write(f"{self.device}\n")
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Any]) -> list[Measurement]:
        with (Path(self.folder) / "evaluations").open("a") as file:
            file.write(f"{os.getpid()} {self.device} {len(strategies)} {strategies[0].digest}\n")
        time.sleep(self.pause * len(strategies))
        awaited, until = Path(self.folder) / "awaited", time.monotonic() + 90
        while awaited.exists() and awaited.read_text() not in (Path(self.folder) / "built").read_text() and time.monotonic() < until:
            time.sleep(0.1)
        return [Measurement(**{**toy_measurement(s).to_dict(), "device": self.device}) for s in strategies]


def evaluations(folder: Path) -> list[list[str]]:
    path = folder / "evaluations"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class At:
    """Does something once, when so many results are recorded."""

    def __init__(self, results: int, action: Callable[[], None]) -> None:
        self.results, self.action, self.done = results, action, False

    def started(self, record: SearchRecord) -> None: ...

    def generation_done(self, record: SearchRecord, generation: int) -> None: ...

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        if not self.done and len(record.results) >= self.results:
            self.done = True
            self.action()


def search(folder: Path, pool: Any, *watchers: At) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "faults", {}, {})
    try:
        recorder = Recorder(ledger, SearchPlan(generations=4, population=6), lambda shards: shards[0], watchers=watchers)  # type: ignore[arg-type,return-value]
        loop = GenerationalLoop(Nsga2(space=SearchSpace(steps=8), population=6, seed=0))
        return Driver(recorder, EvaluationProtocol(images=4, batch=4), loop, {UNACCELERATED: Strategy.full(8)}).run(pool)
    finally:
        ledger.close()


def outcome(record: SearchRecord) -> object:
    points = [(c.strategy.digest, m.fid, m.latency_ms) for c, m in record.front()]
    return points, record.hypervolumes, {a: w.candidate.strategy.digest for a, w in record.winners.items()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("calm")
    return outcome(search(folder, InProcessPool(Toy(str(folder), pause=0.0))))


def check(record: SearchRecord, folder: Path, calm: object) -> None:
    assert record.finished
    assert outcome(record) == calm
    lines = [line for line in (folder / "ledger.jsonl").read_text().splitlines() if '"event":"result"' in line]
    assert len(lines) == TOTAL
    assert all(m.ok for m in record.results.values())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for workers; tests add nodes of one worker each. Apart from any other Ray on the machine."""
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: it holds sockets, whose paths may be 107 characters
    monkeypatch.setenv("RAY_TMPDIR", temporary)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK})
    yield made
    ray.shutdown()
    made.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


def pool_of(cluster: Cluster, folder: Path, pause: float = 0.15, **settings: Any) -> RayPool:
    return RayPool(Toy(str(folder), pause), address=cluster.address, **{"load_timeout_s": 120, "workers": 2, **settings})


def test_a_worker_process_is_killed(cluster: Cluster, tmp_path: Path, calm: object) -> None:
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    pool = pool_of(cluster, tmp_path, pause=2.0)
    record = search(tmp_path, pool, At(7, lambda: os.kill(int(evaluations(tmp_path)[-1][0]), signal.SIGKILL)))
    check(record, tmp_path, calm)
    assert len({pid for pid, *_ in evaluations(tmp_path)}) == 3


def test_a_node_is_killed_and_another_joins_late(cluster: Cluster, tmp_path: Path, calm: object) -> None:
    cluster.add_node(num_cpus=1)
    doomed = cluster.add_node(num_cpus=1)
    pool = pool_of(cluster, tmp_path, pause=1.0)
    joined: list[str] = []

    def kill() -> None:
        # Not in the driver's thread: it must notice by itself.
        threading.Thread(target=cluster.remove_node, args=(doomed,), kwargs={"allow_graceful": False}).start()

    def join() -> None:
        joined.append(cluster.add_node(num_cpus=1).node_id)
        (tmp_path / "awaited").write_text(joined[0])

    record = search(tmp_path, pool, At(5, kill), At(12, join))
    check(record, tmp_path, calm)
    where = [node for _, node, _, _ in evaluations(tmp_path)]
    assert joined[0] in where
    assert doomed.node_id in where


def test_a_result_that_goes_with_its_node_before_it_is_measured_is_made_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = cluster.add_node(num_cpus=1)
    pool = RayPool(Drawn(), address=cluster.address, workers=1, join=make_join(), load_timeout_s=60)
    begin, lost = pool._measuring.begin, list[Any]()

    def losing(tag: Any, measure: Measure, parts: Sequence[Any], beside: Sequence[Any]) -> None:
        if not lost:
            lost.extend(parts)
            cluster.remove_node(doomed, allow_graceful=False)
            cluster.add_node(num_cpus=1)
        begin(tag, measure, parts, beside)

    monkeypatch.setattr(pool._measuring, "begin", losing)
    big = [list(range(i, i + 1500)) for i in (0, 1500)]  # of 144 kB each: small results are kept by the driver itself
    ((job, made),) = pool.map([Job("lost", [Strategy.full(2)], big, measure=Measure(measure_shards, (MEASURE, None)))])
    assert len(lost) == 2
    assert job.vanished == 1
    assert made.value.images == 3000
    assert made.value.fid == MEASURE(Drawn().run([Strategy.full(2)], big)).fid


def test_a_search_begins_with_fewer_workers_and_takes_in_late_ones(cluster: Cluster, tmp_path: Path, calm: object) -> None:
    first = cluster.add_node(num_cpus=1)
    pool = pool_of(cluster, tmp_path, min_workers=1)
    late: list[str] = []

    def join() -> None:
        late.append(cluster.add_node(num_cpus=1).node_id)
        (tmp_path / "awaited").write_text(late[0])

    record = search(tmp_path, pool, At(4, join))
    check(record, tmp_path, calm)
    assert {node for _, node, _, _ in evaluations(tmp_path)} == {first.node_id, late[0]}


def test_a_node_is_taken_away_after_a_notice(cluster: Cluster, tmp_path: Path, calm: object) -> None:
    from ray.core.generated import autoscaler_pb2

    cluster.add_node(num_cpus=1)
    spot = cluster.add_node(num_cpus=1)
    pool = pool_of(cluster, tmp_path, pause=1.0)
    accepted: list[bool] = []

    def notice() -> None:
        # What a provider's notice becomes: the node takes no new work, and is gone at the deadline.
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted.append(ray._raylet.GcsClient(address=cluster.address).drain_node(spot.node_id, reason, "spot", int(1000 * (time.time() + 4)))[0])
        threading.Timer(4, cluster.remove_node, args=(spot,), kwargs={"allow_graceful": False}).start()
        (tmp_path / "awaited").write_text(cluster.add_node(num_cpus=1).node_id)

    record = search(tmp_path, pool, At(5, notice))
    check(record, tmp_path, calm)
    assert accepted == [True]
    assert (tmp_path / "awaited").read_text() in {node for _, node, _, _ in evaluations(tmp_path)}, "the replacement is used"


def test_a_node_hangs_and_wakes(cluster: Cluster, tmp_path: Path, calm: object) -> None:
    cluster.add_node(num_cpus=1)
    cut = cluster.add_node(num_cpus=1)
    pool = pool_of(cluster, tmp_path)
    raylet = next(p for p in cut.all_processes["raylet"]).process.pid
    frozen = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]

    def freeze() -> None:
        for process in frozen:
            process.suspend()

    def heal() -> None:
        for process in frozen:
            if process.is_running():
                process.resume()

    frozen_at, healed_at = At(6, freeze), At(18, heal)
    record = search(tmp_path, pool, frozen_at, healed_at)
    check(record, tmp_path, calm)
    assert frozen_at.done and healed_at.done
    assert cut.node_id in {node for _, node, _, _ in evaluations(tmp_path)}, "the node that hung had work"


NAMESPACES = os.geteuid() == 0 and shutil.which("ip") is not None and subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, str]]:
    """A head, and a node of one worker in a network namespace of its own; the name of the link between them."""
    name, link, net = f"dato{os.getpid() % 10000}", f"dl{os.getpid() % 10000}", f"10.{77 + os.getpid() % 100}.0"
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", temporary)
    inside = ["ip", "netns", "exec", name]
    made, node = None, None
    try:
        for command in (
            ["ip", "netns", "add", name],
            ["ip", "link", "add", link, "type", "veth", "peer", "name", "node", "netns", name],
            ["ip", "addr", "add", f"{net}.1/24", "dev", link],
            ["ip", "link", "set", link, "up"],
            [*inside, "ip", "addr", "add", f"{net}.2/24", "dev", "node"],
            [*inside, "ip", "link", "set", "node", "up"],
            [*inside, "ip", "link", "set", "lo", "up"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {' '.join(command)}: {done.stderr.strip()}")
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK, "node_ip_address": f"{net}.1"}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1, node_ip_address=f"{net}.1")
        # Its temporary folder is its own: on one machine, nodes would find each other's sockets there.
        start = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={made.address}", f"--node-ip-address={net}.2", "--num-cpus=1"]
        node = subprocess.Popen([*start, "--object-store-memory=100000000", "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        yield made, link
    finally:
        ray.shutdown()
        if node:
            for member in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                member.kill()
            node.wait()
        if made:
            made.shutdown()
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        pass


@pytest.mark.skipif(not NAMESPACES, reason="network namespaces need root and the command ip")
def test_a_node_is_cut_off_from_the_network_and_heals(apart: tuple[Cluster, str], tmp_path: Path, calm: object) -> None:
    cluster, link = apart
    pool = pool_of(cluster, tmp_path, pause=1.0)

    def cut() -> None:
        subprocess.run(["ip", "link", "set", link, "down"], check=True)

    def heal() -> None:
        subprocess.run(["ip", "link", "set", link, "up"], check=True)

    record = search(tmp_path, pool, At(6, cut), At(20, heal))
    check(record, tmp_path, calm)
    assert len({node for _, node, _, _ in evaluations(tmp_path)}) == 2


def test_without_any_node_left_it_says_so_and_continues_later(cluster: Cluster, tmp_path: Path, calm: object) -> None:
    only = cluster.add_node(num_cpus=1)
    pool = pool_of(cluster, tmp_path, workers=1)
    pool._start = 12
    with pytest.raises(WorkerError, match=r"no worker is left .* run the same command again: the ledger holds every result"):
        search(tmp_path, pool, At(5, lambda: cluster.remove_node(only, allow_graceful=False)))
    pool.close()
    before = read_ledger(tmp_path / "ledger.jsonl").results
    assert len(before) >= 5
    assert all(m.ok for m in before.values()), "a lost machine is not the candidate's fault"
    cluster.add_node(num_cpus=1)
    record = search(tmp_path, pool_of(cluster, tmp_path, workers=1))
    check(record, tmp_path, calm)
    assert {n: record.results[n].to_dict() for n in before} == {n: m.to_dict() for n, m in before.items()}


SCRIPT = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tests.search.run.test_faults import pool_of, search
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=1)
folder = Path(sys.argv[1])
pool = pool_of(cluster, folder)
search(folder, pool)
pool.close()
ray.shutdown()  # before its machines go
cluster.shutdown()
"""


def test_head_and_driver_are_killed_and_started_again(tmp_path: Path, calm: object) -> None:
    root = Path(__file__).parents[3]
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_TMPDIR": temporary}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, cwd=root)
    end = time.monotonic() + 120
    while _results(tmp_path) < 8 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert any("gcs_server" in p.name() for p in family)
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    before = read_ledger(tmp_path / "ledger.jsonl").results
    assert 8 <= len(before) < TOTAL
    paid = len(evaluations(tmp_path))
    again = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, cwd=root, timeout=200, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    shutil.rmtree(temporary, ignore_errors=True)
    record = read_ledger(tmp_path / "ledger.jsonl")
    check(record, tmp_path, calm)
    assert {n: record.results[n].to_dict() for n in before} == {n: m.to_dict() for n, m in before.items()}
    recorded = {record.candidates[n].strategy.digest for n in before}
    assert not recorded & {digest for _, _, count, digest in evaluations(tmp_path)[paid:] if count == "1"}


def _results(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return path.read_text().count('"event":"result"') if path.exists() else 0
