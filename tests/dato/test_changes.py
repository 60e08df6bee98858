"""Weights, modules, batch, guidance and size that change within a run: what was kept of them holds or is dropped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tomesd
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from peft import LoraConfig
from torch import nn

import dato
from dato import FULL, Options, Step, Strategy
from dato.units import Layout, bind_call, run_shallow, unit_output
from tests.dato.conftest import STEPS, run, use

SHALLOW = Strategy((Step(FULL), *[Step(2)] * (STEPS - 1)))
MIXED = Strategy((Step(FULL), Step(1), Step(1), Step(0), Step(1), Step(1)))
PRUNED = Strategy.uniform(STEPS, 3, depth=2, prune_ratio=0.5)
Change = Callable[[Any], None]


class Naive:
    """Caching by depth with nothing clever: modules are looked up anew in each call, and no half is kept."""

    def __init__(self, pipe: Any, strategy: Strategy) -> None:
        self.pipe = pipe
        self.unet, self.original = pipe.unet, pipe.unet.forward
        self.depths = [s.cache_depth for s in strategy]
        self.cached: dict[int, torch.Tensor] = {}
        self.prediction: torch.Tensor | None = None
        self.given: tuple[Any, ...] = ()
        self.made: list[int] = []
        pipe.unet.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = bind_call(self.unet, args, kwargs)
        layout, shape = Layout.of(self.unet), (*call["sample"].shape, self.pipe.do_classifier_free_guidance)
        depth = self.depths[len(self.made)]
        if self.given == (2 * shape[0], *shape[1:4], True) and not shape[4]:  # guidance off: the conditional half is the second
            self.cached = {d: x.chunk(2)[1] for d, x in self.cached.items()}
            self.prediction = None if self.prediction is None else self.prediction.chunk(2)[1]
        elif self.given != shape:
            self.cached, self.prediction = {}, None
        self.given = shape
        if (depth == 0 and self.prediction is None) or (0 < depth < FULL and depth not in self.cached):
            depth = FULL
        handles = []
        for d in set(self.depths) - {0, FULL}:
            handles.append(layout.outputs[d].last.register_forward_hook(lambda _m, _a, out, d=d: self.cached.__setitem__(d, unit_output(out).clone())))
        if depth == FULL:
            self.prediction = self.original(*args, **{**kwargs, "return_dict": False})[0]
        elif depth:
            self.prediction = run_shallow(layout, depth, self.cached[depth], call)
        for handle in handles:
            handle.remove()
        self.made.append(depth)
        return (self.prediction,)


def changing(at: int, change: Change) -> dict[str, Any]:
    def callback(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            change(pipe)
        return kwargs

    return {"callback_on_step_end": callback}


def naive(pipe: Any, strategy: Strategy, **settings: Any) -> tuple[torch.Tensor, list[int]]:
    reference = Naive(pipe, strategy)
    result = run(pipe, **settings)
    del pipe.unet.forward
    return result, reference.made


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())


# -- weights and modules -----------------------------------------------------------------------------------------------


def split_resnet(pipe: Any) -> Any:
    """The resnet that calls at depth 2 begin with: the one whose halves are kept."""
    return pipe.unet.up_blocks[3].resnets[1]


def add_lora(pipe: Any) -> None:
    torch.manual_seed(3)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=16, target_modules=["conv1", "conv_shortcut", "conv_in", "to_q"], init_lora_weights=False))
    pipe.unet.to(torch.float64)


def fuse(pipe: Any) -> None:
    pipe.unet.fuse_lora()


def unfuse(pipe: Any) -> None:
    pipe.unet.unfuse_lora()


def unload(pipe: Any) -> None:
    pipe.unet.unload_lora()


def fuse_and_unload(pipe: Any) -> None:
    """The same convolutions with other weights, which were written through `.data`: nothing marks them."""
    add_lora(pipe)
    fuse(pipe)
    unload(pipe)


def in_place(pipe: Any) -> None:
    for p in split_resnet(pipe).parameters():
        p.data.mul_(1.5)


def load_weights(pipe: Any) -> None:
    pipe.unet.load_state_dict({k: 1.2 * v for k, v in pipe.unet.state_dict().items()})


def assign_weights(pipe: Any) -> None:
    pipe.unet.load_state_dict({k: 1.2 * v for k, v in pipe.unet.state_dict().items()}, assign=True)


def exchange_resnet(pipe: Any) -> None:
    new = copy.deepcopy(split_resnet(pipe))
    for p in new.parameters():
        p.data.mul_(1.5)
    pipe.unet.up_blocks[3].resnets[1] = new


def exchange_block(pipe: Any) -> None:
    new = copy.deepcopy(pipe.unet.up_blocks[3])
    for module in new.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for p in new.parameters():
        p.data.mul_(1.1)
    pipe.unet.up_blocks[3] = new


def seamless(pipe: Any) -> None:
    for module in pipe.unet.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def freeu(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def freeze_norm(pipe: Any) -> None:
    split_resnet(pipe).norm1.eps = 0.5


def nonlinearity(pipe: Any) -> None:
    split_resnet(pipe).nonlinearity = nn.GELU()


CHANGES: dict[str, tuple[Change | None, Change]] = {
    "LoRA added": (None, add_lora),
    "LoRA fused": (add_lora, fuse),
    "LoRA unfused": (lambda p: (add_lora(p), fuse(p)), unfuse),
    "LoRA unloaded": (add_lora, unload),
    "LoRA fused and unloaded": (None, fuse_and_unload),
    "fused LoRA unloaded": (lambda p: (add_lora(p), fuse(p)), unload),
    "LoRA scaled": (add_lora, lambda p: p.unet.set_adapters("default", 0.3)),
    "LoRA switched off": (add_lora, lambda p: p.unet.disable_adapters()),
    "written in place": (None, in_place),
    "state loaded": (None, load_weights),
    "state assigned": (None, assign_weights),
    "resnet exchanged": (None, exchange_resnet),
    "block exchanged": (None, exchange_block),
    "padding": (None, seamless),
    "FreeU": (None, freeu),
    "no more FreeU": (freeu, lambda p: p.disable_freeu()),
    "epsilon": (None, freeze_norm),
    "nonlinearity": (None, nonlinearity),
}


@pytest.fixture
def make(make_pipe: Callable[..., Any]) -> Callable[[], Any]:
    """Pipelines in double precision, so that what is only rounding is told from what is wrong."""
    return lambda: use(make_pipe().to(torch.float64), "DDIMScheduler", clip_sample=False)


SAME_FUNCTION = {"LoRA fused", "LoRA unfused", "fused LoRA unloaded"}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_kept_of_weights_does_not_outlive_them(make: Callable[[], Any], name: str) -> None:
    before, change = CHANGES[name]
    depth = 8 if "FreeU" in name else 2  # FreeU is for the inner blocks
    strategy = Strategy((Step(FULL), *[Step(depth)] * (STEPS - 1)))
    results = {}
    for way in ("untouched", "naive", "dato"):
        pipe = make()
        if before is not None:
            before(pipe)
        settings = changing(2, change) if way != "untouched" else {}
        if way != "dato":
            results[way], _ = naive(pipe, strategy, **settings)
            continue
        with dato.accelerate(pipe, strategy):
            results[way] = run(pipe, **settings)
            report = dato.status(pipe)
        assert report is not None
        assert report.calls_by_depth == {FULL: 1, depth: STEPS - 1}
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    assert close(results["dato"], results["naive"])
    assert close(results["naive"], results["untouched"]) == (name in SAME_FUNCTION)


def test_a_change_between_two_uses_of_a_half_is_seen_at_each(make: Callable[[], Any]) -> None:
    def again(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        for p in _pipe.unet.up_blocks[3].parameters():
            p.data.mul_(1.0 + 0.05 * (-1) ** step)
        return kwargs

    pipe, other = make(), make()
    expected, _ = naive(pipe, MIXED, callback_on_step_end=again)
    with dato.accelerate(other, MIXED):
        assert close(run(other, callback_on_step_end=again), expected)


def test_modules_exchanged_between_runs_are_hooked_anew(make: Callable[[], Any]) -> None:
    pipe, other = make(), make()
    exchange_block(other)
    with dato.accelerate(other, PRUNED):
        expected = run(other)
        pruned = dato.status(other)
    dato.enable(pipe, PRUNED)
    run(pipe)
    exchange_block(pipe)
    assert torch.equal(run(pipe), expected)
    report = dato.status(pipe)
    assert report is not None
    assert pruned is not None
    assert report.tokens_pruned == pruned.tokens_pruned
    dato.disable(pipe)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


@pytest.mark.parametrize("setting", [{"padding_mode": "circular"}, {"padding_mode": "reflect"}])
def test_a_convolution_of_another_kind_is_not_split(make: Callable[[], Any], setting: dict[str, Any]) -> None:
    pipe, other = make(), make()
    for p in (pipe, other):
        for module in p.unet.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                vars(module).update(setting)
    expected, _ = naive(pipe, SHALLOW)
    with dato.accelerate(other, SHALLOW):
        assert close(run(other), expected)


# -- batch, guidance and size ------------------------------------------------------------------------------------------


def guidance(off: int | None, on: int | None) -> dict[str, Any]:
    """Guidance switched off after one step and on after another."""
    kept: list[torch.Tensor] = []

    def callback(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        embeds = kwargs["prompt_embeds"]
        if step == off:
            kept[:] = [embeds]
            pipe._guidance_scale, kwargs["prompt_embeds"] = 0.0, embeds.chunk(2)[1]
        elif step == on:
            pipe._guidance_scale, kwargs["prompt_embeds"] = 3.0, kept[0] if kept else torch.cat([0.5 * embeds, embeds])
        return kwargs

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


def larger(at: int, size: tuple[int, int] = (24, 20)) -> dict[str, Any]:
    def callback(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            kwargs["latents"] = nn.functional.interpolate(kwargs["latents"], size=size)
        return kwargs

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents"]}


def fewer_images(at: int, keep: int) -> dict[str, Any]:
    """One of two images goes on."""

    def callback(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            kwargs["latents"] = kwargs["latents"][keep : keep + 1]
            halves = kwargs["prompt_embeds"].chunk(2) if _pipe.do_classifier_free_guidance else (kwargs["prompt_embeds"],)
            kwargs["prompt_embeds"] = torch.cat([h[keep : keep + 1] for h in halves])
        return kwargs

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}


def unguided(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "guidance_scale": 1.0}


WITHIN: dict[str, tuple[Callable[[], dict[str, Any]], tuple[int, ...]]] = {
    "guidance off": (lambda: guidance(1, None), (0,)),
    "guidance off and on": (lambda: guidance(1, 3), (0,)),
    "guidance on": (lambda: unguided(guidance(None, 1)), (0,)),
    "guidance off and on at once": (lambda: guidance(1, 2), (0, 1)),
    "larger": (lambda: larger(1), (0,)),
    "smaller, last step": (lambda: larger(STEPS - 2, (8, 12)), (0,)),
    "the first of two images": (lambda: fewer_images(1, 0), (0, 1)),
    "the second of two images": (lambda: fewer_images(2, 1), (0, 1)),
    "the first of two images, unguided": (lambda: unguided(fewer_images(1, 0)), (0, 1)),
}


@pytest.mark.parametrize("name", WITHIN)
class TestWithinARun:
    def test_a_full_strategy_is_the_plain_pipeline(self, make: Callable[[], Any], name: str) -> None:
        settings, seeds = WITHIN[name]
        pipe = make()
        plain = run(pipe, seeds, **settings())
        with dato.accelerate(pipe, Strategy.full(STEPS)):
            assert torch.equal(run(pipe, seeds, **settings()), plain)
            report = dato.status(pipe)
        assert report is not None
        assert report.finished
        assert torch.equal(run(pipe, seeds, **settings()), plain)

    @pytest.mark.parametrize("strategy", [SHALLOW, MIXED, Strategy((Step(FULL), Step(0), Step(3), Step(0), Step(1), Step(0)))], ids=["shallow", "mixed", "replayed"])
    def test_what_does_not_fit_is_forgotten(self, make: Callable[[], Any], name: str, strategy: Strategy) -> None:
        settings, seeds = WITHIN[name]
        expected, made = naive(make(), strategy, seeds=seeds, **settings())
        pipe = make()
        with dato.accelerate(pipe, strategy):
            assert close(run(pipe, seeds, **settings()), expected)
            report = dato.status(pipe)
        assert report is not None
        assert report.calls_by_depth == {d: made.count(d) for d in set(made)}

    def test_pruned(self, make: Callable[[], Any], name: str) -> None:
        settings, seeds = WITHIN[name]
        for options in (Options(), Options(diff_source="feature"), Options(align="uncond", plan_per="layer", score_noise=0.1)):
            pipe = make()
            with dato.accelerate(pipe, PRUNED, options):
                first = run(pipe, seeds, **settings())
                assert torch.isfinite(first).all()
                assert torch.equal(run(pipe, seeds, **settings()), first)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_whichever_image_goes_on_the_next_call_is_full(make: Callable[[], Any], scale: float, keep: int) -> None:
    pipe = make()
    strategy = Strategy((Step(FULL), Step(1), Step(0), Step(FULL), Step(FULL), Step(FULL)))
    forced = Strategy((Step(FULL), Step(1), Step(FULL), Step(FULL), Step(FULL), Step(FULL)))
    results = []
    for s in (strategy, forced):
        with dato.accelerate(pipe, s):
            results.append(run(pipe, (0, 1), **{**fewer_images(1, keep), "guidance_scale": scale}))
    assert torch.equal(*results)


def test_the_next_call_after_a_change_prunes_at_random_until_two_predictions_fit(make: Callable[[], Any]) -> None:
    pipe = make()
    with dato.accelerate(pipe, Strategy((Step(FULL, 0.5),) * STEPS)):
        run(pipe, **larger(2))
        report = dato.status(pipe)
    assert report is not None
    # 3 calls at 16 x 16 tokens and 3 at 24 x 20, each of a batch of 2, half of them pruned.
    assert set(report.tokens_pruned.values()) == {3 * 2 * 128 + 3 * 2 * 240}


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("name", ["guidance off", "guidance off and on", "guidance on", "larger"])
def test_a_controlnet_is_run_where_its_residuals_are_needed(make: Callable[[], Any], name: str, guess: bool) -> None:
    def build() -> Any:
        base = make()
        torch.manual_seed(5)
        net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False).eval()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
        parts = {k: v for k, v in base.components.items() if k != "image_encoder"}
        pipe = StableDiffusionControlNetPipeline(**parts, controlnet=net.double(), requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def settings() -> dict[str, Any]:
        found = WITHIN[name][0]()
        inner = found["callback_on_step_end"]

        def callback(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            guided = pipe.do_classifier_free_guidance
            kwargs = inner(pipe, step, t, kwargs)
            if not guess and guided and not pipe.do_classifier_free_guidance:
                kwargs["image"] = kwargs["image"].chunk(2)[1]
            elif not guess and not guided and pipe.do_classifier_free_guidance:
                kwargs["image"] = torch.cat([kwargs["image"]] * 2)
            size = kwargs["latents"].shape[-2:]
            kwargs["image"] = nn.functional.interpolate(kwargs["image"], size=(2 * size[0], 2 * size[1]))
            return kwargs

        names = ["latents", "prompt_embeds", "image"]
        return {**found, "image": torch.ones(1, 3, 32, 32, dtype=torch.float64), "guess_mode": guess, "callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}

    strategy = Strategy((Step(FULL), *[Step(0)] * (STEPS - 1)))
    expected, made = naive(build(), strategy, **settings())
    pipe = build()
    with dato.accelerate(pipe, strategy):
        assert close(run(pipe, **settings()), expected)
        report = dato.status(pipe)
    assert report is not None
    assert report.calls_by_depth == {d: made.count(d) for d in set(made)}
    assert 0 < report.controls_skipped <= made.count(0)


# -- tokens ------------------------------------------------------------------------------------------------------------


class TestTokens:
    @pytest.mark.parametrize("when", ["before", "after", "within"])
    def test_merged_ones_are_refused_with_what_to_remove(self, make: Callable[[], Any], when: str) -> None:
        pipe = make()
        with dato.accelerate(pipe, PRUNED):
            expected = run(pipe)
        merge = lambda p: tomesd.apply_patch(p, ratio=0.5)  # noqa: E731
        if when == "before":
            merge(pipe)
        dato.enable(pipe, PRUNED)
        if when == "after":
            merge(pipe)
        with pytest.raises(ValueError, match=r"attn1 is given 2 x 128 tokens, where this call has 2 x 256, on a grid of 16 x 16.*tomesd.remove_patch\(pipe\).*prune_ratio 0"):
            run(pipe, **(changing(1, merge) if when == "within" else {}))
        tomesd.remove_patch(pipe)
        assert torch.equal(run(pipe), expected)

    def test_merging_beside_caching_alone_goes_on_working(self, make: Callable[[], Any]) -> None:
        pipe, other = make(), make()
        for p in (pipe, other):
            tomesd.apply_patch(p, ratio=0.5, use_rand=False)
        plain = run(pipe)
        with dato.accelerate(pipe, Strategy.full(STEPS)):
            assert torch.equal(run(pipe), plain)
        expected, _ = naive(other, SHALLOW)
        with dato.accelerate(pipe, SHALLOW):
            assert close(run(pipe), expected)

    def test_tiles_in_the_batch_are_refused(self, make: Callable[[], Any]) -> None:
        pipe = make()
        pipe.unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1.register_forward_hook(lambda _m, _a, out: out.unflatten(1, (4, -1)).flatten(0, 1))
        with dato.accelerate(pipe, PRUNED), pytest.raises(ValueError, match=r"given 8 x 64 tokens, where this call has 2 x 256.*remove the tool that merges, splits or tiles"):
            run(pipe)
