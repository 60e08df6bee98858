"""What diffusers users put beside a pipeline: adapters, ControlNet, offloading, compilation, other pipelines."""

from __future__ import annotations

import copy
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    StableDiffusionAdapterPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    T2IAdapter,
)
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook

import dato
from dato import FULL, Options, Step, Strategy
from tests.dato.conftest import PRUNED, STEPS, add_ip_adapter, add_lora, random_controlnet, report_of, run, sharing, use, with_controlnet

IMAGE = {"image": torch.ones(1, 3, 32, 32)}  # for a ControlNet
COMPILER = shutil.which(os.environ.get("CXX", "g++")) and (Path(sysconfig.get_path("include")) / "Python.h").is_file()


class TestLora:
    @pytest.mark.parametrize("targets", [["to_q", "to_k", "to_v"], ["conv_in", "conv1", "proj_in"]])
    def test_before_and_after_enabling_is_the_same(self, make_pipe: Callable[..., Any], targets: list[str]) -> None:
        before, after = make_pipe(), make_pipe()
        without = run(after)
        add_lora(before.unet, targets)
        dato.enable(before, PRUNED)
        dato.enable(after, PRUNED)
        run(after)
        add_lora(after.unet, targets)
        result = run(before)
        assert torch.equal(result, run(after))
        assert not torch.equal(result, without)

    def test_scale_reaches_the_shallow_calls(self, pipe: Any) -> None:
        add_lora(pipe.unet, ["to_q", "to_v", "conv1"])
        deepest = Strategy.uniform(STEPS, 3, depth=11)
        results = []
        for scale in (0.0, 1.0):
            with dato.accelerate(pipe, deepest):
                results.append(run(pipe, cross_attention_kwargs={"scale": scale}))
        pipe.unet.delete_adapters("default")
        with dato.accelerate(pipe, deepest):
            without = run(pipe)
        assert torch.allclose(results[0], without, atol=1e-4)
        assert (results[1] - without).abs().max() > 1e-2


def test_ip_adapter_processors_survive(pipe: Any) -> None:
    unet = pipe.unet
    add_ip_adapter(unet)
    processors = dict(unet.attn_processors)
    settings = {"ip_adapter_image_embeds": [torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(5))]}
    plain = run(pipe, **settings)
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe, **settings), plain)
    with dato.accelerate(pipe, PRUNED):
        assert unet.attn_processors == processors
        with_image = run(pipe, **settings)
        other = run(pipe, ip_adapter_image_embeds=[torch.zeros(2, 1, 32)])
    assert torch.isfinite(with_image).all()
    assert not torch.allclose(with_image, other)
    assert unet.attn_processors == processors


class TestControlNet:
    @pytest.fixture
    def control(self, pipe: Any) -> Any:
        return use(with_controlnet(pipe), "DDIMScheduler")

    @pytest.mark.parametrize("guess", [False, True])
    def test_full_is_exact_and_replays_skip_the_controlnet(self, control: Any, guess: bool) -> None:
        settings = {"image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), "guess_mode": guess}
        calls: list[int] = []
        handle = control.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: calls.append(1))
        plain = run(control, **settings)
        with dato.accelerate(control, Strategy.full(STEPS)):
            assert torch.equal(run(control, **settings), plain)
        calls.clear()
        with dato.accelerate(control, Strategy((Step(FULL), Step(0), Step(1), Step(0), Step(FULL), Step(0)))):
            result = run(control, **settings)
            report = report_of(control)
        assert len(calls) == 3
        assert report.controls_skipped == 3
        assert torch.isfinite(result).all()
        assert torch.equal(run(control, **settings), plain)
        assert "forward" not in vars(control.controlnet)
        handle.remove()

    def test_its_residuals_reach_the_shallow_calls(self, control: Any) -> None:
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        deepest = Strategy.uniform(STEPS, STEPS, depth=11)
        results = []
        with dato.accelerate(control, deepest):
            for end in (1.0, 1 / STEPS):  # with the ControlNet throughout, or only in the first, full call
                results.append(run(control, image=image, control_guidance_end=end))
        assert not torch.allclose(*results)


