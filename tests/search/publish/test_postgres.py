"""MLflow on a real PostgreSQL: two searches at once in one experiment, and a password that is written nowhere."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="the extra postgres is not installed")
BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed (apt-get install postgresql)"),
]


AS_SERVER: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
"""PostgreSQL refuses to run as root."""


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[str, str]]:
    """(URI with the password, password) of a database on loopback."""
    folder, password = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")), secrets.token_hex(12)
    data, file = folder / "data", folder / "password"
    file.write_text(password)
    if os.getuid() == 0:
        for path in (folder, file):
            shutil.chown(path, "postgres")
    bin_folder = Path(BINARIES[-1]).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [str(bin_folder / "initdb"), "-D", str(data), "-U", "dato", "-A", "scram-sha-256", f"--pwfile={file}", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"],
        check=True, capture_output=True, **AS_SERVER,
    )  # fmt: skip
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    control = str(bin_folder / "pg_ctl")
    subprocess.run([control, "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start"], check=True, capture_output=True, **AS_SERVER)
    yield f"postgresql://dato:{password}@127.0.0.1:{port}/postgres", password
    subprocess.run([control, "-D", str(data), "-m", "immediate", "stop"], check=False, capture_output=True, **AS_SERVER)
    shutil.rmtree(folder, ignore_errors=True)


SCRIPT = """
import sys
from pathlib import Path
from analysis.report import write_report
from search.run.driver import Driver
from search.run.loops import GenerationalLoop
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.records import UNACCELERATED
from search.evaluate.protocol import EvaluationProtocol
from search.ledger import Ledger
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.publish.mlflow_runs import Tracker
from search.run.pools import InProcessPool
from dato.strategy import Strategy
from tests.search.run.test_faults import Toy

import mlflow.store.db.utils

mlflow.store.db.utils.MAX_RETRY_COUNT = 4  # of 10: MLflow tries a database that refuses it for 102 s, and for 1 s with this
seed, folder = int(sys.argv[1]), Path(sys.argv[2])
config = {"seed": seed, "model": {"name": "toy"}, "data": {"name": "toy"}, "mlflow": {"uri": None}}
ledger = Ledger(folder / "ledger.jsonl", f"toy-{seed}", config, {})
tracker = Tracker(experiment="shared")
record = Driver(
    Recorder(ledger, SearchPlan(generations=2, population=4), lambda shards: shards[0], watchers=[tracker]),
    EvaluationProtocol(images=4, batch=4),
    GenerationalLoop(Nsga2(space=SearchSpace(steps=8), population=4, seed=seed)),
    {UNACCELERATED: Strategy.full(8), "rival": Strategy.uniform(8, 3)},
).run(InProcessPool(Toy(str(folder), pause=0.0)))
tracker.finished(record, [])
assert tracker.run_id, "not tracked"
"""


def start(seed: int, folder: Path, uri: str) -> subprocess.Popen[str]:
    folder.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment = {**clean, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(seed), str(folder)], env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_searches_at_once_in_one_experiment(database: tuple[str, str], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, password = database
    client = MlflowClient(uri)
    client.search_experiments()  # makes the tables, which two newcomers at once would both try to do
    running = [start(seed, tmp_path / str(seed), uri) for seed in (0, 1)]
    said = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    for seed in (0, 1):
        mine = [r for r in runs if r.data.tags["dato.search_id"] == f"toy-{seed}"]
        kinds = [r.data.tags["dato.kind"] for r in mine]
        assert (kinds.count("search"), kinds.count("candidate")) == (1, 8)
        (parent,) = [r for r in mine if r.data.tags["dato.kind"] == "search"]
        assert parent.info.status == "FINISHED"
        assert len(client.get_metric_history(parent.info.run_id, "hypervolume")) == 2
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any(p.name == "ledger.jsonl" for p in written)
    assert not [p for p in written if password.encode() in p.read_bytes()]
    assert password not in "".join(said)


def test_a_wrong_password_stops_no_search_and_is_not_shown(database: tuple[str, str], tmp_path: Path) -> None:
    uri, password = database
    process = start(2, tmp_path / "2", uri.replace(password, "wrong-secret"))
    said, _ = process.communicate(timeout=200)
    assert "not tracked" in said, "the search itself must have ended"
    assert "the search goes on" in said
    assert "wrong-secret" not in said
    assert '"event":"finished"' in (tmp_path / "2" / "ledger.jsonl").read_text()
