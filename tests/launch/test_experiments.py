"""The paper's settings: each is what the paper says, and runs end to end on a tiny random model of its architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig

from launch.config import CONF, build, compose_config
from launch.evaluation import build_evaluation
from search.optimize.space import SearchSpace

EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
PATHS = {"imagenet": ["data.images=photos"], "coco": ["data.captions=c.json", "data.images=photos"]}


def paths_of(name: str) -> list[str]:
    return PATHS["coco" if "coco" in name else "imagenet"]


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "side", "images", "scheduler"),
    [
        ("sd15_imagenet", 50, 7.5, 512, 2000, "PNDMScheduler"),
        ("sd2_imagenet", 50, 9.0, 512, 2000, "PNDMScheduler"),
        ("sd15_coco", 50, 7.5, 512, 30000, "PNDMScheduler"),
        ("sd2_coco", 50, 9.0, 512, 30000, "PNDMScheduler"),
        ("sdxl_coco", 50, 7.0, 1024, 5000, "EulerDiscreteScheduler"),
        ("sd15_img2img", 50, 7.5, 512, 1000, "PNDMScheduler"),
        ("sd15_imagenet_dpmpp25", 25, 7.5, 512, 2000, "DPMSolverMultistepScheduler"),
        ("sdxl_coco_dpmpp25", 25, 7.0, 1024, 5000, "DPMSolverMultistepScheduler"),
    ],
)
def test_the_settings_are_the_papers(name: str, steps: int, guidance: float, side: int, images: int, scheduler: str) -> None:
    searched = build(compose_config("search", [f"experiment={name}", *paths_of(name)]))
    if "dpmpp" not in name:
        inert = searched.space.depths_without_pruning
        assert searched.space == SearchSpace(steps=50, depths_without_pruning=inert), "the paper's space, and nothing beside it"
    else:
        assert len(searched.space.lengths) > 1 and len(searched.space.samplers) > 1
    model = searched.evaluator.model
    assert (model.steps, model.guidance, model.height, model.width, model.scheduler) == (steps, guidance, side, side, scheduler)
    assert searched.evaluator.protocol.images == 500
    assert name in EXPERIMENTS
    evaluation = compose_config("evaluate", [f"experiment={name}", *paths_of(name)])
    assert evaluation["evaluation"]["images"] == images
    assert evaluation["protocol"]["features"] == "inception"
    assert compose_config("evaluate", [f"experiment={name}", "model.steps=30", *paths_of(name)])["model"]["steps"] == 30
    spec = build_evaluation("evaluate", compose_config("evaluate", [f"experiment={name}", *paths_of(name)])).spec
    assert spec.protocol.images == images
    assert (spec.edit is not None) == (name == "sd15_img2img")


def test_searches_on_sdxl_know_where_ratios_have_no_effect() -> None:
    assert tuple(build(compose_config("search", ["experiment=sdxl_coco", *PATHS["coco"]])).space.depths_without_pruning) == (0, 1)


@pytest.fixture(scope="module")
def tiny(make_pipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models with the layouts of SD v1.5, v2 and XL, and of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("models")
    sd15 = make_pipe()
    sd15.save_pretrained(folder / "sd15")
    sd2 = make_pipe(attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
    sd2.scheduler.register_to_config(prediction_type="v_prediction")
    sd2.save_pretrained(folder / "sd2")
    base = make_pipe(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(2, 2, 4),
        cross_attention_dim=96,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    text = {**base.text_encoder.config.to_dict(), "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "projection_dim": 32}
    torch.manual_seed(2)
    StableDiffusionXLPipeline(
        vae=base.vae, text_encoder=base.text_encoder, text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)).eval(),
        tokenizer=base.tokenizer, tokenizer_2=base.tokenizer, unet=base.unet, scheduler=base.scheduler, add_watermarker=False,
    ).save_pretrained(folder / "sdxl")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16}
    tokenizer = sd15.tokenizer
    words = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, eos_token_id=tokenizer.eos_token_id, **size)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    CLIPModel(CLIPConfig(text_config=words.to_dict(), vision_config=vision.to_dict(), projection_dim=16)).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    return {p.name: p for p in folder.iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """40 photographs as ImageNet's synset folders and as COCO."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    synsets = ("n01440764", "n01443537", "n01484850", "n01491361")
    images, annotations = [], []
    for i in range(40):
        path = folder / "imagenet" / synsets[i % 4] / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        images.append({"id": i, "file_name": str(path.relative_to(folder))})
        annotations.append({"id": 1000 - i, "image_id": i, "caption": f"picture {i}"})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return {
        "imagenet": [f"data.images={folder / 'imagenet'}", "data.image_size=32"],
        "coco": [f"data.captions={folder / 'captions.json'}", f"data.images={folder}", "data.image_size=32", "data.count=12"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_end_to_end(
    name: str, tiny: dict[str, Path], data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATO_CACHE", str(tmp_path / "cache"))
    overrides = [
        f"experiment={name}", f"model.path={tiny[name.split('_')[0]]}", "model.dtype=float32", "model.device=cpu", "model.height=32", "model.width=32",
        "model.steps=4", *data["coco" if "coco" in name else "imagenet"], "evaluation.images=10", "protocol.batch=5", "protocol.features=embedded",
        "protocol.interval_groups=3", "evaluation.samples=2", "cluster.workers=0", "cluster.threads=1",
    ]
    if name == "sd15_img2img":
        overrides += [f'evaluation.metrics=["clip:{tiny["clip"]}",is]', "evaluation.edit.size=48"]
    else:
        overrides += ["rivals.fewer_steps=[DDIM-2,DPM++-2]", "rivals.limited_guidance=[DPM++-2]"]
    assert main(["evaluate", *overrides]) == 0, capsys.readouterr()
    (folder,) = (tmp_path / "outputs").iterdir()
    found = json.loads((folder / "evaluation.json").read_text())
    assert all(r["error"] is None and r["images"] == 10 for r in found["results"])
    assert {r["family"] for r in found["results"]} >= {"plain", "deepcache", "strategy"}
    metrics = set(found["results"][0]["metrics"])
    assert metrics == ({"fid"} if name != "sd15_img2img" else {f"clip:{tiny['clip']}", "is"})
    assert ("quoted" in (folder / "table.md").read_text()) == ("dpmpp25" not in name)
