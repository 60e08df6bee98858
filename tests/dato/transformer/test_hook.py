"""Transformers by a strategy: full and disabled bit-identical, every depth as a naive loop over the blocks has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)

import dato
from dato import FULL, Options, Step, Strategy, StrategyError, baselines
from dato.provenance import describe
from tests.dato.transformer.naive import close, naive
from tests.dato.transformer.pipelines import BATCHED, BLOCKS, FAMILIES, STEPS, run, tiny

MIXED = Strategy((Step(FULL), Step(2), Step(1, guidance="cond"), Step(0), Step(3), Step(4, order=1)))


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_and_disabled_are_bit_identical(family: str, dtype: torch.dtype, guided: bool) -> None:
    pipe = tiny(family, dtype)
    plain = run(pipe, 2, guided)
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe, 2, guided), plain)
    with dato.accelerate(pipe, MIXED):
        assert not torch.equal(run(pipe, 2, guided), plain)
        report = dato.status(pipe)
        assert report is not None and report.finished and report.model == "transformer"
    assert torch.equal(run(pipe, 2, guided), plain)
    assert dato.status(pipe) is None
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("depth", [0, *range(1, BLOCKS)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_depth_is_the_naive_loop_over_the_blocks(family: str, depth: int, guided: bool) -> None:
    pipe = tiny(family)
    strategy = Strategy((Step(FULL), Step(depth), Step(depth, guidance="cond"), Step(FULL), Step(depth, order=1), Step(depth, order=2)))
    expected, made = naive(pipe, strategy, guided=guided)
    with dato.accelerate(pipe, strategy):
        found = run(pipe, guided=guided)
        report = dato.status(pipe)
    assert close(found, expected)
    if family not in BATCHED or not guided:
        assert report is not None
        assert dict(report.calls_by_depth) == {d: sum(depth == d for _, depth in made) for d in {d for _, d in made}}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_strategy_is_the_naive_loop(family: str, images: int) -> None:
    pipe = tiny(family)
    expected, _ = naive(pipe, MIXED, images=images)
    with dato.accelerate(pipe, MIXED):
        assert close(run(pipe, images), expected)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_half_precision_runs_and_replays(family: str) -> None:
    pipe = tiny(family, torch.bfloat16)
    with dato.accelerate(pipe, MIXED):
        first, second = run(pipe), run(pipe)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()


def test_euler_is_the_form_for_flow_matching_with_the_models_settings() -> None:
    for family in ("sd3", "flux"):
        pipe = tiny(family)
        own, plain = pipe.scheduler, run(pipe)
        with dato.accelerate(pipe, Strategy.full(STEPS, sampler="Euler")):
            assert type(pipe.scheduler) is type(own) and pipe.scheduler is not own
            assert pipe.scheduler.config == own.config
            assert torch.equal(run(pipe), plain), "it is what the pipeline has itself"
        assert pipe.scheduler is own


def test_dpm_solver_of_flow_matching_is_a_sampler_of_a_strategy() -> None:
    pipe = tiny("sd3")
    strategy = Strategy(MIXED.steps, sampler="DPM++")
    own = pipe.scheduler
    with dato.accelerate(pipe, strategy):
        assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
        found = run(pipe)
        assert pipe.scheduler.config.use_flow_sigmas and pipe.scheduler.config.prediction_type == "flow_prediction"
    assert pipe.scheduler is own
    with pytest.raises(ValueError, match="DDIM"):
        dato.enable(pipe, Strategy(MIXED.steps, sampler="DDIM"))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("sd3", StableDiffusion3Img2ImgPipeline, {"image": torch.zeros(1, 16, 8, 8), "strength": 0.5}),
        ("sd3", StableDiffusion3InpaintPipeline, {"image": torch.zeros(1, 3, 16, 16), "mask_image": torch.ones(1, 1, 16, 16), "strength": 0.5}),
        ("flux", FluxImg2ImgPipeline, {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5}),
        ("flux", FluxInpaintPipeline, {"image": torch.zeros(1, 3, 16, 16), "mask_image": torch.ones(1, 1, 16, 16), "strength": 0.5}),
    ],
)
def test_image_to_image_and_inpainting_follow_the_last_entries(family: str, kind: Any, changes: dict[str, Any]) -> None:
    other = tiny(family, torch.float32)
    parts = {k: v for k, v in other.components.items() if k not in ("image_encoder", "feature_extractor")}
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    plain = run(pipe, **changes)
    with dato.accelerate(pipe, Strategy((*[Step(1)] * 4, Step(2), Step(0)))):
        run(pipe, **changes)
        report = dato.status(pipe)
    assert report is not None and report.finished
    assert set(report.calls_by_depth) <= {FULL, 0, 1, 2} and report.calls_by_depth[0] and report.calls_by_depth[FULL]
    assert torch.equal(run(pipe, **changes), plain)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("kind", [QwenImageImg2ImgPipeline, QwenImageInpaintPipeline])
def test_qwen_image_s_image_to_image_and_inpainting_follow_the_last_entries(kind: Any, guided: bool) -> None:
    other = tiny("qwen-image", torch.float32)
    vae = AutoencoderKLQwenImage(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipe = kind(**{**other.components, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    changes = {"image": torch.zeros(1, 3, 64, 64), "strength": 0.5, **({"mask_image": torch.ones(1, 1, 64, 64)} if kind is QwenImageInpaintPipeline else {})}
    plain = run(pipe, guided=guided, **changes)
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe, guided=guided, **changes), plain)
    with dato.accelerate(pipe, Strategy((*[Step(1)] * 4, Step(2), Step(0)))):
        fast = run(pipe, guided=guided, **changes)
        report = dato.status(pipe)
    calls = 1 + guided
    assert report is not None and report.finished
    assert dict(report.calls_by_depth) == {FULL: calls, 2: calls, 0: calls}, "the last three entries, of which the first has nothing to reuse"
    assert not torch.equal(fast, plain)
    assert torch.equal(run(pipe, guided=guided, **changes), plain)


@pytest.mark.parametrize("family", ["flux", "flux-embedded-guidance"])
def test_flux_with_true_guidance_keeps_each_half_s_own(family: str) -> None:
    pipe = tiny(family)
    strategy = Strategy((Step(FULL), Step(1), Step(0, guidance="cond"), Step(1, guidance="cond"), Step(2), Step(0, order=1)))
    expected, made = naive(pipe, strategy)
    with dato.accelerate(pipe, strategy):
        assert close(run(pipe), expected)
        report = dato.status(pipe)
        built_in = run(pipe, guided=False)
        alone = dato.status(pipe)
    assert report is not None and report.conditional_alone == 2
    assert sum(report.calls_by_depth.values()) == len(made) == 2 * STEPS - 2
    assert alone is not None and sum(alone.calls_by_depth.values()) == STEPS, "one call a step where its guidance is built in"
    assert not close(built_in, expected, 1e-3)


def test_two_pipelines_share_a_transformer() -> None:
    pipe = tiny("sd3")
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    with dato.accelerate(pipe, MIXED):
        assert torch.equal(run(other), run(pipe))
        with pytest.raises(ValueError, match="another pipeline shares this transformer"):
            dato.enable(other, MIXED)


def test_a_deep_copy_follows_by_itself() -> None:
    pipe = tiny("flux")
    plain = run(pipe)
    dato.enable(pipe, MIXED)
    fast = run(pipe)
    copied = copy.deepcopy(pipe)
    assert torch.equal(run(copied), fast)
    dato.disable(copied)
    assert torch.equal(run(copied), plain)
    assert torch.equal(run(pipe), fast)
    dato.disable(pipe)
    assert torch.equal(run(pipe), plain)


def test_a_depth_beyond_the_blocks_is_refused() -> None:
    with pytest.raises(StrategyError, match=rf"cache_depth {BLOCKS} .*{BLOCKS} blocks.*0 to {BLOCKS - 1}"):
        dato.enable(tiny("sd3"), Strategy((Step(FULL), Step(BLOCKS))))


def test_depths_beyond_full_s_number_are_depths() -> None:
    model = tiny("sd3").transformer
    deep = type(model).from_config({**model.config, "num_layers": 16}).double().eval()
    pipe = tiny("sd3")
    pipe.transformer = deep
    strategy = Strategy((Step(FULL), Step(14), Step(3), Step(15), Step(14, order=1), Step(0)))
    expected, _ = naive(pipe, strategy)
    again = Strategy.from_json(strategy.with_provenance(note="deep").to_json())
    assert again == strategy
    with dato.accelerate(pipe, again):
        assert close(run(pipe), expected)


def test_what_cannot_follow_is_refused_by_name() -> None:
    pipe = tiny("flux", torch.float32)
    with pytest.raises(ValueError, match=r"FluxPipeline.*dato bench pruning.*prune_ratio 0"):
        dato.enable(pipe, Strategy((Step(FULL, 0.5),) * STEPS))
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        dato.enable(pipe, MIXED, Options(compile="default"))
    compiled = copy.copy(pipe)
    compiled.transformer = torch.compile(pipe.transformer)
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        dato.enable(compiled, MIXED)
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="FBC"):
        dato.enable(pipe, MIXED)
    pipe.transformer.disable_cache()
    dato.enable(pipe, MIXED)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="FBC"):
        run(pipe)
    pipe.transformer.disable_cache()
    dato.disable(pipe)


@pytest.mark.parametrize("options", [
    {"diff_source": "feature"}, {"use_score": False}, {"align": "none"}, {"plan_per": "layer"}, {"patch": 3}, {"max_downsample": 2}, {"layers": ("transformer_blocks",)},
    {"score_noise": 0.5}, {"seed": 1},
])  # fmt: skip
def test_options_that_would_have_no_effect_are_refused_by_name(options: dict[str, Any]) -> None:
    pipe = tiny("sd3", torch.float32)
    (name,) = options
    with pytest.raises(ValueError, match=rf"StableDiffusion3Pipeline has a transformer.*Options\({name}=.*leave the options out"):
        dato.enable(pipe, MIXED, Options(**options))
    assert dato.status(pipe) is None
    dato.enable(pipe, MIXED, Options())
    dato.disable(pipe)


def test_a_transformer_of_another_family_is_refused_by_name() -> None:
    from diffusers import SanaTransformer2DModel

    pipe = tiny("pixart", torch.float32)
    pipe.transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12, sample_size=8
    )
    with pytest.raises(TypeError, match="SanaTransformerBlock"):
        dato.enable(pipe, MIXED)


def test_blocks_compiled_each_by_itself_follow() -> None:
    pipe = tiny("sd3", torch.float32)
    expected = None
    with dato.accelerate(pipe, MIXED):
        expected = run(pipe)
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    with dato.accelerate(pipe, MIXED):
        assert close(run(pipe), expected, 1e-4)


def test_group_offloading_of_blocks_follows_and_with_a_stream_is_refused() -> None:
    pipe = tiny("sd3", torch.float32)
    with dato.accelerate(pipe, MIXED):
        expected = run(pipe)
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=2)
    with dato.accelerate(pipe, MIXED):
        assert torch.equal(run(pipe), expected)


def test_lora_follows() -> None:
    from peft import LoraConfig

    pipe = tiny("sd3", torch.float32)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    plain = run(pipe)
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe), plain)
    with dato.accelerate(pipe, MIXED):
        assert torch.equal(run(pipe), run(pipe))
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("first", [True, False])
def test_hooks_of_accelerate_as_of_model_offloading_go_on_before_or_after(first: bool) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Counted(ModelHook):
        def __init__(self) -> None:
            self.calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    pipe, hook = tiny("flux", torch.float32), Counted()
    plain = run(pipe)
    with dato.accelerate(pipe, MIXED):
        expected = run(pipe)
    if first:
        add_hook_to_module(pipe.transformer, hook)
    dato.enable(pipe, MIXED)
    if not first:
        add_hook_to_module(pipe.transformer, hook)
    assert torch.equal(run(pipe), expected)
    assert hook.calls == 2 * STEPS
    dato.disable(pipe)
    assert torch.equal(run(pipe), plain)
    remove_hook_from_module(pipe.transformer)
    assert torch.equal(run(pipe), plain)


def test_a_strategy_found_on_a_unet_is_refused_by_name() -> None:
    pipe = tiny("sd3", torch.float32)
    noted = MIXED.with_provenance(model={"path": "digits", "unet": {"in_channels": 4}})
    with pytest.raises(StrategyError, match="it is a UNet and this is a transformer"):
        dato.enable(pipe, noted)
    known = describe(pipe)
    dato.enable(pipe, MIXED.with_provenance(model={"path": "here", **{k: known[k] for k in ("transformer", "weights")}}))
    dato.disable(pipe)
    other = MIXED.with_provenance(model={"path": "there", "transformer": {**known["transformer"], "num_layers": 24}})
    with pytest.raises(StrategyError, match=r"num_layers is 5 here and was 24"):
        dato.enable(pipe, other)


def test_tomesd_is_for_unets() -> None:
    with pytest.raises(ValueError, match=r"StableDiffusion3Pipeline has no UNet.*rivals.tomesd"), baselines.tomesd(4, 0.5).applied(tiny("sd3")):
        pass
