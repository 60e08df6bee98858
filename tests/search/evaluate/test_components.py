"""A pipeline with other models put in, LoRA weights merged and arguments passed on: the embedded one, for real."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import dato
from dato.provenance import fingerprints
from dato.strategy import Strategy
from search.data.datasets import Data, DataSpec
from search.evaluate.generate import generate
from search.evaluate.load_arguments import REFUSED
from search.evaluate.model_files import EMBEDDED, LORA_FILE, added_digests, check_model, local_files
from search.evaluate.model_spec import LATER, ModelError, ModelSpec
from search.evaluate.pipelines import load_pipeline, weights_digest

DIGITS = Data(DataSpec(name="digits", kind="digits"))


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**{"name": "x", "path": "embedded", "device": "cpu", "steps": 3, "guidance": 3.0, **changes})


def bias(pipe: Any) -> float:
    return float(pipe.vae.decoder.conv_out.bias.detach()[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE whose last bias is 7, one beside a mirror, and LoRA weights of the UNet."""
    folder = tmp_path_factory.mktemp("parts")
    vae = AutoencoderKL.from_pretrained(EMBEDDED, subfolder="vae")
    torch.nn.init.constant_(vae.decoder.conv_out.bias, 7)
    vae.save_pretrained(folder / "vae")
    shutil.copytree(EMBEDDED, folder / "mirror" / "team" / "digits")
    shutil.copytree(folder / "vae", folder / "mirror" / "team" / "vae@v1" / "inner")
    unet = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None, requires_safety_checker=False, feature_extractor=None).unet
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=get_peft_model_state_dict(unet))
    shutil.copy(folder / "lora" / LORA_FILE, folder / "style.safetensors")
    (folder / "style.bin").write_bytes(b"x")
    return folder


def test_a_component_takes_the_place_of_the_pipelines_own_and_changes_its_images(made: Path) -> None:
    plain, other = load_pipeline(spec()), load_pipeline(spec(components={"vae": str(made / "vae")}))
    assert bias(other) == 7 != bias(plain)
    assert fingerprints(other.unet) == fingerprints(plain.unet)
    assert not torch.equal(generate(plain, spec(), DIGITS, [0]).images, generate(other, spec(), DIGITS, [0]).images)


def test_a_mirror_is_looked_in_before_the_hub(made: Path) -> None:
    there = spec(path="team/digits", mirror=f"file://{made / 'mirror'}", components={"vae": "team/vae/inner@v1"})
    check_model(there)
    assert bias(load_pipeline(there)) == 7
    assert local_files(there) == {"model.path": made / "mirror" / "team" / "digits" / "model_index.json", "model.components.vae": made / "mirror" / "team" / "vae@v1" / "inner" / "config.json"}
    assert weights_digest(there) == weights_digest(spec())
    with pytest.raises(ModelError, match=r"model\.mirror is .*nowhere.*, which is no folder; give one"):
        check_model(spec(mirror=str(made / "nowhere")))


def test_lora_weights_are_merged_each_with_its_scale(made: Path) -> None:
    def query(**changes: Any) -> torch.Tensor:
        return load_pipeline(spec(**changes)).unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight

    plain, once = query(), query(lora=[str(made / "style.safetensors")])
    change = once - plain
    assert change.abs().max() > 1e-3
    assert torch.allclose(query(lora=[str(made / "lora")], lora_scales=[0.5]), plain + 0.5 * change, atol=1e-5)
    assert torch.allclose(query(lora=[str(made / "lora"), str(made / "style.safetensors")], lora_scales=[2.0, -1.0]), once, atol=1e-5)


def test_a_strategy_runs_on_a_merged_pipeline_and_leaves_it_as_it_was(made: Path) -> None:
    given = spec(lora=[str(made / "lora")])
    pipe = load_pipeline(given)
    assert not [n for n, _ in pipe.unet.named_modules() if "lora" in n], "merged weights are a plain UNet"
    before = generate(pipe, given, DIGITS, [0, 1]).images
    with dato.accelerate(pipe, Strategy.uniform(3, 3, prune_ratio=0.5)):
        generate(pipe, given, DIGITS, [0, 1])
    assert torch.equal(generate(pipe, given, DIGITS, [0, 1]).images, before)


