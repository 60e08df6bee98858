"""The image that launch/cluster/Dockerfile makes, as far as it can be told without Docker: by a linter, by what it copies, and by running its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "cluster" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
LINES = [line for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines() if line.strip()]


def instructions(name: str) -> list[str]:
    return [line.split(None, 1)[1] for line in LINES if line.split()[0] == name]


def test_a_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this platform")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_pinned_the_user_is_not_root_and_no_secret_is_built_in() -> None:
    defaults = dict(a.split("=", 1) for a in instructions("ARG") if "=" in a)
    for base in instructions("FROM"):
        image = re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], base.split()[0])
        assert re.search(r":\d+\.\d+\.\d+-[\w-]+$", image), f"{image} is not pinned"
    assert LINES[0].startswith("ARG PYTHON="), "what FROM uses is declared before it"
    assert instructions("USER") == ["1000"]
    assert instructions("ENTRYPOINT") == ['["dato"]']
    assert not re.search(r"(token|password|secret)\s*=", TEXT.replace("HF_TOKEN", ""), re.I)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Docker would send and the Dockerfile copies, in an empty folder."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sent = {p for p in exclude_paths(str(ROOT), patterns, dockerfile="launch/cluster/Dockerfile") if (ROOT / p).is_file()}
    folder = tmp_path_factory.mktemp("image") / "source"
    for copied in instructions("COPY"):
        *sources, target = copied.split()
        if sources[0].startswith("--from=build"):
            continue
        for source in sources:
            found = [p for p in sent if p == source or p.startswith(source)]
            assert found, f"{source} is not in the context"
            for path in found:
                to = folder / target / (path.removeprefix(source) if source.endswith("/") else path)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, to)
    return folder


def test_the_image_is_made_from_the_package_alone(context: Path) -> None:
    files = {str(p.relative_to(context)) for p in context.rglob("*") if p.is_file()}
    assert {f.split("/")[0] for f in files} == {"LICENSE", "README.md", "analysis", "conf", "constraints.txt", "dato", "launch", "pyproject.toml", "search"}
    assert not [f for f in files if "__pycache__" in f or "/." in f or f.startswith(("analysis/results", "."))]


@pytest.mark.slow
def test_what_is_copied_makes_the_same_wheel_as_the_repository(context: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(ROOT, whole, ignore=shutil.ignore_patterns(".*", "outputs", "mlruns", "build", "*.egg-info", "__pycache__"))
    listed = []
    for source in (context, whole):
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path / source.name, shutil.copytree(source, tmp_path / f"{source.name}-copy")]
        subprocess.run(command, check=True, timeout=120)
        (wheel,) = (tmp_path / source.name).glob("*.whl")
        listed.append(sorted(zipfile.ZipFile(wheel).namelist()))
    assert listed[0] == listed[1]
    assert {"conf/search.yaml", "search/embedded/pipeline/model_index.json", "launch/__main__.py"} <= set(listed[0])


@pytest.mark.parametrize(("device", "index"), [("cuda", "https://pypi.org/simple"), ("cpu", "https://download.pytorch.org/whl/cpu"), ("tpu", None)])
def test_the_commands_install_what_the_argument_says_from_what_was_copied(device: str, index: str | None, context: Path, tmp_path: Path) -> None:
    """The first RUN in the copied folder, with stand-ins for Python and pip that write down what they are asked."""
    install, system = instructions("RUN")
    assert all(subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0 for command in (install, system))
    made = tmp_path / "opt" / "dato" / "bin"
    made.mkdir(parents=True)
    for tool in (tmp_path / "python", made / "pip"):
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "{tool.name}" "$@" >>"{tmp_path / "log"}"\n')
        tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVICE": device}
    done = subprocess.run(["sh", "-c", install.replace("/opt/dato", str(tmp_path / "opt" / "dato"))], env=environment, cwd=context, capture_output=True, text=True, check=False)
    if index is None:
        assert done.returncode == 2
        assert "DEVICE is 'tpu'; give --build-arg DEVICE=cuda or DEVICE=cpu" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "log").read_text().split("\n")
    assert words[words.index("--constraint") + 1] == "constraints.txt" and (context / "constraints.txt").is_file()
    assert words[words.index("--extra-index-url") + 1] == index
    assert {".[search]", "ray[default]"} <= set(words)


def test_the_rayjob_names_the_image_and_how_it_is_made() -> None:
    text = (DOCKERFILE.parent / "rayjob.yaml").read_text()
    cluster = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    images = {g["template"]["spec"]["containers"][0]["image"] for g in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]}
    (image,) = images
    build = f"docker build -f launch/cluster/Dockerfile -t {image} ."
    assert build in text and build in TEXT
    assert f"docker push {image}" in text and f"docker push {image}" in TEXT
