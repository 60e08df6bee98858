"""Models from a hub: a real server on this machine, real processes, a cache of their own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from search.evaluate.hub import HubId, UnreachableError, explained, fetched
from search.evaluate.model_files import EMBEDDED, weight_files_of
from tests.search.evaluate.hub_server import COMMIT, Hub, serving

ROOT = Path(__file__).parents[3]
LOAD = """
import json, multiprocessing, os, sys
from search.evaluate.hub import HubId
from search.evaluate.model_files import check_model, pins
from search.evaluate.pipelines import load_pipeline
from search.evaluate.model_spec import ModelSpec

def load(number, given, said):
    pin = given.pop("pin", False)
    try:
        spec = ModelSpec(name="x", device="cpu", **given)
        check_model(spec)
        if pin:
            answer = pins(spec)
        else:
            pipe = load_pipeline(spec)
            answer = {"bias": float(pipe.vae.decoder.conv_out.bias[0]), "checker": pipe.safety_checker is not None}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    said.put((number, answer))

fork = multiprocessing.get_context("fork")  # what is imported is imported once
said = fork.Queue()
for together in json.loads(sys.argv[1]):
    workers = [fork.Process(target=load, args=(n, g, said)) for n, g in together]
    [w.start() for w in workers]
    for _ in workers:
        print(json.dumps(said.get()), flush=True)
    [w.join() for w in workers]