class TestASharedControlNet:
    @pytest.fixture
    def two(self, make_pipe: Callable[..., Any]) -> tuple[Any, Any]:
        """Two pipelines with a UNet each and one ControlNet."""
        pipes = [use(make_pipe(), "DDIMScheduler") for _ in range(2)]
        net = random_controlnet(pipes[0].unet)
        first, second = (with_controlnet(p, net) for p in pipes)
        return first, second

    def test_enabling_the_second_is_refused_before_anything_is_touched(self, two: tuple[Any, Any]) -> None:
        first, second = two
        with dato.accelerate(first, PRUNED):
            alone = run(first, **IMAGE)
            with pytest.raises(ValueError, match=r"another pipeline shares this ControlNet.*call dato.disable on that pipeline first"):
                dato.enable(second, PRUNED)
            assert dato.status(second) is None
            assert not hasattr(second.unet, "_diffusers_hook")
            assert not any(m._forward_hooks for m in second.unet.modules())
            assert torch.equal(run(first, **IMAGE), alone)
        with dato.accelerate(second, PRUNED):
            run(second, **IMAGE)

    @pytest.mark.parametrize("one_scheduler", [False, True])
    def test_a_plain_pipeline_is_untouched_even_after_an_interrupted_run(self, two: tuple[Any, Any], one_scheduler: bool) -> None:
        first, second = two
        if one_scheduler:
            second.scheduler = first.scheduler
        plain = run(second, **IMAGE)

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        with dato.accelerate(first, Strategy((Step(FULL), *[Step(0)] * 5))):
            with pytest.raises(KeyboardInterrupt):
                run(first, callback_on_step_end=stop, **IMAGE)
            assert torch.equal(run(second, **IMAGE), plain)
            report = report_of(first)
            assert report.controls_skipped == 0
            run(first, **IMAGE)
            report = report_of(first)
            assert report.controls_skipped == 5

    def test_enabling_that_fails_midway_leaves_everything_as_it_was(self, two: tuple[Any, Any]) -> None:
        first, _ = two
        plain = run(first, **IMAGE)
        registry = HookRegistry.check_if_exists_or_initialize(first.controlnet)
        registry.register_hook(DiffusersHook(), "dato")  # someone else's, of our name
        with pytest.raises(ValueError, match="already exists"):
            dato.enable(first, PRUNED)
        assert not hasattr(first.unet, "_diffusers_hook")
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in first.unet.modules())
        registry.remove_hook("dato")
        assert torch.equal(run(first, **IMAGE), plain)


class TestOtherHooks:
    def test_an_offloading_hook_before_or_after(self, pipe: Any) -> None:
        with dato.accelerate(pipe, PRUNED):
            alone = run(pipe)
        plain = run(pipe)
        add_hook_to_module(pipe.unet, ModelHook())
        with dato.accelerate(pipe, PRUNED):
            assert torch.equal(run(pipe), alone)
        assert torch.equal(run(pipe), plain)
        remove_hook_from_module(pipe.unet)
        assert torch.equal(run(pipe), plain)
        dato.enable(pipe, PRUNED)
        add_hook_to_module(pipe.unet, ModelHook())
        assert torch.equal(run(pipe), alone)
        dato.disable(pipe)
        assert hasattr(pipe.unet, "_hf_hook")
        assert torch.equal(run(pipe), plain)
        remove_hook_from_module(pipe.unet)
        assert torch.equal(run(pipe), plain)

    def test_a_hook_that_is_exchanged_leaves_the_strategy_on(self, pipe: Any) -> None:
        plain = run(pipe)
        with dato.accelerate(pipe, PRUNED):
            alone = run(pipe)
        add_hook_to_module(pipe.unet, ModelHook())
        dato.enable(pipe, PRUNED)
        add_hook_to_module(pipe.unet, ModelHook())  # as a second enable_model_cpu_offload does
        assert torch.equal(run(pipe), alone)
        report = report_of(pipe)
        assert report.finished
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)
        assert dato.status(pipe) is None

    def test_attention_slicing_switched_while_enabled(self, pipe: Any) -> None:
        with dato.accelerate(pipe, PRUNED):
            whole = run(pipe)
            pipe.enable_attention_slicing(1)
            sliced = run(pipe)
            report = report_of(pipe)
        assert sum(report.tokens_pruned.values()) > 0
        assert torch.allclose(sliced, whole, atol=1e-3)


