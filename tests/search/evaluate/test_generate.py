"""Images that the pipeline did not really make: a real pipeline with a broken VAE, a broken UNet, a safety checker that says no to everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

import dato
from dato.strategy import Step, Strategy
from launch.__main__ import main
from search.data.datasets import Data, DataSpec
from search.evaluate.evaluator import EvaluatorSpec, PipelineEvaluator
from search.evaluate.generate import ImageError, generate, to_bytes
from search.evaluate.pipelines import EMBEDDED, ModelSpec, _without, left_out, load_pipeline, pipeline_config
from search.evaluate.protocol import EvaluationProtocol

DIGITS = Data(DataSpec(name="digits", kind="digits"))
MODEL = ModelSpec(name="tiny", path="embedded", device="cpu", steps=4, guidance=3.0)
HALF = ModelSpec(name="tiny", path="embedded", device="cpu", steps=4, guidance=3.0, dtype="float16")


def break_vae(pipe: Any, value: float) -> None:
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_vae_makes_no_images(pipe: StableDiffusionPipeline, value: float) -> None:
    break_vae(pipe, value)
    with pytest.raises(ImageError, match=r"images \[0, 1\] of the unaccelerated pipeline are not finite .* the latents are finite, what the VAE makes of them is not; the VAE itself is broken in float32"):
        generate(pipe, MODEL, DIGITS, [0, 1])
    with pytest.raises(ImageError, match=r"sdxl-vae-fp16-fix.*force_upcast.*model\.dtype=bfloat16 or float32"):
        generate(pipe, HALF, DIGITS, [0, 1])


def test_one_bad_image_is_named(pipe: StableDiffusionPipeline) -> None:
    def spoil(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:1], output[1:] + float("inf")])  # the image processor makes white of it

    pipe.vae.decoder.register_forward_hook(spoil)
    with pytest.raises(ImageError, match=r"images \[7\] of"):
        generate(pipe, MODEL, DIGITS, [6, 7])


def test_the_strategys_action_is_named(pipe: StableDiffusionPipeline) -> None:
    calls = 0

    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        # The fourth call is the third step: PNDM calls the first step twice. The second run, which looks for the step, has five calls as well.
        return (output[0] * float("nan"), *output[1:]) if (calls - 1) % 5 >= 3 else output

    strategy = Strategy((Step(12), Step(1), Step(1, 0.5), Step(12)))
    pipe.unet.register_forward_hook(spoil)
    with dato.accelerate(pipe, strategy), pytest.raises(ImageError) as failed:
        generate(pipe, MODEL, DIGITS, [0], strategy=strategy)
    said = str(failed.value)
    assert f"strategy {strategy.digest}" in said
    assert "from step 4 of 5 on, which is computed to cache depth 1 at prune ratio 0.5" in said
    assert "this strategy fails" in said
    calls = 0
    with pytest.raises(ImageError, match=r"the unaccelerated pipeline are not finite .* use model\.dtype=bfloat16 or float32"):
        generate(pipe, HALF, DIGITS, [0])


def test_what_is_no_image_is_no_bytes() -> None:
    good = np.full((1, 2, 2, 3), 0.5, dtype=np.float32)
    assert to_bytes(good).unique().tolist() == [128]
    assert to_bytes(good + 0.5).unique().tolist() == [255]
    for bad, message in ((good * np.nan, "not finite"), (good * 4, "values from 2 to 2; expected 0 to 1"), (good - 1, "values from -0.5")):
        with pytest.raises(ImageError, match=message):
            to_bytes(bad)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, make_pipe: Callable[..., StableDiffusionPipeline]) -> Path:
    """A pipeline's folder with a real safety checker, to which every image is indecent."""
    torch.manual_seed(2)
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=8)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2.0)
    pipe = make_pipe()
    pipe.register_modules(safety_checker=checker.eval(), feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32))
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("checked") / "pipeline")
    return folder


def test_safety_checkers_are_left_out_for_measuring_and_only_there(checked: Path) -> None:
    spec = ModelSpec(name="checked", path=str(checked), device="cpu", steps=2)
    pipe = load_pipeline(spec)
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is None
    assert generate(pipe, spec, DIGITS, [0]).images.float().std() > 0
    assert left_out(spec) == ["safety checker"]
    assert left_out(MODEL) == []
    published = load_pipeline(spec, as_published=True)
    assert published.safety_checker is not None
    with pytest.raises(ImageError, match=r"images \[0\] were replaced by the pipeline's safety checker"):
        generate(published, spec, DIGITS, [0])
    info = PipelineEvaluator(EvaluatorSpec(spec, DIGITS.spec, EvaluationProtocol(images=2, batch=2))).model_info([], [])
    assert info["measured_without"] == ["safety checker"]


def test_watermarks_are_left_out_for_measuring(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    assert _without(pipeline_config(tmp_path)) == {"add_watermarker": False}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pipeline with a VAE that makes NaN of everything."""
    pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None, requires_safety_checker=False)
    break_vae(pipe, float("nan"))
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("broken") / "pipeline")
    return folder


def test_an_evaluation_of_a_broken_model_stops_with_advice(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"model.path={broken}", "model.steps=2", "evaluation.images=2", "cluster.workers=0", f"output={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "the unaccelerated pipeline itself fails" in said
    assert "load the model's vae folder again" in said


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "prompts"])
def test_a_search_of_a_broken_model_stops_with_advice(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str) -> None:
    arguments = [f"model.path={broken}", "model.steps=7", "mlflow.enabled=false", "cluster.workers=1", "protocol.batch=2", f"data={data}", f"output={tmp_path}"]
    assert main(["search", *arguments]) == 1
    said = capsys.readouterr()
    assert "the unaccelerated pipeline itself fails" in said.err
    assert "what the VAE makes of them is not" in said.err
    assert "FID" not in said.out.replace("FID against", "")