def test_what_is_added_is_told_by_its_content(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "vae", tmp_path / "vae")
    given = spec(components={"vae": str(tmp_path / "vae")}, lora=[str(made / "lora")])
    first = added_digests(given)
    assert set(first) == {f"model.components.vae {tmp_path / 'vae'}", f"model.lora {made / 'lora'}"}
    assert added_digests(spec()) == {}
    shutil.copy(EMBEDDED / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "vae")
    second = added_digests(given)
    assert {k for k in first if first[k] != second[k]} == {f"model.components.vae {tmp_path / 'vae'}"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": {"trust_remote_code": True}}, r"model\.load holds trust_remote_code: it would run code that comes with the model"),
        ({"load": {"custom_pipeline": "x"}}, r"model\.load holds custom_pipeline: it would run code"),
        ({"load": {"use_safetensors": False}}, "pickles, which run code"),
        ({"load": {"torch_dtype": "float16"}}, r"set model\.dtype"),
        ({"load": {"device_map": "auto"}}, r"one device .*set model\.device"),
        ({"load": {"token": "secret"}}, "HF_TOKEN"),
        ({"load": {"low_cpu_mem_usage": "no"}}, r"model\.load\.low_cpu_mem_usage is 'no'; give true or false"),
        ({"load": {"a": [1]}}, r"model\.load\.a is \[1\]; give a number, a text"),
        ({"components": {"vae": 3}}, r"model\.components\.vae is 3; give a folder"),
        ({"lora": ["a/b"], "lora_scales": [1.0, 2.0]}, r"model\.lora_scales holds 2 numbers for 1 of model\.lora"),
        ({"revision": ""}, r"model\.revision is ''; give a text, or null"),
    ],
)
def test_what_may_not_be_set_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        spec(**changes)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a/b/c"}, "neither a folder here nor a hub id"),
        ({"path": "a/b@v1"}, r"its revision goes into model\.revision"),
        ({"revision": "v1"}, r"model\.revision is 'v1', but model\.path is 'embedded', which has no revisions"),
        ({"components": {"vae": "/nowhere"}}, r"model\.components\.vae is '/nowhere', which does not exist"),
        ({"components": {"vae": str(EMBEDDED)}}, r"which has no config\.json"),
        ({"lora": ["style"]}, r"model\.lora is 'style', neither"),
        ({"lora": ["{made}/style.bin"]}, r"style\.bin'; give a \.safetensors file: other files are pickles"),
        ({"lora": ["a/b/style.ckpt"]}, r"style\.ckpt'; give a \.safetensors file"),
        ({"lora": ["{made}/vae"]}, rf"which has no {LORA_FILE}"),
    ],
)
def test_what_is_no_model_is_refused_before_anything_is_started(changes: dict[str, Any], message: str, made: Path) -> None:
    given = {k: [text.format(made=made) for text in v] if k == "lora" else v for k, v in changes.items()}
    with pytest.raises(ModelError, match=message):
        check_model(spec(**given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": {"nonsense": 1}}, r"model\.load holds nonsense, which StableDiffusionPipeline does not take; allowed are disable_mmap, low_cpu_mem_usage"),
        ({"load": {"unet": "x"}}, r"model\.load\.unet is 'x'; only null"),
        ({"components": {"transformer": "{made}/vae"}}, r"model\.components\.transformer: StableDiffusionPipeline has no model of that name; it has text_encoder, unet, vae"),
        ({"components": {"scheduler": "{made}/vae"}}, r"set model\.scheduler"),
        ({"components": {"unet": "{made}/vae"}}, r"model\.components\.unet: .* is a AutoencoderKL, and StableDiffusionPipeline has a UNet2DConditionModel there"),
        ({"lora": ["{made}/vae/diffusion_pytorch_model.safetensors"]}, r"cannot merge model\.lora '.*vae/diffusion_pytorch_model\.safetensors' into a StableDiffusionPipeline"),
    ],
)
def test_what_does_not_fit_the_pipeline_is_refused_when_it_is_loaded(changes: dict[str, Any], message: str, made: Path) -> None:
    given: dict[str, Any] = {k: [t.format(made=made) for t in v] if k == "lora" else {n: str(t).format(made=made) if k == "components" else t for n, t in v.items()} for k, v in changes.items()}
    with pytest.raises(ModelError, match=message):
        load_pipeline(spec(**given))


def test_arguments_are_passed_on() -> None:
    assert load_pipeline(spec(load={"low_cpu_mem_usage": False, "image_encoder": None})).image_encoder is None


def test_what_came_later_changes_no_record_where_it_is_not_set() -> None:
    assert not set(LATER) & set(spec().to_dict())
    assert spec(lora=["a/b"]).to_dict()["lora"] == ("a/b",)
    assert {"torch_dtype", "device_map", "trust_remote_code", "custom_pipeline", "use_safetensors"} <= set(REFUSED)
