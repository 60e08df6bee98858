"""The commands of launch/cluster/README.md, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from search.ledger import read_ledger

README = Path(__file__).parents[2] / "launch" / "cluster" / "README.md"


def block() -> str:
    """The first one: from one node to two."""
    found = re.search(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_one_node_becomes_two_and_one_again(tmp_path: Path) -> None:
    port = next(p for p in iter(free_port, None) if not 10002 <= p <= 19999)  # which are Ray's workers'
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: it holds sockets
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "HOME": str(tmp_path / "home"),
        "RAY_TMPDIR": temporary,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    assert "6379" in block()
    shell = subprocess.Popen(
        ["bash", "-ec", block().replace("6379", str(port))], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, _ = shell.communicate(timeout=500)
    finally:
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("RAY_TMPDIR") == temporary:
                process.kill()
        shutil.rmtree(temporary, ignore_errors=True)
    print(said)
    assert shell.returncode == 0, said
    printed = [line for line in said.splitlines() if "node" in line]
    assert any(re.fullmatch(r"node \S+ at [\d.]+ has room: 1 worker more, 2 now", line) for line in printed), said
    assert any(re.fullmatch(r"node \S+ at [\d.]+ is gone: a worker less, 1 now", line) for line in printed), said
    assert "The same command continues" in said.splitlines()[-1]
    (ledger,) = tmp_path.glob("two-nodes/*/ledger.jsonl")
    record = read_ledger(ledger)
    assert record.results
    assert all(m.ok for m in record.results.values()), "who goes takes no candidate along"
