"""The cluster templates: against Ray's own schema, against what KubeRay needs, and SLURM's script by running it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import ray
import yaml

from launch.__main__ import COMMANDS
from launch.config import build, compose_config

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "launch" / "cluster"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("ray-up-*.yaml")), ids=lambda p: p.name)
def test_ray_up_accepts_the_template(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(path.read_text())
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert f"=={version('ray')}" in "".join(config["setup_commands"])
    bad = {**config, "worker_count": 3}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, SCHEMA)


def launched(config: dict[str, Any], workers: int) -> dict[str, int]:
    """How many machines of which type Ray's own autoscaler starts beside the head for a search that asks for so many workers."""
    from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE

    head, types = config["head_node_type"], config["available_node_types"]

    class Provider:  # all that it asks of one: the head is there
        def node_tags(self, node: str) -> dict[str, str]:
            return {TAG_RAY_NODE_KIND: "head", TAG_RAY_NODE_STATUS: "up-to-date", TAG_RAY_USER_NODE_TYPE: head}

        def internal_ip(self, node: str) -> str:
            return "10.0.0.1"

    scheduler = ResourceDemandScheduler(Provider(), types, config["max_workers"], head, upscaling_speed=1000.0)
    cluster = compose_config("search", ["cluster=ray"])["cluster"]
    wanted = [{"CPU": cluster["cpus"], "GPU": cluster["gpus"]}] * workers
    found, _ = scheduler.get_nodes_to_launch(["head"], {}, [], {}, [], {"10.0.0.1": types[head]["resources"]}, wanted, None)
    return dict(found)


def test_the_machines_of_aws_start_when_a_search_asks_for_them() -> None:
    from ray.autoscaler._private.util import prepare_config

    text = (TEMPLATES / "ray-up-aws.yaml").read_text()
    config = prepare_config(yaml.safe_load(text))
    assert launched(config, 0) == {}, "nothing runs while nobody searches"
    assert launched(config, 3) == {"gpu": 3}
    assert launched(config, 99) == {"gpu": 8}
    assert f"cluster.max_workers={config['max_workers']} " in text


def test_all_machines_of_a_list_are_started() -> None:
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load((TEMPLATES / "ray-up-machines.yaml").read_text()))
    (workers,) = [t for name, t in config["available_node_types"].items() if t.get("min_workers")]
    assert workers["min_workers"] == workers["max_workers"] == len(config["provider"]["worker_ips"]) == config["max_workers"]


