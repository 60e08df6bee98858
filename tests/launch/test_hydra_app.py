"""What Hydra's users do works in every command of a configuration, or says what to do instead."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from launch.__main__ import UNDER_HYDRA, main
from launch.config import CONF, ConfigError, compose_config
from launch.hydra_app import described, run_with_hydra
from launch.schema import SCHEMAS, keys
from search.evaluate.model_spec import ModelSpec
from search.fields import without_later

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    argv, root = list(sys.argv), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level  # Hydra's --help and --info log to this test's stdout
    assert sys.argv == argv
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("command", UNDER_HYDRA)
def test_every_command_shows_its_help_and_its_configuration(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "search" if command in ("search", "doctor") else "evaluate"
    words = {"ablate": ["table=3"], "transfer": ["targets=[embedded]"]}.get(command, [])
    assert main([command, *words, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"dato {command} [key=value ...]" in said
    assert all(f"  {key}=" in said for key in keys(name))
    assert "--multirun" in said
    assert main([command, *words, "--cfg", "job", "model.steps=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    shown["model"] = without_later(ModelSpec, shown["model"])
    assert shown == {**compose_config(name, ["model.steps=7"]), **{k: v for k, v in shown.items() if "${" in str(v)}}, "what is not resolved is shown as it is written"
    assert main([command, *words, "--info", "defaults"]) == 0
    assert "schema/" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def run(*words: str, name: str = "search") -> list[dict[str, Any]]:
    """The configurations that a command is run with."""
    found: list[dict[str, Any]] = []

    def task(raw: dict[str, Any]) -> int:
        found.append(raw)
        return 0

    assert run_with_hydra("search", name, words, task) == 0
    return found


def test_a_plain_run_leaves_nothing_behind(tmp_path: Path) -> None:
    (raw,) = run("seed=3", "mlflow.uri=фото")
    assert (raw["seed"], raw["mlflow"]["uri"]) == (3, "фото")
    assert list(tmp_path.iterdir()) == []


def test_several_runs_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("--multirun", "seed=0,1,2", "model=embedded,sd15", "data=digits", "protocol.batch=5")
    assert [(r["seed"], r["model"]["name"]) for r in found] == [(s, m) for s in (0, 1, 2) for m in ("embedded", "sd15")]
    assert {r["protocol"]["batch"] for r in found} == {5}
    assert "run 5: seed=2 model=sd15" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]
    with pytest.raises(ConfigError, match=r"search\.population is 'a'; give an integer of at least 4"):
        run("--multirun", "seed=1,x", "search.population=a,4")


def test_one_of_several_runs_that_fails_is_said() -> None:
    done: list[int] = []

    def task(raw: dict[str, Any]) -> int:
        done.append(raw["seed"])
        return raw["seed"] % 2

    with pytest.raises(RuntimeError, match="exit code 1"):
        run_with_hydra("search", "search", ["-m", "seed=0,1,2"], task)
    assert done == [0, 1, 2], "the others run"


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [search, _self_]\nseed: 11\nsearch: {population: 12}\n")
    (own / "model" / "ours.yaml").write_text("name: ours\npath: /models/ours\nsteps: 30\n")
    (raw,) = run("--config-dir", str(own), "--config-name", "mine", "model=ours", "search.generations=2")
    assert (raw["seed"], raw["search"]["population"], raw["search"]["generations"], raw["model"]["name"]) == (11, 12, 2, "ours")
    (raw,) = run(f"--config-dir={own}", "model=ours")
    assert (raw["seed"], raw["model"]["steps"]) == (0, 30)
    (own / "typo.yaml").write_text("defaults: [search, _self_]\nserach: {population: 12}\n")
    with pytest.raises(ConfigError, match=r"serach is no key here.*search"):
        run("-cd", str(own), "-cn", "typo")
    (own / "typo.yaml").write_text("defaults: [search, _self_]\nsearch: {popluation: 12}\n")
    with pytest.raises(ConfigError, match=r"search\.popluation is no key here.*search\.population"):
        run("-cd", str(own), "-cn", "typo")
    (own / "typo.yaml").write_text("defaults: [search, _self_]\nsearch: {population: many}\n")
    with pytest.raises(ConfigError, match=r"search\.population is 'many'; give an integer of at least 4"):
        run("-cd", str(own), "-cn", "typo")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--config-dir", "nowhere"], ["--config-dir is 'nowhere'", "no folder"]),
        (["--config-name", "nobody"], ["nobody"]),
        (["--experimental-rerun", "x"], ["'--experimental-rerun' is not a flag", "key=value"]),
        (["-x"], ["'-x' is not a flag of dato search", "--multirun"]),
        (["hydra.run.dir=x"], ["sets Hydra itself", "output=<folder>"]),
        (["seed=1,2"], ["seed=1,2 names several values", "--multirun seed=1,2"]),
        (["--multirun", "sed=1,2"], ["sed is no key here", "seed"]),
        (["--multirun", "model=embedded,sd99"], ["sd99"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_message(words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dato search: ")
    assert all(n in said for n in named), said
    assert "Traceback" not in said


def test_a_shell_completes_keys_groups_and_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def completed(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        assert main(["-sc", "query=bash"]) == 0
        return capsys.readouterr().out.split()

    assert main(["-sc", "install=bash"]) == 0
    assert "hydra_bash_completion" in capsys.readouterr().out
    assert set(UNDER_HYDRA) < set(completed("dato se"))
    assert "model=sd15" in completed("dato search model=")
    assert "search.population=" in completed("dato search search.pop")
    assert "evaluation.held_out=" in completed("dato evaluate evaluation.h")


def test_the_readme_lists_every_key_with_its_default() -> None:
    page = (CONF / "README.md").read_text(encoding="utf-8")
    rows = {name: [f"| `{key}` | `{value}` | {text.replace('|', chr(92) + '|')} |" for key, value, text in described(name)] for name in SCHEMAS}
    known = {key for key, _, _ in described("search")}
    wanted = [*rows["search"], *(row for row, (key, _, _) in zip(rows["evaluate"], described("evaluate"), strict=True) if key not in known)]
    missing = [row for row in wanted if row not in page]
    assert not missing, "conf/README.md lacks these rows:\n" + "\n".join(missing)
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert listed <= {key for name in SCHEMAS for key in keys(name)}, "and lists no key that there is not"


EARLY = "import signal, sys; sys.argv = [{name!r}]; import launch; signal.raise_signal(signal.{signal})"


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_ctrl_c_in_the_first_moment_is_no_traceback(number: str) -> None:
    def end(name: str) -> subprocess.CompletedProcess[str]:
        code = EARLY.format(name=name, signal=number)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=default_signals, check=False)

    done = end("/usr/bin/dato")
    assert (done.returncode, done.stderr) == (128 + getattr(signal, number), "stopped\n")
    assert end("other.py").returncode != done.returncode, "whoever imports the package is left alone"


def default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_command_sees_the_flags_of_hydra_only_where_there_is_a_configuration(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--help"]) == 0
    assert "usage: dato" in capsys.readouterr().out
    assert main(["status", f"folder={make_search(tmp_path / 'toy')}", "--cfg=job"]) == 2
    assert "it takes folder=" in capsys.readouterr().err