"""


def loaded(home: Path, together: list[list[dict[str, Any]]], **variables: str) -> list[dict[str, Any]]:
    """What processes say that load models: those of one list at the same time, the lists one after the other."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = {**known, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **variables}
    numbers = iter(range(1000))
    words = json.dumps([[(next(numbers), given) for given in group] for group in together])
    done = subprocess.run([sys.executable, "-c", LOAD, words], env=environment, cwd=home, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [answer for _, answer in sorted(json.loads(line) for line in done.stdout.splitlines())]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The embedded pipeline with half-precision files and pickles beside it and a checker that nobody needs; a VAE alone; a gated model."""
    whole = tmp_path_factory.mktemp("hub") / "whole"
    shutil.copytree(EMBEDDED, whole)
    index = json.loads((whole / "model_index.json").read_text())
    (whole / "model_index.json").write_text(json.dumps({**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}))
    (whole / "safety_checker").mkdir()
    (whole / "safety_checker" / "config.json").write_text("{}")
    for file in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin", "whole.safetensors", "picture.png"):
        (whole / file).write_bytes(b"not to be fetched")
    for folder, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        save_file({k: v.half() for k, v in load_file(whole / folder / f"{name}.safetensors").items()}, whole / folder / f"{name}.fp16.safetensors", {"format": "pt"})
    vae = whole.parent / "vae"
    shutil.copytree(EMBEDDED / "vae", vae / "inner")
    tensors = load_file(vae / "inner" / "diffusion_pytorch_model.safetensors")
    save_file({**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"] * 0 + 7}, vae / "inner" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with serving(Hub({"team/digits": whole, "team/vae": vae, "team/gated": whole, "team/nothing": whole / "safety_checker"}, gated={"team/gated"})) as hub:
        yield hub


NEEDED = {
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "unet/config.json", "vae/config.json",
}  # fmt: skip


@pytest.mark.slow
def test_processes_of_one_node_ask_for_each_file_once_and_for_no_other(served: Hub, tmp_path: Path) -> None:
    served.asked.clear()
    answers = loaded(tmp_path, [[{"path": "team/digits", "revision": COMMIT}] * 8, [{"path": "team/digits"}], [{"path": "team/digits", "revision": "v1"}]], HF_ENDPOINT=served.address)
    assert [a["checker"] for a in answers] == [False] * 10, answers
    weights = {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
    assert served.files() == dict.fromkeys(NEEDED | weights, 1)
    about = {k: n for k, n in served.asked.items() if "/api/models" in k}
    # Eight at a commit ask what there is once; the two that name a branch or tag ask for its commit.
    assert sum(about.values()) <= 5, about


@pytest.mark.slow
def test_a_variant_and_a_component_are_fetched_alone_and_then_work_offline(served: Hub, tmp_path: Path) -> None:
    served.asked.clear()
    half = {"path": "team/digits", "variant": "fp16", "dtype": "float16", "components": {"vae": "team/vae/inner"}}
    (pins, pinned, *_) = loaded(tmp_path, [[{**half, "pin": True}], [half, half]], HF_ENDPOINT=served.address)
    assert pins == {"revision": COMMIT, "components": {"vae": f"team/vae/inner@{COMMIT}"}}
    assert pinned.get("bias") == 7, pinned
    halves = {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"}
    own = {"inner/config.json", "inner/diffusion_pytorch_model.safetensors"}
    assert served.files() == dict.fromkeys((NEEDED - {"vae/config.json"}) | halves | own, 1)
    served.asked.clear()
    offline, other = loaded(tmp_path, [[half], [{"path": "team/digits"}]], HF_ENDPOINT=served.address, HF_HUB_OFFLINE="1")
    assert offline["bias"] == 7
    assert not served.asked
    assert "HF_HUB_OFFLINE is set" in other["error"]


@pytest.mark.slow
def test_what_cannot_be_fetched_is_named_with_node_model_and_cause(served: Hub, tmp_path: Path) -> None:
    cases = [
        ({"path": "team/gated"}, ["licence", f"{served.address}/team/gated", "HF_TOKEN"]),
        ({"path": "team/nobody"}, ["there is none", "correct model.path", "HF_TOKEN"]),
        ({"path": "team/digits", "revision": "v9"}, ["'v9'", "no branch, tag or commit"]),
        ({"path": "team/digits", "variant": "ema"}, ["model.variant is 'ema'", "one that it has: fp16"]),
        ({"path": "team/nothing"}, ["it has no model_index.json"]),
        ({"path": "team/digits", "components": {"vae": "team/nobody"}}, ["model.components.vae", "there is none"]),
        ({"path": "team/digits", "lora": ["team/vae"]}, ["model.lora 'team/vae", "it has no pytorch_lora_weights.safetensors"]),
    ]
    answers = loaded(tmp_path, [[given] for given, _ in cases], HF_ENDPOINT=served.address)
    for (given, named), answer in zip(cases, answers, strict=True):
        assert "ModelError" in answer.get("error", ""), (given, answer)
        assert all(part in answer["error"] for part in named), answer["error"]
        assert "\n" not in answer["error"]
    assert os.uname().nodename in answers[0]["error"]
    (gone,) = loaded(tmp_path, [[{"path": "team/elsewhere"}]], HF_ENDPOINT="http://127.0.0.1:9")
    assert "UnreachableError" in gone["error"] and "http://127.0.0.1:9 does not answer" in gone["error"] and "model.mirror" in gone["error"]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["no space is left", "HF_HOME"]),
        (PermissionError(errno.EACCES, "Permission denied"), ["cannot be written", "HF_HOME"]),
        (ConnectionResetError("reset"), ["does not answer (ConnectionResetError: reset)", "HTTPS_PROXY"]),
        (KeyError("odd"), ["'odd'"]),
    ],
)
def test_a_full_or_closed_disk_and_a_lost_line_are_told_apart(error: Exception, named: list[str]) -> None:
    said = explained(error, HubId("a/b", revision="c"), "model.path")
    assert all(part in str(said) for part in [*named, "model.path 'a/b@c' cannot be fetched on", os.uname().nodename]), said


def test_ids_are_told_from_everything_else() -> None:
    assert HubId.parse("a/b") == HubId("a/b")
    assert HubId.parse("a/b/c/d.safetensors@refs/pr/1") == HubId("a/b", "c/d.safetensors", "refs/pr/1")
    assert str(HubId.parse("a/b/c@v1")) == "a/b/c@v1"
    assert HubId("a/b", revision=COMMIT).pinned and not HubId("a/b", revision="main").pinned
    assert not any(map(HubId.parse, ["a", "/a/b", "a/../b", "a b/c", "https://h/a/b", "a/b@", "../a/b"]))


def test_the_files_of_a_component_are_those_that_it_is_loaded_from() -> None:
    names = ["x/diffusion_pytorch_model.safetensors", "x/diffusion_pytorch_model.fp16.safetensors", "x/diffusion_pytorch_model.bin", "x/other.safetensors", "x/config.json"]
    assert weight_files_of(names, None) == names[:1]
    assert weight_files_of(names, "fp16") == names[1:2]
    assert weight_files_of(names, "ema") == names[:1]
    sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert weight_files_of(sharded, None) == sharded


def test_a_torn_download_is_gone_on_with_and_a_whole_one_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, calls = HubId("a/b", revision=COMMIT), []
    folder = tmp_path / "models--a--b" / "snapshots" / COMMIT

    def fetch() -> Path:
        calls.append(1)
        folder.mkdir(parents=True, exist_ok=True)
        if len(calls) == 1:
            raise ConnectionResetError("in the middle")
        (folder / "weights").write_text("whole")
        return folder

    with pytest.raises(UnreachableError, match="in the middle"):
        fetched(model, "model.path", "all", fetch)
    assert [fetched(model, "model.path", "all", fetch) for _ in range(3)] == [folder] * 3
    assert len(calls) == 2
    fetched(model, "model.path", "others", fetch)
    (folder / "weights").unlink()
    fetched(model, "model.path", "all", fetch)
    assert len(calls) == 4
