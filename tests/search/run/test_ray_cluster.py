"""Joining Ray, and whose code the workers run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from search.run import ray_cluster as cluster
from search.run.ray_cluster import ClusterError, check_address, own_packages

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("address", ["head", "head:", "head:port", "ray://head", "ray://head:10001", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"give auto on a node of the cluster, or host:6379 of its head. .* ray job submit"):
        check_address(address)


def test_an_address_where_nothing_listens_is_refused() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ClusterError, match=rf"'127.0.0.1:{port}', where nothing answers .*; start Ray there \(ray start --head --port={port}\)"):
        check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize("says", [None, b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_not_ray_is_refused_at_once(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if says:

            def answer() -> None:
                there, _ = listening.accept()
                there.sendall(says)
                there.recv(100)
                there.close()

            threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"'{address}', where something answers that is not Ray; give the address that"):
            check_address(address)


def test_unknown_code_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"cluster.code is 'copied'; allowed are 'installed' .* and 'upload'"):
        own_packages("copied")


@pytest.mark.slow
def test_a_token_of_any_kind_is_sent_and_one_that_ray_makes_is_private(tmp_path: Path) -> None:
    code = """
import os, stat, subprocess, sys
from pathlib import Path
import ray
from search.run.ray_cluster import ClusterError, connect
connect(None)
made = Path.home() / ".ray" / "auth_token"
assert made.is_file() and stat.S_IMODE(made.stat().st_mode) == 0o600, oct(made.stat().st_mode)
address, token = ray.get_runtime_context().gcs_address, made.read_text()
for more in ({"RAY_AUTH_TOKEN": token}, {"RAY_AUTH_TOKEN_PATH": str(made)}):  # another process of the same user, whose home is elsewhere
    subprocess.run([sys.executable, "-c", JOIN, address], env={**os.environ, "HOME": sys.argv[1], **more}, check=True)
"""
    join = "import sys; from search.run.ray_cluster import connect; connect(sys.argv[1]); print('joined')"
    (tmp_path / "home").mkdir()
    (tmp_path / "other").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    code = code.replace("JOIN", repr(join))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.count("joined") == 2, done.stdout + done.stderr


def test_a_ray_of_this_machine_alone_listens_on_loopback_alone(tmp_path: Path) -> None:
    code = """
import json, os
import psutil, ray
from search.run.ray_cluster import connect
connect(None)
@ray.remote
def pid():
    return os.getpid()
worker, me = ray.get(pid.remote()), psutil.Process()
family = [me, *me.children(recursive=True)]
assert worker in [p.pid for p in family]
print(json.dumps([[p.name(), *c.laddr] for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    listening = json.loads(done.stdout)
    assert {"gcs_server", "raylet"} <= {name for name, *_ in listening}
    assert [x for x in listening if x[1].removeprefix("::ffff:") not in ("127.0.0.1", "::1")] == []


SCRIPT = """
import sys
import ray
from search.run.jobs import Job
from search.run.ray_pool import RayPool
from search.run.ray_cluster import connect

class Probe:
    def build(self):
        import dato.strategy, search.run.simulate
        self.device = f"{search.run.simulate.__file__} {dato.strategy.__file__}"
        return self
    def run(self, strategies, batches):
        return len(batches)

connect(None, code=sys.argv[1])

@ray.remote(num_cpus=0)
def naive():
    import search
    return getattr(search, "DECOY", "ours")

print("without care:", ray.get(naive.remote()))
pool = RayPool(Probe(), workers=1, code=sys.argv[1], load_timeout_s=120)
print("workers import:", pool.devices[0])
print("result:", [r for _, r in pool.map([Job("a", [], [1, 2])])])
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", ["installed", "upload"])
def test_folders_of_our_names_in_the_working_folder_do_no_harm(tmp_path: Path, code: str) -> None:
    decoys, elsewhere = tmp_path / "decoys", tmp_path / "elsewhere"
    for name in ("dato", "search", "conf", "launch"):
        (decoys / name).mkdir(parents=True)
        (decoys / name / "__init__.py").write_text("DECOY = 'decoy'\n")
    elsewhere.mkdir()
    (elsewhere / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(elsewhere / "script.py"), code], cwd=decoys, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["without care"] == "decoy", "Ray no longer puts the working folder first; arrange() may be dropped"
    simulate, strategy = (Path(p) for p in said["workers import"].split())
    assert simulate.name == "simulate.py"
    if code == "installed":
        assert (simulate, strategy) == (ROOT / "search" / "run" / "simulate.py", ROOT / "dato" / "strategy.py")
    else:
        assert not {simulate, strategy} & set(ROOT.rglob("*.py")), "shipped code lies in Ray's own folder"
        assert not simulate.is_relative_to(decoys)
        assert simulate.read_text() == (ROOT / "search" / "run" / "simulate.py").read_text()
    assert said["result"] == "[2]"


@pytest.mark.parametrize("key", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_refused_before_ray_starts(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("a" * 40) / ("b" * 40)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(key, str(long))
    with pytest.raises(ClusterError, match=rf"{key} is '{long}'.*at most \d+ characters: export RAY_TMPDIR=/tmp"):
        cluster.connect(None)
    assert not cluster.ray.is_initialized()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the way out
    cluster._check_temporary_folder()
