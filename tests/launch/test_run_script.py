"""launch/run: which Python it takes and what it says of the others, when it installs again, and what its tests can see of the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEM = ("bash", "cat", "cksum", "dirname", "env", "mkdir", "mktemp", "readlink", "rm")
"""What the script calls beside Python."""
INTERPRETER = """#!{bash}
if [ "$1" = --version ]; then echo "Python {version}"; exit; fi
exec {python} -c 'import sys, types
code, *sys.argv = sys.argv[1:]
major, minor, micro = (int(n) for n in "{version}".split("."))
sys.version_info = (major, minor, micro, "final", 0)
import platform
platform.python_version = lambda: "{version}"
if "{missing}":
    sys.modules["{missing}"] = None
exec(code)' "$2"
"""
"""Our own Python, which says that it is another version, and lacks a module."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a fresh clone has for the script, without an environment."""
    folder = tmp_path / "clone"
    (folder / "launch").mkdir(parents=True)
    for name in ("launch/run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH without any Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in SYSTEM:
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


@pytest.fixture
def add(path: Path) -> Callable[..., Path]:
    """Puts a Python of another version there."""

    def make(name: str, version: str, missing: str = "") -> Path:
        text = INTERPRETER.format(bash=shutil.which("bash"), python=sys.executable, version=version, missing=missing)
        (path / name).write_text(text)
        (path / name).chmod(0o755)
        return path / name

    return make


def run(clone: Path, path: Path | str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "launch" / "run", *words], env={"PATH": str(path), **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False
    )


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(part in done.stderr for part in parts), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_bash_accepts_it() -> None:
    for script in ("launch/run", ".ci/run"):
        assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


def test_it_takes_the_versions_that_the_package_takes() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11,<3.15"
    assert "Python 3.11 to 3.14" in (ROOT / "README.md").read_text()


def test_without_python_it_says_which_it_needs(clone: Path, path: Path) -> None:
    refused(run(clone, path, "search"), "no Python 3.11 to 3.14", "PYTHON=/path/to/python")


def test_each_python_found_is_named_with_what_is_wrong(clone: Path, path: Path, add: Callable[..., Path]) -> None:
    add("python3", "3.10.12")
    add("python3.13", "3.13.5", missing="ensurepip")
    (path / "python3.12").write_text("#!/nowhere/at/all\n")
    (path / "python3.12").chmod(0o755)
    refused(
        run(clone, path, "search"),
        "no Python 3.11 to 3.14", "python3 is Python 3.10.12", "python3.13 is Python 3.13.5 without venv: apt-get install python3-venv", "python3.12 does not run", "PYTHON=",
    )  # fmt: skip
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("version", ["2.7.18", "3.10.12", "3.15.0"])
def test_a_python_named_that_will_not_do_is_refused(clone: Path, path: Path, add: Callable[..., Path], version: str) -> None:
    add("python3", "3.13.5")  # would do, and was not asked for
    named = add("mine", version)
    refused(run(clone, path, "search", PYTHON=str(named)), str(named), f"is Python {version}", "3.11 to 3.14", "unset PYTHON")


def test_a_python_named_that_is_none_is_refused(clone: Path, path: Path) -> None:
    refused(run(clone, path, "search", PYTHON="/nowhere/python3"), "/nowhere/python3", "does not run", "3.11 to 3.14")
    refused(run(clone, path, "search", PYTHON="/a folder/python3"), "/a folder/python3, which does not run", "3.11 to 3.14")


@pytest.mark.parametrize("way", ["as it is", "link", "link to a link", "relative link", "linked folder", "linked clone", "name from its folder", "folder with a dash"])
def test_it_finds_its_own_clone_however_it_is_called(clone: Path, path: Path, tmp_path: Path, way: str) -> None:
    """And with a CDPATH in which the same names lead elsewhere."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").write_text(f'#!{shutil.which("bash")}\nif [ "$1" = -c ]; then exit; fi\necho "ran $0 $*"\n')
    (clone / ".venv" / "bin" / "python").chmod(0o755)
    stamp = subprocess.run("cat pyproject.toml constraints.txt | cksum", shell=True, cwd=clone, capture_output=True, text=True, check=True).stdout.strip()
    (clone / ".venv" / "stamp").write_text(f"{stamp} {clone.resolve()}\n")
    other, called, here = tmp_path / "other", clone / "launch" / "run", clone
    (other / "launch" / "launch").mkdir(parents=True)
    if way == "link":
        (called := other / "dato-run").symlink_to(clone / "launch" / "run")
    elif way == "link to a link":
        (other / "first").symlink_to(clone / "launch" / "run")
        (called := other / "second").symlink_to("first")
    elif way == "relative link":
        (called := other / "dato-run").symlink_to("../clone/launch/run")
    elif way == "linked folder":
        (other / "there").symlink_to(clone / "launch")
        called = other / "there" / "run"
    elif way == "linked clone":
        (tmp_path / "again").symlink_to(clone)
        called = tmp_path / "again" / "launch" / "run"
    elif way == "name from its folder":
        called, here = Path("run"), clone / "launch"
    elif way == "folder with a dash":
        here = clone.rename(tmp_path / "-clone").parent
        (here / "-clone" / ".venv" / "stamp").write_text(f"{stamp} {(here / '-clone').resolve()}\n")
        clone, called = here / "-clone", Path("-clone/launch/run")
    words = [shutil.which("bash"), "--", str(called), "strategies"] if way != "as it is" else ["bash", "launch/run", "strategies"]
    done = subprocess.run(words, cwd=here, env={"PATH": str(path), "HOME": str(tmp_path), "CDPATH": f".:{other}:/tmp"}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ran {clone.resolve()}/.venv/bin/python -m launch strategies\n"


@pytest.mark.parametrize("version", ["3.11.0", "3.12.1", "3.13.5", "3.14.2"])
def test_it_installs_with_each_supported_version(clone: Path, path: Path, add: Callable[..., Path], version: str) -> None:
    """As far as a Python goes that can make no environment."""
    add("python3", version)
    add("python3.9", "3.9.2")
    done = run(clone, path, "search")
    assert f"with Python {version}" in done.stdout, done.stderr
    assert done.returncode != 0
    assert not (clone / ".venv" / "stamp").exists()


PROBE = """
import json
import os
from pathlib import Path


def test_probe():
    home = Path.home()
    here = [str(p.relative_to(home)) for p in home.rglob("*")]
    Path({out!r}).write_text(json.dumps({{"variables": dict(os.environ), "home": str(home), "here": here, "temporary": os.listdir(os.environ["TMPDIR"])}}))
"""
PROJECT = """[tool.mypy]
files = ["test_probe.py"]
[tool.pytest.ini_options]
addopts = "-p no:cacheprovider"
"""


@pytest.fixture
def installed(clone: Path) -> Path:
    """The clone with this environment, and one test."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "ruff", "mypy"):
        target = Path(sys.executable).parent / name
        (clone / ".venv" / "bin" / name).write_text(f'#!/usr/bin/env bash\nexec "{target}" "$@"\n')
        (clone / ".venv" / "bin" / name).chmod(0o755)
    (clone / "pyproject.toml").write_text(PROJECT)
    text = subprocess.run("cat pyproject.toml constraints.txt | cksum", shell=True, cwd=clone, capture_output=True, text=True, check=True).stdout.strip()
    (clone / ".venv" / "stamp").write_text(f"{text} {clone}\n")
    return clone


LEFT_OVER = {
    "RAY_ADDRESS": "192.0.2.1:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "old", "RAY_TMPDIR": "/nowhere", "MLFLOW_TRACKING_URI": "http://192.0.2.1", "HF_HOME": "/nowhere",
    "HF_HUB_OFFLINE": "1", "HUGGING_FACE_HUB_TOKEN": "old", "TRANSFORMERS_CACHE": "/nowhere", "DIFFUSERS_VERBOSITY": "debug", "TORCH_HOME": "/nowhere", "TORCH_LOGS": "all",
    "TORCHINDUCTOR_CACHE_DIR": "/nowhere", "XDG_CACHE_HOME": "/nowhere", "XDG_CONFIG_HOME": "/nowhere", "HYDRA_FULL_ERROR": "1", "OPTUNA_STORAGE": "sqlite:///old.db",
    "DATO_CACHE": "/nowhere", "DATO_RAY_OPTIONS": "--old", "SLURM_JOB_ID": "7", "GIT_DIR": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONWARNINGS": "ignore", "PYTHONOPTIMIZE": "2",
    "PYTEST_ADDOPTS": "--collect-only", "PIP_INDEX_URL": "https://192.0.2.1", "http_proxy": "http://192.0.2.1:3128", "COLUMNS": "40", "SSL_CERT_FILE": "/nowhere", "PGHOST": "192.0.2.1",
    "MPLBACKEND": "QtAgg", "TMPDIR": "/nowhere/" + "long" * 40, "LC_ALL": "xx_YY.ISO-8859-1",
}  # fmt: skip


def test_the_suite_sees_nothing_that_the_machine_has_left_over(installed: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "seen.json", tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("old")
    (installed / "test_probe.py").write_text(PROBE.format(out=str(out)))
    done = run(installed, os.environ["PATH"], "test", "test_probe.py", HOME=str(home), OMP_NUM_THREADS="1", CI="true", **LEFT_OVER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    seen = json.loads(out.read_text())
    variables = seen["variables"]
    assert (seen["here"], seen["home"]) == ([], variables["HOME"])
    assert Path(variables["HOME"]).parent == Path(variables["TMPDIR"]).parent
    assert len(variables["TMPDIR"]) < 30, "room for Ray's sockets, whose paths may have 107 characters"
    assert (variables["OMP_NUM_THREADS"], variables["CI"]) == ("1", "true")
    assert not {k for k, v in LEFT_OVER.items() if variables.get(k) == v}
    assert {k for k in variables if k.startswith(("RAY_", "MLFLOW_", "HF_"))} == {"RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"}
    assert not Path(variables["HOME"]).parent.exists(), "removed at the end"
    assert [str(p.relative_to(home)) for p in home.rglob("*")] == [".ray", ".ray/auth_token"]


def test_a_failing_test_fails_the_suite_and_leaves_nothing(installed: Path, tmp_path: Path) -> None:
    (installed / "test_probe.py").write_text(PROBE.format(out=str(tmp_path / "seen.json")) + "    assert not 'wrong'\n")
    done = run(installed, os.environ["PATH"], "test", "test_probe.py")
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert not Path(json.loads((tmp_path / "seen.json").read_text())["home"]).parent.exists()


@pytest.mark.parametrize("what", ["moved", "without its Python"])
def test_an_environment_that_was_moved_or_lost_its_python_is_made_again(installed: Path, path: Path, add: Callable[..., Path], what: str) -> None:
    add("python3", "3.13.5")
    if what == "moved":
        installed = installed.rename(installed.with_name("moved"))
    else:
        (installed / ".venv" / "bin" / "python").unlink()
    assert "installing into" in run(installed, path, "search").stdout
