"""What workers elsewhere are told of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from search.run.hub_environment import hub_environment

ROOT = Path(__file__).parents[3]


def test_settings_are_sent_and_secrets_are_not() -> None:
    given = {"HF_ENDPOINT": "https://mirror", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret", "HUGGING_FACE_HUB_TOKEN": "secret", "PATH": "/bin", "HF_HOME": ""}
    assert hub_environment(given) == {"HF_ENDPOINT": "https://mirror", "HF_HUB_OFFLINE": "1"}
    job = json.dumps({"runtime_env": {"env_vars": {"HF_ENDPOINT": "https://job"}}, "metadata": {}})
    assert hub_environment({**given, "RAY_JOB_CONFIG_JSON_ENV_VAR": job}) == {"HF_HUB_OFFLINE": "1"}
    for address in ("https://me:secret@mirror", "https://secret@mirror"):
        with pytest.raises(ValueError, match="HF_ENDPOINT holds a user's name or password") as refused:
            hub_environment({"HF_ENDPOINT": address})
        assert "secret" not in str(refused.value)


DRIVER = """
import json, sys
import ray
from search.run.ray_cluster import connect

connect(sys.argv[1])

@ray.remote(num_cpus=1)
def seen():
    import os
    return {k: os.environ.get(k) for k in ("HF_ENDPOINT", "HF_HOME", "HF_TOKEN")}

print(json.dumps(ray.get(seen.remote(), timeout=60)))
"""


@pytest.mark.slow
def test_workers_of_a_running_cluster_have_the_drivers_hub_and_not_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("HF_")]:
        monkeypatch.delenv(name)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000})
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_TOKEN": "secret"}
        done = subprocess.run([sys.executable, "-c", DRIVER, cluster.address], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_TOKEN": None}
