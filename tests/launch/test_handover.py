"""``dato export`` and ``dato import``, as the team that hands over and the team that takes it run them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from dato.strategy import Strategy
from launch.__main__ import main
from search.ledger import read_ledger
from search.publish.strategies import command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def search(make_search: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_search(tmp_path / "toy")


def test_export_to_a_folder_and_import_give_the_same_strategy(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"folder={search}"]) == 0
    winner = read_ledger(search / "ledger.jsonl").winners["fastest"].candidate.strategy
    card = search / "export" / "fastest"
    assert capsys.readouterr().out.split() == [str(search / "export" / a) for a in ("quality", "balanced", "fastest")]
    for source in (card, card / "card.md", card / "card.json", card / "strategy.json"):
        assert main(["import", f"source={source}", "name=mine", "to=folder"]) == 0
    assert Strategy.load("mine") == winner
    assert Path("mine/card.md").read_bytes() == (card / "card.md").read_bytes()


def test_export_to_a_file(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"folder={search}", "to=file", "alias=fastest", "target=s.json"]) == 0
    provenance = Strategy.load("s.json").provenance
    assert provenance["quality"]["difference_interval"][0] < provenance["quality"]["difference"] < provenance["quality"]["difference_interval"][1]
    assert provenance["latency"]["speedup_range"][0] < provenance["latency"]["speedup"] < provenance["latency"]["speedup_range"][1]
    assert provenance["reproduce"].startswith("dato search \\\n") and "++model.name=embedded" in provenance["reproduce"]
    before = Path("s.json").read_bytes()
    assert main(["export", f"folder={search}", "to=file", "alias=quality", "target=s.json"]) == 2
    said = capsys.readouterr().err
    assert "s.json stays as it is" in said and "the winner fastest, not quality" in said and "replace=true" in said
    assert Path("s.json").read_bytes() == before


def test_the_command_on_the_card_makes_the_same_search(search: Path) -> None:
    from launch.config import build, compose_config

    raw = compose_config("search", ["seed=5", "data=folder", r"data.prompts='a b/it\'s.txt'", "data.images='photos,1'", "space.ratios=[0.3]", "model.steps=7"])
    words = subprocess.run(["bash", "-c", f"dato() {{ printf '%s\\n' \"$@\"; }}; {command(raw)}"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[0] == "search"
    assert build(compose_config("search", words[1:])).search_id == build(raw).search_id


@pytest.mark.slow
def test_export_and_import_through_a_registry(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"uri=sqlite:///{Path.cwd() / 'mlflow.db'}"
    assert main(["export", f"folder={search}", "to=registry", uri]) == 0
    assert "models:/dato-embedded@fastest  (version 3)" in capsys.readouterr().out
    strategy = search / "export.json"
    assert main(["export", f"folder={search}", "to=file", "alias=fastest", f"target={strategy}"]) == 0
    assert main(["import", f"source={strategy}", "to=registry", "name=theirs", uri]) == 0
    assert main(["import", "source=paper-b1", "to=registry", "name=theirs", uri]) == 0
    out = capsys.readouterr().out
    assert "models:/theirs@fastest  (version 1)" in out
    assert "models:/theirs/2  (no alias was moved: " in out


@pytest.mark.parametrize("uri", ["mlr", "file:///{folder}/mlr", "uc:x", "sqlite://", "sqlite:///{folder}/s.json", "sqlite:///{folder}", "postgresql+psycopg://u:very-secret@127.0.0.1:{port}/x"])
@pytest.mark.parametrize("given", ["uri", "MLFLOW_TRACKING_URI"])
def test_an_mlflow_that_keeps_nothing_is_one_message(
    search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str, given: str
) -> None:
    before = mlflow.get_tracking_uri()
    (tmp_path / "s.json").write_text("{}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = uri.format(folder=tmp_path, port=closed.getsockname()[1])
    there, words = sorted(tmp_path.rglob("*")), [f"uri={uri}"] if given == "uri" else []
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri if given != "uri" else "http://nowhere.invalid")
    try:
        for command in (["import", "source=paper-b1", "name=imp", "to=registry"], ["export", f"folder={search}", "to=registry"], ["sync", f"folder={search}"]):
            assert main([*command, *words]) in (1, 2), command
            shown = capsys.readouterr()
            assert shown.err.startswith(f"dato {command[0]}: ")
            assert "very-secret" not in shown.err
            way_out = "set the environment variable MLFLOW_TRACKING_URI" if command[0] == "sync" and "secret" in "".join(words) else "give a server (http://host:5000) or a database"
            assert way_out in shown.err
    finally:
        mlflow.set_tracking_uri(before)
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "needs folder=..."),
        (["export", "folder=/nowhere"], "holds no ledger.jsonl"),
        (["export", "folder={search}", "to=usb"], "to is 'usb'; allowed are folder, file, registry"),
        (["export", "folder={search}", "alias=best"], "alias is 'best'; search embedded-digits-0000000000 has quality, balanced, fastest"),
        (["export", "folder={search}", "to=file"], "to=file takes one winner"),
        (["export", "folder={search}", "replace=maybe"], "replace is 'maybe'; allowed are true and false"),
        (["export", "folder={search}", "folder={search}"], "was given folder twice"),
        (["export", "folder={running}"], "is not finished (17 strategies measured), so there is nothing validated to export"),
        (["export", "folder={empty}"], "is not finished (0 strategies measured)"),
        (["export", "folder={search}", "target=/proc/nothing"], "cannot write into"),
        (["import", "source=nothing.json", "name=x"], "cannot read a strategy from 'nothing.json'"),
        (["import", "source=paper-b1"], "needs name=..."),
        (["import", "source=paper-b1", "name=a\0b"], "name is 'a\\x00b'; give a text without NUL characters"),
        (["import", "source=http://127.0.0.1/s.json", "name=x"], "over https only"),
        (["import", "source=paper-b1", "name=x", "to=registry", "alias=a b"], "alias is 'a b'"),
    ],
)
def test_bad_input_is_one_message(search: Path, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    folders = {"search": search, "running": make_search(tmp_path / "running", "running", population=9), "empty": make_search(tmp_path / "empty", "empty")}
    before = sorted(tmp_path.rglob("*"))
    assert main([a.format(**folders) for a in arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with our wheel and nothing but what its base dependencies need, by their own metadata."""
    folder = tmp_path_factory.mktemp("light")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "outputs", "mlruns", "build", "*.egg-info", "mlflow.db"))
    quiet = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*quiet, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    subprocess.run([*quiet, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    (metadata,) = site.glob("dato_search-*.dist-info/METADATA")
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata.read_text(), re.MULTILINE)
    for name in _closure(needed):
        for file in {str(f).split("/")[0] for f in importlib.metadata.files(name) or [] if not str(f).startswith("..")} - {"__pycache__"}:
            target = Path(str(importlib.metadata.distribution(name).locate_file(file)))
            if target.exists() and not (site / file).exists():
                (site / file).symlink_to(target)
    return folder / "venv" / "bin" / "python"


def _closure(names: list[str]) -> set[str]:
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        key = name.lower().replace("_", "-")
        if key in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(key)
        todo += [re.match(r"[\w.-]+", r).group() for r in requires if "extra ==" not in r]  # type: ignore[union-attr]
    return found


def run_light(python: Path, code: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MLFLOW"))}
    done = subprocess.run([python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_other_team_needs_only_the_light_install(light: Path, search: Path, tmp_path: Path) -> None:
    assert main(["export", f"folder={search}"]) == 0
    code = """
import importlib.util, json, sys
for heavy in ("ray", "pymoo", "mlflow", "hydra", "omegaconf", "plotly", "torchmetrics", "sklearn", "torchvision"):
    assert importlib.util.find_spec(heavy) is None, heavy
import dato, torch
from diffusers import StableDiffusionPipeline
from search.evaluate.pipelines import EMBEDDED
pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED)
pipe.set_progress_bar_config(disable=True)
strategy = dato.Strategy.load("toy/export/fastest/card.md")
with dato.accelerate(pipe, strategy):
    image = pipe("a handwritten seven", num_inference_steps=len(strategy)).images[0]
    assert dato.status(pipe).finished
strategy.save("back.json")
from launch.__main__ import main
assert main(["import", "source=back.json", "to=folder", "name=kept"]) == 0
assert main(["search"]) == 2
try:
    dato.Strategy.load("models:/dato-embedded@fastest")
except dato.StrategyError as error:
    said = str(error)
print(json.dumps({"size": image.size, "digest": strategy.digest, "from": dato.__file__, "said": said}))
"""
    told = json.loads(run_light(light, code, tmp_path).splitlines()[-1])
    winner = read_ledger(search / "ledger.jsonl").winners["fastest"].candidate.strategy
    assert told["size"] == [40, 40]
    assert told["digest"] == winner.digest
    assert "light" in told["from"]
    assert "needs MLflow: pip install mlflow, or ask for its strategy.json" in told["said"]
    assert (tmp_path / "kept" / "strategy.json").read_bytes() == (search / "export" / "fastest" / "strategy.json").read_bytes()


def test_an_export_to_a_folder_leaves_what_is_better_and_writes_the_rest(search: Path, make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_search(tmp_path / "other", seed=3)
    assert main(["export", f"folder={search}", f"target={tmp_path / 'shared'}"]) == 0
    before = {a: (tmp_path / "shared" / a / "strategy.json").read_bytes() for a in ("quality", "balanced", "fastest")}
    code = main(["export", f"folder={other}", f"target={tmp_path / 'shared'}"])
    said = capsys.readouterr()
    stayed = [a for a, content in before.items() if (tmp_path / "shared" / a / "strategy.json").read_bytes() == content]
    assert code == (2 if stayed else 0)
    for alias in before:
        assert (f"{alias}/strategy.json stays as it is" in said.err) == (alias in stayed)
    assert main(["export", f"folder={other}", f"target={tmp_path / 'shared'}", "replace=true"]) == 0
    assert all((tmp_path / "shared" / a / "strategy.json").read_bytes() != content for a, content in before.items())
