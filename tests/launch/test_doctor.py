"""`dato doctor` and the start of a search on a real cluster where one node lacks the model and has another diffusers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from launch.__main__ import main
from launch.config import SearchConfig, build, compose_config
from launch.doctor import check_here, check_mlflow
from launch.look_here import look_here
from launch.pool import join_ray
from launch.preflight import LEAST_GB, NodeCheck, check_room, compare, probe_nodes
from search.evaluate.pipelines import EMBEDDED
from search.ledger import Ledger
from search.run.nodes import nodes, places

ROOT = Path(__file__).parents[2]


def config(*overrides: str) -> SearchConfig:
    return build(compose_config("search", overrides))


def closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


@pytest.mark.parametrize("command", ["doctor", "search"])
def test_an_unreachable_address_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"127.0.0.1:{closed_port()}"
    assert main([command, "cluster=ray", f"cluster.address={address}", "mlflow.enabled=false"]) == 1
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert "nothing answers" in text
    assert "Traceback" not in text
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.workers=null"], "cluster.workers is null, which only a running cluster allows"),
        (["cluster=ray", "cluster.workers=0"], "give at least 1, or null for as many as there is room for"),
        (["cluster.min_workers=3"], "cluster.min_workers is 3; give 1 to 2 .cluster.workers."),
        (["cluster=ray", "cluster.max_workers=2", "cluster.min_workers=3"], "cluster.min_workers is 3; give 1 to 2 .cluster.max_workers."),
        (["cluster.max_workers=3"], "cluster.max_workers is 3 and cluster.workers 2; a bound is for cluster.workers=null"),
        (["cluster=ray", "cluster.gpus=1.5"], "cluster.gpus is 1.5; give a part of one GPU, such as 0.5, or whole ones"),
        (["cluster=ray", "cluster.gpus=0", "cluster.cpus=0"], "cluster.cpus and cluster.gpus are 0, which there is room for without end"),
        (["cluster.cpus=-1"], "cluster.cpus is -1; give a number of at least 0"),
        (["cluster.code=copied"], "cluster.code is 'copied'; allowed are installed and upload"),
        (["mlflow.uri=postgresql://me:secret@db/x"], "mlflow.uri holds a password"),
    ],
)
def test_bad_cluster_keys_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        config(*overrides)
    assert "secret" not in str(refused.value)


def test_room_counts_whole_workers_on_each_node() -> None:
    assert places({"CPU": 7.0, "GPU": 2.0}, 4, 1) == 1
    assert places({"CPU": 8.0, "GPU": 1.0}, 1, 0.25) == 4
    assert places({"CPU": 8.0}, 1, 1) == 0
    there = [{"name": "a at 10.0.0.1", "resources": {"CPU": 8.0, "GPU": 1.0}}, {"name": "b at 10.0.0.2", "resources": {"CPU": 8.0}}]
    short = check_room(config("cluster=ray", "cluster.workers=3"), there)
    assert short.found == "3 asked for with 4 CPUs and 1 GPUs each, room for 1 (a at 10.0.0.1: 8 CPUs, 1 GPUs; b at 10.0.0.2: 8 CPUs, 0 GPUs)"
    assert short.fix.startswith("set cluster.workers=1, or add nodes")
    assert not check_room(config("cluster=ray", "cluster.workers=3", "cluster.min_workers=1"), there).fix
    assert not check_room(config("cluster=ray"), there).fix


def test_what_other_jobs_hold_is_no_room_and_what_an_autoscaler_may_start_is_no_fault() -> None:
    there = [{"name": "a at 10.0.0.1", "resources": {"CPU": 16.0, "GPU": 4.0}, "free": {"CPU": 16.0, "GPU": 1.0}}]
    short = check_room(config("cluster=ray", "cluster.workers=3"), there)
    assert short.found == "3 asked for with 4 CPUs and 1 GPUs each, room for 1 (a at 10.0.0.1: 16 CPUs, 1 of 4 GPUs)"
    assert short.fix == "set cluster.workers=1, or wait for the jobs that hold the rest (ray status; cluster.wait_for_nodes_s)"
    coming = check_room(config("cluster=ray", "cluster.workers=3"), there, autoscaled=True)
    assert not coming.fix
    assert coming.found.endswith("Ray's autoscaler starts machines for more")
    assert "up to 2 used" in check_room(config("cluster=ray", "cluster.max_workers=2"), there).found


def test_a_full_disk_and_data_that_differ_are_found() -> None:
    here = look_here(("torch",), {"data.images": str(ROOT / "conf")}, "/")
    assert here["paths"]["data.images"][0] == "folder"
    full = {**here, "name": "a", "free_gb": LEAST_GB / 2}
    other = {**here, "name": "b", "paths": {"data.images": ("folder", 10_000)}}
    fixes = {(f.what, f.where): f.fix for f in compare([full, other], "installed") if f.fix}
    assert fixes[("free disk", "a")] == "free at least 2 GB there"
    assert fixes[("data.images", "all nodes")] == "copy one of them to every node"


def test_the_tracking_server_is_asked_and_never_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    away = check_mlflow(config(f"mlflow.uri=http://127.0.0.1:{closed_port()}"))
    assert not away.fatal
    assert "dato sync folder=..." in away.fix
    assert not check_mlflow(config("mlflow.enabled=false")).fix
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:very-secret@127.0.0.1:{closed_port()}/x")
    database = check_mlflow(config())
    assert database.fix
    assert "very-secret" not in database.found


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search.warm_start=[/dev/zero]"], "it is a device"),
        (["search.warm_start=[nothing.json]"], "nothing.json"),
        (["latency_from=/dev/zero"], "latency_from is '/dev/zero'"),
        (["latency_from=spoilt"], "spoilt"),
        (["output=s.json"], "s.json"),
        (["output=s.json/deeper"], "s.json"),
        (["data=folder", "data.prompts=/dev/zero", "data.images=images"], "data.prompts is '/dev/zero'"),
        (["data=folder", "data.prompts=p.txt", "data.images=images"], "broken.png"),
        (["data=folder", "data.prompts=p.txt", "data.images=null", "data.statistics=s.json"], "s.json"),
        (["protocol.similarity=[lpips:s.json]"], "s.json"),
        (["protocol.features=inception:s.json"], "s.json"),
        (["model.path=images"], "model_index.json"),
    ],
)  # fmt: skip
def test_doctor_refuses_what_a_search_refuses_before_it_starts(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text("{}")
    (tmp_path / "p.txt").write_text("a cat")
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "ledger.jsonl").write_text("[]\n")
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "broken"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"x")
    monkeypatch.setenv("DATO_CACHE", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    wrong = [f for f in check_here(config(*words)) if f.fix and f.fatal]
    assert wrong
    assert named in " ".join(f"{f.found} {f.fix}" for f in wrong)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    assert main(["search", "mlflow.enabled=false", *words]) in (1, 2)
    assert named in capsys.readouterr().err


def test_doctor_sees_a_search_that_runs_or_is_anothers(make_search: Callable[..., Path], tmp_path: Path) -> None:
    there = config(f"output={tmp_path}")
    assert not [f for f in check_here(there) if f.fix]
    make_search(there.folder)
    (wrong,) = [f for f in check_here(there) if f.fix]
    assert "belongs to search embedded-digits-0000000000" in wrong.found
    assert not [f for f in check_here(config(f"output={tmp_path}", "fresh_start=true")) if f.fix]
    if sys.platform == "linux":
        ledger = Ledger(there.folder / "ledger.jsonl", "embedded-digits-0000000000", {}, {})
        try:
            assert any("a search runs in" in f.found for f in check_here(config(f"output={tmp_path}", "fresh_start=true")))
        finally:
            ledger.close()


def test_doctor_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {f.what: f.found for f in check_here(config(f"output={tmp_path}", "search.warm_start=[paper-b1]"))}
    assert found["model.path"] == "embedded"
    assert "paper-b1" in found["search.warm_start"]
    assert "real images" in found["data"]


@pytest.mark.parametrize(
    ("uri", "named"),
    [("mlr", "a folder, in which MLflow writes no more"), ("sqlite://", "in memory"), ("sqlite:///{folder}/s.json", "file is not a database"), ("postgresql+psycopg://me:very-secret@127.0.0.1:{port}/x", "no MLflow database answers")],
)
def test_doctor_says_of_mlflow_what_a_command_would(uri: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.json").write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path, port=closed_port()))
    found = check_mlflow(config())
    assert named in found.found
    assert "give a server" in found.fix and "dato sync" in found.fix
    assert not found.fatal
    assert "very-secret" not in found.found + found.fix


def test_a_model_that_is_not_there_is_found_here(tmp_path: Path) -> None:
    (model, *_) = check_here(config(f"model.path={tmp_path}"))
    assert "has no model_index.json" in model.found
    assert model.fix


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A head, and a node of one CPU that does not see the model's folder and has diffusers 0.0.1."""
    if os.getuid() or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("hiding a folder from one node needs root and mount namespaces")
    folder = tmp_path_factory.mktemp("uneven")
    model = shutil.copytree(EMBEDDED, folder / "model")
    old = folder / "old" / "diffusers-0.0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.0.1\n")
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TMPDIR", temporary)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    start = f"mount -t tmpfs none {model} && exec {Path(sys.executable).parent / 'ray'} start --address={cluster.address} --num-cpus=1 --num-gpus=0"
    options = "--object-store-memory=100000000 --dashboard-agent-listen-port=0 --block"
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'old'}:{ROOT}"}
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", f"{start} {options}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    cluster.connect()
    end = time.monotonic() + 60
    while sum(n["Alive"] for n in ray.nodes()) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    ray.shutdown()
    yield SimpleNamespace(address=cluster.address, model=model)
    node.terminate()
    node.wait(timeout=30)
    cluster.shutdown()
    patch.undo()
    shutil.rmtree(temporary, ignore_errors=True)


