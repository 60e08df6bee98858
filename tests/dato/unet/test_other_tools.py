"""Other tools that wrap or replace forwards of the UNet: undone beside them, run through them, or refused by name."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import (
    FasterCacheConfig,
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_layerwise_casting,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from diffusers.hooks import ModelHook as DiffusersHook

import dato
from dato import FULL, Step, Strategy
from tests.dato.conftest import PRUNED, STEPS, report_of, run, untouched, use

REPLAYED = Strategy((Step(FULL), Step(0), Step(0)) * 2)


@pytest.fixture
def pipe(make_pipe: Callable[..., Any]) -> Any:
    return use(make_pipe(), "DDIMScheduler", clip_sample=False)


def accelerated(pipe: Any, strategy: Strategy) -> torch.Tensor:
    with dato.accelerate(pipe, strategy):
        return run(pipe)


def wrap(unet: Any, seen: list[int] | None = None) -> None:
    inner = unet.forward

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if seen is not None:
            seen.append(1)
        return inner(*args, **kwargs)

    unet.forward = wrapper


def deepcache(pipe: Any, interval: int = 3) -> Any:
    helper = pytest.importorskip("DeepCache", reason="the extra 'baselines' is not installed").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    return helper


class TestAroundOurs:
    def test_runs_through_it_and_nothing_of_an_earlier_strategy_is_left(self, pipe: Any) -> None:
        plain, seen = run(pipe), []
        expected = {s.digest: accelerated(pipe, s) for s in (REPLAYED, PRUNED)}
        dato.enable(pipe, REPLAYED)
        wrap(pipe.unet, seen)
        assert torch.equal(run(pipe), expected[REPLAYED.digest])
        assert (len(seen), report_of(pipe).calls_by_depth) == (STEPS, {FULL: 2, 0: 4})
        dato.enable(pipe, PRUNED)
        assert torch.equal(run(pipe), expected[PRUNED.digest])
        with dato.accelerate(pipe, REPLAYED):
            assert torch.equal(run(pipe), expected[REPLAYED.digest])
        assert torch.equal(run(pipe), expected[PRUNED.digest])
        for _ in range(2):
            dato.disable(pipe)
            assert dato.status(pipe) is None
            assert torch.equal(run(pipe), plain)
            dato.enable(pipe, REPLAYED)
            assert torch.equal(run(pipe), expected[REPLAYED.digest])
        dato.disable(pipe)
        del pipe.unet.forward  # the tool is gone
        assert untouched(pipe.unet)
        assert torch.equal(accelerated(pipe, PRUNED), expected[PRUNED.digest])

    def test_hooks_around_the_tool(self, pipe: Any) -> None:
        plain, expected = run(pipe), accelerated(pipe, PRUNED)
        dato.enable(pipe, REPLAYED)
        wrap(pipe.unet)
        HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(DiffusersHook(), "another")
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)
        dato.enable(pipe, PRUNED)
        assert torch.equal(run(pipe), expected)
        pipe.unet._diffusers_hook.remove_hook("another")
        assert torch.equal(run(pipe), expected)
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)

    def test_one_that_answers_by_itself_is_noticed_with_the_way_out(self, pipe: Any) -> None:
        dato.enable(pipe, REPLAYED)
        plain = types.MethodType(type(pipe.unet).forward, pipe.unet)
        pipe.unet.forward = lambda *args, **kwargs: plain(*args, **kwargs)
        with pytest.raises(RuntimeError, match=r"wrapped.*<lambda>.*dato.disable\(pipe\), remove that tool, and call dato.enable"):
            run(pipe)
        with pytest.raises(ValueError, match="<lambda> is in the place of the forward of the UNet itself"):
            dato.enable(pipe, PRUNED)

    def test_deepcache(self, pipe: Any) -> None:
        plain, expected = run(pipe), accelerated(pipe, PRUNED)
        helper = deepcache(pipe)
        theirs = run(pipe)
        helper.disable()
        dato.enable(pipe, PRUNED)
        helper = deepcache(pipe)
        for attempt in (lambda: run(pipe), lambda: dato.enable(pipe, REPLAYED)):
            with pytest.raises(ValueError, match=r"DeepCache is on: call helper.disable\(\) first"):
                attempt()
        dato.disable(pipe)
        assert torch.equal(run(pipe), theirs)
        helper.disable()
        assert torch.equal(run(pipe), plain)
        # DeepCache leaves an attribute on each resnet, and such a one is not split, which rounds differently.
        assert torch.allclose(accelerated(pipe, PRUNED), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_hook_beneath_that_is_taken_off_stays_off(pipe: Any) -> None:
    seen: list[int] = []

    class Counting(DiffusersHook):
        def pre_forward(self, _module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            return args, kwargs

    registry = HookRegistry.check_if_exists_or_initialize(pipe.unet)
    registry.register_hook(Counting(), "counting")
    dato.enable(pipe, PRUNED)
    registry.remove_hook("counting")
    run(pipe)
    dato.disable(pipe)
    run(pipe)
    assert not seen


def pyramid(unet: Any) -> None:
    settings = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 2000), "spatial_attention_block_identifiers": ("attentions",)}
    apply_pyramid_attention_broadcast(unet, PyramidAttentionBroadcastConfig(**settings, current_timestep_callback=lambda: 500))


def taylorseer(unet: Any) -> None:
    apply_taylorseer_cache(unet, TaylorSeerCacheConfig(cache_identifiers=[r".*attn1$"]))


def faster_cache(unet: Any) -> None:
    settings = {"spatial_attention_block_skip_range": 2, "spatial_attention_block_identifiers": ("attentions",)}
    apply_faster_cache(unet, FasterCacheConfig(**settings, current_timestep_callback=lambda: 500, tensor_format="BCHW"))


def own_forward(module: Any) -> None:
    inner = module.forward
    module.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def bound(module: Any) -> None:
    module.forward = types.MethodType(lambda self, *args, **kwargs: type(self).forward(self, *args, **kwargs), module)


def named_alike(unet: Any) -> None:
    unet.forward = torch.autocast("cpu", torch.bfloat16)(unet.forward)


class Subclass(UNet2DConditionModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def subclass(unet: Any) -> None:
    unet.__class__ = Subclass


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "PAB": (pyramid, r'PyramidAttentionBroadcastHook.*attn1.*remove_hook\("pyramid_attention_broadcast"\)'),
    "TaylorSeer": (taylorseer, r'TaylorSeerCacheHook.*remove_hook\("taylorseer_cache"\)'),
    "FasterCache": (faster_cache, r'FasterCache\w+Hook.*remove_hook\("faster_cache_\w+"\)'),
    "block": (lambda u: own_forward(u.up_blocks[3]), r"own_forward.*up_blocks.3 \(CrossAttnUpBlock2D\).*Remove that tool first"),
    "middle": (lambda u: own_forward(u.mid_block), r"own_forward.*mid_block"),
    "resnet": (lambda u: own_forward(u.up_blocks[3].resnets[0]), r"own_forward.*up_blocks.3.resnets.0"),
    "attention": (lambda u: bound(u.up_blocks[3].attentions[0].transformer_blocks[0].attn1), "attn1"),
    "wrapped before ours": (named_alike, r"torch.amp.autocast_mode.*decorate_autocast is in the place of the forward of the UNet itself"),
    "the class's": (subclass, "Subclass.forward is in the place of the forward of the UNet itself"),
}


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_before(self, pipe: Any, name: str) -> None:
        tool, message = REFUSED[name]
        tool(pipe.unet)
        with pytest.raises(ValueError, match=message):
            dato.enable(pipe, PRUNED)
        assert dato.status(pipe) is None

    @pytest.mark.parametrize("name", [n for n in REFUSED if n != "wrapped before ours"])
    def test_within_a_run(self, pipe: Any, name: str) -> None:
        tool, message = REFUSED[name]

        def put_on(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                tool(_pipe.unet)
            return kwargs

        dato.enable(pipe, PRUNED)
        with pytest.raises(ValueError, match=message):
            run(pipe, callback_on_step_end=put_on)
        assert report_of(pipe).calls == 2

    def test_the_unet_is_wrapped_before(self, pipe: Any) -> None:
        wrap(pipe.unet)
        with pytest.raises(ValueError, match=r"wrapper is in the place of the forward of the UNet itself.*Remove that tool first"):
            dato.enable(pipe, PRUNED)
        assert not hasattr(pipe.unet, "_diffusers_hook")

    def test_what_was_taken_off_is_harmless(self, pipe: Any) -> None:
        expected = accelerated(pipe, PRUNED)
        pyramid(pipe.unet)
        HookRegistry.check_if_exists_or_initialize(pipe.unet).remove_hook("pyramid_attention_broadcast")
        assert torch.equal(accelerated(pipe, PRUNED), expected)


def test_what_casts_weights_and_what_is_on_single_layers_goes_on(pipe: Any, make_pipe: Callable[..., Any]) -> None:
    other = use(make_pipe(), "DDIMScheduler", clip_sample=False)
    for p, before in ((pipe, True), (other, False)):
        if not before:
            dato.enable(p, PRUNED)
        apply_layerwise_casting(p.unet, storage_dtype=torch.float16, compute_dtype=torch.float32)
        own_forward(p.unet.up_blocks[3].attentions[0].transformer_blocks[0].attn1.to_q)  # as scripts for LoRA do
        if before:
            dato.enable(p, PRUNED)
    assert torch.equal(run(pipe), run(other))