class TestOtherPipelines:
    def test_inpainting(self, pipe: Any) -> None:
        inpaint = sharing(pipe, StableDiffusionInpaintPipeline)
        settings = {"image": torch.zeros(1, 3, 32, 32), "mask_image": torch.ones(1, 1, 32, 32), "strength": 1.0}
        plain = run(inpaint, **settings)
        with dato.accelerate(inpaint, Strategy.full(STEPS)):
            assert torch.equal(run(inpaint, **settings), plain)
        with dato.accelerate(inpaint, PRUNED):
            assert torch.isfinite(run(inpaint, **settings)).all()

    def test_a_pipeline_that_shares_the_unet_follows_from_its_own_start(self, pipe: Any) -> None:
        use(pipe, "DDIMScheduler")
        other = sharing(pipe, StableDiffusionImg2ImgPipeline)
        with dato.accelerate(pipe, Strategy((*[Step(FULL)] * 3, Step(1), Step(1), Step(0)))):
            run(pipe)
            other("x", image=torch.rand(1, 3, 32, 32), strength=0.5, num_inference_steps=6, output_type="latent")
            report = report_of(pipe)
        assert report.finished
        assert report.calls_by_depth == {FULL: 1, 1: 1, 0: 1}

    def test_sdxl_base_and_refiner_take_their_own_entries(self, make_layout: Callable[[str], Any]) -> None:
        pipe = use(make_layout("sdxl"), "EulerDiscreteScheduler")
        with dato.accelerate(pipe, Strategy((*[Step(FULL)] * 3, *[Step(1)] * 3))):
            run(pipe, denoising_end=0.5)
            report = report_of(pipe)
        assert report.calls_by_depth == {FULL: 3}
        assert report.finished

    def test_several_images_a_prompt_and_odd_sizes(self, pipe: Any) -> None:
        with dato.accelerate(pipe, PRUNED):
            several = pipe("x", num_images_per_prompt=3, num_inference_steps=STEPS, height=40, width=24, output_type="latent").images
            assert several.shape == (3, 4, 20, 12)
            for height, width in ((40, 24), (16, 48), (72, 56), (32, 32)):
                assert run(pipe, height=height, width=width).shape[-2:] == (height // 2, width // 2)

    @pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
    def test_second_order_samplers_take_one_entry_for_both_calls(self, pipe: Any, name: str) -> None:
        use(pipe, name)
        plain = run(pipe)
        with dato.accelerate(pipe, Strategy.full(STEPS)):
            assert torch.equal(run(pipe), plain)
        with dato.accelerate(pipe, Strategy((Step(FULL), Step(1), Step(0), Step(FULL), Step(1), Step(1)))):
            run(pipe)
            report = report_of(pipe)
        assert report.calls_by_depth == {FULL: 4, 1: 5, 0: 2}

    def test_few_steps_of_lcm(self, make_pipe: Callable[..., Any]) -> None:
        pipe = use(make_pipe(time_cond_proj_dim=32), "LCMScheduler")
        plain = run(pipe, num_inference_steps=4)
        with dato.accelerate(pipe, Strategy.full(4)):
            assert torch.equal(run(pipe, num_inference_steps=4), plain)
        with dato.accelerate(pipe, Strategy.uniform(4, 2, prune_ratio=0.3)):
            assert torch.isfinite(run(pipe, num_inference_steps=4)).all()

    def test_three_way_guidance_is_refused(self, pipe: Any) -> None:
        pag = sharing(pipe, StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
        with pytest.raises(ValueError, match="guides three ways"):
            dato.enable(pag, PRUNED)
        with pytest.raises(ValueError, match="without PAG"):
            dato.enable(pag, PRUNED, Options(align="none"))


class TestRefusals:
    def test_t2i_adapter_and_shallow_calls(self, pipe: Any) -> None:
        adapter = T2IAdapter(in_channels=3, channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=2)
        with_adapter = sharing(pipe, StableDiffusionAdapterPipeline, adapter=adapter)
        with pytest.raises(ValueError, match="StableDiffusionAdapterPipeline: T2I-Adapter residuals do not work with cached features; use cache depths 12 and 0 only"):
            dato.enable(with_adapter, PRUNED)
        dato.enable(with_adapter, Strategy((Step(FULL), Step(0)) * 3))

    def test_gligen_and_shallow_calls(self, make_pipe: Callable[..., Any]) -> None:
        pipe = make_pipe(attention_type="gated")
        with pytest.raises(ValueError, match="GLIGEN does not work with cached features; use cache depths 12 and 0 only"):
            dato.enable(pipe, PRUNED)
        dato.enable(pipe, Strategy((Step(FULL), Step(0)) * 3))

    @torch.inference_mode()
    def test_a_self_attention_mask(self, pipe: Any) -> None:
        use(pipe, "DDIMScheduler").scheduler.set_timesteps(STEPS)
        pipe._guidance_scale = 1.0
        mask = {"attention_mask": torch.ones(1, 256)}
        with dato.accelerate(pipe, PRUNED), pytest.raises(ValueError, match=r"token pruning cannot follow a self-attention mask: use prune_ratio 0, or dato.disable\(pipe\)"):
            pipe.unet(torch.ones(1, 4, 16, 16), pipe.scheduler.timesteps[0], torch.ones(1, 7, 64), **mask)


class TestCompile:
    def test_a_compiled_unet_is_refused_with_the_way_out(self, make_pipe: Callable[..., Any]) -> None:
        whole, in_place, regional = make_pipe(), make_pipe(), make_pipe()
        whole.unet = torch.compile(whole.unet)
        in_place.unet.compile()
        regional.unet.up_blocks[3].attentions[2].transformer_blocks[0].compile()
        for pipe in (whole, in_place, regional):
            with pytest.raises(ValueError, match=r'plain UNet.*dato.Options\(compile="default"\)'):
                dato.enable(pipe, PRUNED)
        with pytest.raises(ValueError, match="compile is 'fast'; allowed are None, 'default'"):
            Options(compile="fast")

    @pytest.mark.parametrize("how", ["whole", "in place"])
    def test_a_unet_compiled_after_enabling_is_refused_when_a_run_begins(self, pipe: Any, how: str) -> None:
        plain, unet = run(pipe), pipe.unet
        with dato.accelerate(pipe, PRUNED):
            run(pipe)
            if how == "whole":
                pipe.unet = torch.compile(unet, backend="eager")
            else:
                unet.compile(backend="eager")
            with pytest.raises(ValueError, match=r'plain UNet.*dato.Options\(compile="default"\)'):
                run(pipe)
        pipe.unet, unet._compiled_call_impl = unet, None
        assert torch.equal(run(pipe), plain)

    @pytest.mark.slow
    @pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler and Python's headers (apt-get install g++ python3-dev)")
    def test_one_graph_for_each_distinct_action(self, pipe: Any) -> None:
        from torch._dynamo.utils import counters

        strategy = Strategy((Step(FULL), Step(1, 0.5), Step(0), Step(1, 0.5), Step(FULL), Step(1), *[Step(1, 0.0, "cond", order) for order in (0, 0, 1, 2)]))
        use(pipe, "DDIMScheduler")
        with dato.accelerate(pipe, strategy):
            eager = run(pipe, num_inference_steps=len(strategy))
        torch._dynamo.reset()
        counters.clear()
        with dato.accelerate(pipe, strategy, Options(compile="default")):
            first = run(pipe, num_inference_steps=len(strategy))
            graphs = counters["stats"]["unique_graphs"]
            again = run(pipe, num_inference_steps=len(strategy))
            report = report_of(pipe)
        # Full, d=1 pruned, d=1, and of the conditional half with what is reused as it is, and extrapolated by either order.
        assert graphs == 5
        assert counters["stats"]["unique_graphs"] == 5
        assert report.tokens_pruned[report.layers[-1]] == 2 * 2 * 128
        assert torch.equal(first, again)
        assert torch.allclose(first, eager, atol=1e-3 * float(eager.abs().max()))


def test_a_deep_copy_of_the_weights_is_not_needed(pipe: Any) -> None:
    """Enabling neither copies nor moves parameters."""
    before = {name: p.data_ptr() for name, p in pipe.unet.named_parameters()}
    weights = copy.deepcopy(pipe.unet.state_dict())
    with dato.accelerate(pipe, PRUNED):
        run(pipe)
        assert {name: p.data_ptr() for name, p in pipe.unet.named_parameters()} == before
    assert all(torch.equal(weights[k], v) for k, v in pipe.unet.state_dict().items())