def on(uneven: SimpleNamespace, *overrides: str) -> list[str]:
    return ["cluster=ray", f"cluster.address={uneven.address}", "cluster.gpus=0", "cluster.cpus=1", "cluster.threads=1", "mlflow.enabled=false", f"model.path={uneven.model}", *overrides]


@pytest.mark.slow
def test_doctor_names_the_node_and_the_fix(uneven: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *on(uneven)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 things to fix" in shown
    assert "diffusers 0.0.1 (here" in shown
    assert list(tmp_path.iterdir()) == [], "nothing is spent, nothing is written"


@pytest.mark.slow
def test_a_search_does_not_start_where_a_node_differs(uneven: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", *on(uneven)]) == 1
    said = capsys.readouterr().err
    assert f"versions on {socket.gethostname()} at " in said
    assert "differs: diffusers 0.0.1 (here" in said
    assert "install the same versions there" in said
    assert "model.path on " in said
    assert "missing; copy it to the same path on that node" in said


@pytest.mark.slow
def test_a_node_that_joins_later_is_refused_for_what_it_lacks(uneven: SimpleNamespace) -> None:
    given = config(*on(uneven))
    join_ray(given.keys.cluster)
    try:
        reports, findings = probe_nodes(given)
        assert not findings
        good = next(r for r in reports if r["versions"]["diffusers"] != "0.0.1")
        check = NodeCheck(given, [good])
        late = [n for n in nodes() if check.ask(n) is not None]
        assert len(late) == 1
        refusal = check.refusal(late[0], ray.get(check.ask(late[0]), timeout=100))
    finally:
        ray.shutdown()
    assert "versions: differs: diffusers 0.0.1 (here" in refusal
    assert "model.path: missing; copy it to the same path on that node" in refusal


@pytest.mark.slow
def test_more_than_there_is_is_refused(uneven: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", *on(uneven, "cluster.gpus=1", "cluster.workers=2")]) == 1
    said = capsys.readouterr().err
    assert "2 asked for with 1 CPUs and 1 GPUs each, room for 0" in said
    assert "lower cluster.cpus or cluster.gpus" in said


def test_doctor_looks_at_a_large_folder_of_images_and_says_how_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.doctor.READ_WHOLE", 4)
    (tmp_path / "p.txt").write_text("a cat")
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.effect_noise((32, 32), 100).save(tmp_path / "images" / f"{number:02d}.png")
    words = ("data=folder", f"data.prompts={tmp_path / 'p.txt'}", f"data.images={tmp_path / 'images'}", f"output={tmp_path}")
    (data,) = [f for f in check_here(config(*words)) if f.what == "data"]
    assert not data.fix
    assert "read: every header, and 4 images at most to their ends (a search reads all)" in data.found
    (tmp_path / "images" / "07.png").write_bytes(b"")
    (data,) = [f for f in check_here(config(*words)) if f.what == "data"]
    assert "07.png" in data.found + data.fix and data.fatal and data.fix
    (data,) = [f for f in check_here(config(*words, "data.on_unreadable=skip")) if f.what == "data"]
    assert "1 cannot be read and are left out" in data.found and not data.fix