def test_the_pods_of_a_rayjob_start_when_the_search_asks_for_them() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    text = (TEMPLATES / "rayjob.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "dato", "namespace": "default"}, "spec": spec})
    validate_config(config)
    assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0
    assert launched(config, 0) == {}
    assert launched(config, 2) == {"gpu": 2}
    assert launched(config, 99) == {"gpu": 4}
    assert "cluster.max_workers=4 " in text


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_rayjob_has_what_kuberay_needs() -> None:
    job = yaml.safe_load((TEMPLATES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    for spec in containers(job):
        (container,) = spec["containers"]
        assert container["image"]
        assert {m["name"] for m in container["volumeMounts"]} <= {v["name"] for v in spec["volumes"]}
        assert all("value" not in e or "@" not in e["value"] for e in container["env"]), "no credentials in the file"
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    assert containers(job)[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", ["rayjob.yaml", "ray-up-aws.yaml", "ray-up-machines.yaml", "slurm.sbatch"])
def test_the_commands_in_a_template_are_commands_that_compose(name: str) -> None:
    text = (TEMPLATES / name).read_text().replace("\n#", " ").replace("&&\n", "&& ")
    found = 0
    for part in text.replace("'", "\n").replace("&&", "\n").replace("&\n", "\n").splitlines():
        words = part.split()
        if words[:1] == ["dato"]:
            found += 1
            assert words[1] in COMMANDS
            keys = [w.replace('"$address"', "127.0.0.1:6379") for w in words[2:] if "=" in w]
            assert build(compose_config("search", keys)).raw["cluster"]["gpus"] == 1
    assert found >= 2


def test_templates_ship_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "launch.cluster" in settings["packages"]
    shipped = {p for pattern in settings["package-data"]["launch.cluster"] for p in TEMPLATES.glob(pattern)}
    assert {p.name for p in shipped} == {"ray-up-aws.yaml", "ray-up-machines.yaml", "rayjob.yaml", "slurm.sbatch"}


TOOLS = {
    # What SLURM would do, on this machine: a step runs where it is called, and every node is this one.
    "srun": 'while [[ "$1" == --* ]]; do shift; done; if [ "$1" = hostname ]; then echo "$NODE_IP"; else exec "$@"; fi',
    "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "$@" >>"$SCONTROL_LOG"; fi',
    "dato": 'exec "$PYTHON" "$DATO" "$@"',
}
DATO = """
import json, sys, ray
address = next(a for a in sys.argv if a.startswith("cluster.address=")).split("=", 1)[1]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
import time
end = time.monotonic() + 60
while sum(n["Alive"] for n in ray.nodes()) < 2 and time.monotonic() < end:
    time.sleep(0.2)
print(json.dumps({"argv": sys.argv[1:], "nodes": sum(n["Alive"] for n in ray.nodes())}), flush=True)
"""


def tools(folder: Path, **bodies: str) -> Path:
    """Commands for the front of the PATH: `TOOLS`, and shell scripts by name."""
    folder.mkdir()
    for name, body in {**TOOLS, **bodies}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def no_ray(tmp_path: Path, **variables: str) -> dict[str, str]:
    """Of a job whose Ray does not start, so that only what comes before is tried: no token, nothing in the home."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{tools(tmp_path / 'tools', ray='exit 1', python='exit 1')}:{os.environ['PATH']}"
    return {**known, "PATH": path, "HOME": str(tmp_path / "home"), "NODE_IP": "127.0.0.1", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node-[a-b]", **variables}


def sbatch(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([TEMPLATES / "slurm.sbatch"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_jobs_that_start_together_make_one_token_that_their_owner_alone_can_read(tmp_path: Path) -> None:
    environment = no_ray(tmp_path)
    token = tmp_path / "home" / ".ray" / "auth_token"
    said = [job.communicate(timeout=60) for job in [sbatch(environment) for _ in range(5)]]
    assert all("Ray head does not start" in err for _, err in said), said
    assert sum(str(token) in out for out, _ in said) == 1
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [p.name for p in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_is_there_is_kept_and_closed_to_others(tmp_path: Path) -> None:
    environment = no_ray(tmp_path, RAY_AUTH_TOKEN_PATH=str(tmp_path / "mine"))
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "mine").chmod(0o644)  # as Ray itself leaves it
    out, err = sbatch(environment).communicate(timeout=60)
    assert "Ray head does not start" in err
    assert "token" not in out
    assert (tmp_path / "mine").read_text() == "kept"
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    assert not (tmp_path / "home").exists()


def test_a_token_in_the_environment_needs_no_file(tmp_path: Path) -> None:
    _, err = sbatch(no_ray(tmp_path, RAY_AUTH_TOKEN="mine")).communicate(timeout=60)
    assert "Ray head does not start" in err
    assert not (tmp_path / "home").exists()


def test_an_empty_token_and_a_home_that_is_not_shared_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.touch()
    environment = no_ray(tmp_path, RAY_AUTH_TOKEN_PATH=str(file))
    job = sbatch(environment)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1
    assert all(part in err for part in (str(file), "empty", "remove it"))
    file.write_text("kept")
    (tmp_path / "tools" / "test").write_text("#!/usr/bin/env bash\nexit 1\n")  # what node-b says to `test -r`
    (tmp_path / "tools" / "test").chmod(0o755)
    job = sbatch(environment)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1
    assert all(part in err for part in ("node-b", str(file), "RAY_AUTH_TOKEN_PATH"))


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("ray-up-*.yaml")), ids=lambda p: p.name)
def test_every_node_that_ray_up_starts_has_the_same_token(path: Path) -> None:
    """Without it, `ray start` asks for a token on a node where an earlier run left one, and on no other."""
    config = yaml.safe_load(path.read_text())
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in config[key] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)


@pytest.mark.slow
def test_the_sbatch_script_starts_ray_runs_the_commands_and_ends_what_it_started(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", TEMPLATES / "slurm.sbatch"], check=False).returncode == 0
    (tmp_path / "dato.py").write_text(DATO)
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: it holds sockets
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "HOME": str(tmp_path / "home"),  # a newcomer's: no token
        "PATH": f"{tools(tmp_path / 'tools')}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": temporary,
        "PYTHON": sys.executable,
        "DATO": str(tmp_path / "dato.py"),
        "SCONTROL_LOG": str(tmp_path / "scontrol"),
        # Not 127.0.0.1, which Ray takes for the machine's own address and would not find the head at.
        "NODE_IP": ray.util.get_node_ip_address(),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "DATO_RAY_OPTIONS": "--num-cpus=1 --num-gpus=0 --object-store-memory=100000000 --dashboard-agent-listen-port=0",
    }
    done = subprocess.run([TEMPLATES / "slurm.sbatch", "model=embedded"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    shutil.rmtree(temporary, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"made a Ray token in {tmp_path / 'home' / '.ray' / 'auth_token'}" in done.stdout
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"argv"')]
    assert [s["argv"][0] for s in said] == ["doctor", "search"]
    assert all(s["nodes"] == 2 and s["argv"][-1] == "model=embedded" for s in said)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if temporary in " ".join(p.info["cmdline"] or [])]
    assert left == [], "the script leaves processes behind"
