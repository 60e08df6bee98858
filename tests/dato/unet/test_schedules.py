"""Guidance and orders of extrapolation: a run is what its strategy says, step by step, on real pipelines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import dato
from dato import FULL, Options, Step, Strategy
from dato.call_plan import plan_calls
from tests.dato.conftest import add_ip_adapter, add_lora, cast, report_of, run, sharing, use, with_controlnet
from tests.dato.unet.naive import close, naive_steps


@pytest.fixture(scope="module")
def pipes(make_layout: Callable[[str], Any]) -> dict[str, Any]:
    """A pipeline of each layout in double precision, so that what is only rounding is told from what is wrong."""
    return {name: use(cast(make_layout(name), torch.float64), "DDIMScheduler", clip_sample=False) for name in ("sd15", "sdxl")}


def check(
    pipe: Any, steps: Sequence[Step], options: Options | None = None, *, calls: Sequence[Step] | None = None, start: int = 0, within: float = 1e-9,
    runs: Callable[..., torch.Tensor] = run, **given: Any,
) -> dato.RunReport:  # fmt: skip
    """Ours is the naive run of these calls, one for each step where none are given, and did what was foreseen."""
    strategy, calls = Strategy(tuple(steps)), calls or steps
    given = {"num_inference_steps": len(steps), **given}
    expected, made = naive_steps(pipe, calls[start:], options, runs, **given)
    with dato.accelerate(pipe, strategy, options):
        assert close(runs(pipe, **given), expected, within)
        report = report_of(pipe)
    assert report.finished
    assert report.calls_by_depth == Counter(s.cache_depth for s in made)
    assert report.conditional_alone == sum(s.guidance == "cond" and s.cache_depth > 0 for s in made)
    foreseen = plan_calls(strategy, len(calls), pipe.scheduler.order, start, pipe.do_classifier_free_guidance)
    assert [(p.step.cache_depth, p.step.guidance) for p in foreseen] == [(s.cache_depth, s.guidance) for s in made]
    return report


def every_way(depth: int, ratio: float) -> list[Step]:
    """Both guidances and all orders at a depth, after histories of one to three values and halves of different age."""

    def at(guidance: str, order: int) -> Step:
        return Step(depth, ratio, guidance, order)

    both, cond = Step(FULL, ratio), Step(FULL, ratio, "cond")
    return [both, at("both", 2), at("cond", 1), cond, at("both", 1), at("cond", 1), at("both", 0), both, at("cond", 2), at("both", 2), cond, cond, at("both", 2), at("cond", 0)]


MIXED = (Step(FULL, 0.5, "cond"), Step(1, 0.5, "cond"), Step(0, 0.0, "both", 1), Step(2, 0.5, "both", 1), Step(1, 0.0, "cond", 2), Step(FULL), Step(0, 0.0, "cond", 1), Step(2, 0.5), Step(0, 0.0, "both", 2))
"""Begins with the conditional half alone, so that the first call of both halves is full too."""


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize(("layout", "depth"), [("sd15", d) for d in (0, 1, 2, 6, 11, FULL)] + [pytest.param("sdxl", d, marks=pytest.mark.slow) for d in (0, 1, 4, 8)])
def test_every_depth_guidance_and_order(pipes: dict[str, Any], layout: str, depth: int, ratio: float) -> None:
    check(pipes[layout], every_way(depth, ratio), seeds=(0, 1) if depth == 2 else (0,))


STEP = st.builds(Step, st.sampled_from([0, 0, 1, 2, 5, FULL]), st.sampled_from([0.0, 0.5]), st.sampled_from(["both", "cond"]), st.sampled_from([0, 1, 2]))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(STEP, min_size=2, max_size=9), st.sampled_from([1.0, 3.0]))
def test_any_strategy(pipes: dict[str, Any], steps: list[Step], scale: float) -> None:
    pipe, ours = pipes["sd15"], []
    check(pipe, steps, guidance_scale=scale)
    strategy = Strategy(tuple(steps), sampler="DDIM")
    for same in (strategy, strategy.canonical(guided=scale > 1)):
        with dato.accelerate(pipe, same):
            ours.append(run(pipe, num_inference_steps=len(steps), guidance_scale=scale))
    assert close(*ours), "what is written one way does the same"


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_both_layouts_and_that_it_is_exactly_undone(pipes: dict[str, Any], layout: str) -> None:
    plain = run(pipes[layout])
    check(pipes[layout], MIXED, seeds=(0, 1))
    assert torch.equal(run(pipes[layout]), plain)


@pytest.mark.parametrize("options", [Options(diff_source="feature"), Options(align="uncond"), Options(align="none", plan_per="layer")], ids=["feature", "uncond", "none"])
def test_each_half_compares_its_own_outputs(pipes: dict[str, Any], options: Options) -> None:
    ratios = (Step(FULL, 0.5), Step(FULL, 0.5, "cond"), Step(1, 0.5), Step(1, 0.5, "cond"), Step(FULL, 0.5), Step(1, 0.5))
    check(pipes["sd15"], ratios, options, seeds=(0, 1))


@pytest.mark.parametrize("sampler", ["PNDMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_samplers_and_their_repeated_timesteps(make_layout: Callable[[str], Any], sampler: str) -> None:
    pipe = use(cast(make_layout("sd15"), torch.float64), sampler)
    calls = {1: [MIXED[0], *MIXED] if sampler == "PNDMScheduler" else list(MIXED), 2: [s for s in MIXED for _ in range(2)][:-1]}[pipe.scheduler.order]
    check(pipe, MIXED, calls=calls, seeds=(0, 1), within=1e-5)  # samplers compute in single precision


class TestCompanions:
    """What comes into the UNet beside latents and prompts has two halves too."""

    def test_a_controlnet_computes_what_the_unet_does(self, make: Callable[[], Any]) -> None:
        pipe = with_controlnet(make())
        seen: list[int] = []
        image = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        steps = [Step(FULL), Step(FULL, 0.0, "cond"), Step(1, 0.0, "cond", 1), Step(0, 0.0, "cond"), Step(11), Step(0, 0.0, "both", 1)]
        for guess in (False, True):
            report = check(pipe, steps, image=image, guess_mode=guess)
            assert report.controls_skipped == 2
        with dato.accelerate(pipe, Strategy(tuple(steps))):
            handle = pipe.controlnet.controlnet_cond_embedding.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
            run(pipe, image=image)
            handle.remove()
        assert seen == [2, 1, 1, 2]

    def test_embeddings_of_images_for_ip_adapters(self, make_pipe: Callable[..., Any]) -> None:
        pipe = use(make_pipe(), "DDIMScheduler", clip_sample=False)
        add_ip_adapter(pipe.unet)
        pipe.to(torch.float64)
        image = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        check(pipe, MIXED, ip_adapter_image_embeds=[image])

    def test_lora_and_its_scale(self, make: Callable[[], Any]) -> None:
        pipe = make()
        add_lora(pipe.unet, ["to_q", "to_v", "conv1"])
        pipe.unet.double()
        check(pipe, MIXED, cross_attention_kwargs={"scale": 0.5})

    def test_freeu_and_channels_last(self, make: Callable[[], Any]) -> None:
        pipe = make()
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        pipe.unet.to(memory_format=torch.channels_last)
        check(pipe, MIXED)

    def test_image_to_image_and_inpainting(self, make: Callable[[], Any]) -> None:
        image = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def edit(pipe: Any, **given: Any) -> torch.Tensor:
            return pipe("x", image=image, output_type="latent", guidance_scale=3.0, generator=torch.Generator().manual_seed(0), **given).images

        check(sharing(make(), StableDiffusionImg2ImgPipeline), MIXED, runs=edit, strength=0.8, start=2)
        check(sharing(make(), StableDiffusionInpaintPipeline), MIXED, runs=edit, strength=1.0, mask_image=torch.ones(1, 1, 32, 32).double(), height=32, width=32)

    def test_pipelines_that_share_the_unet_each_by_its_own_guidance(self, make: Callable[[], Any]) -> None:
        pipe = make()
        other, strategy = sharing(pipe), Strategy(MIXED)
        other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        with dato.accelerate(pipe, strategy.canonical(guided=False)):
            unguided = run(other, num_inference_steps=len(MIXED), guidance_scale=1.0)
        with dato.accelerate(pipe, strategy):
            guided = run(pipe, num_inference_steps=len(MIXED))
            assert torch.equal(run(other, num_inference_steps=len(MIXED), guidance_scale=1.0), unguided)
            assert report_of(pipe).conditional_alone == 0
            assert torch.equal(run(pipe, num_inference_steps=len(MIXED)), guided)
            assert report_of(pipe).conditional_alone == 3


@torch.inference_mode()
def test_every_argument_of_the_unet_is_halved(make_pipe: Callable[..., Any]) -> None:
    pipe = use(make_pipe(time_cond_proj_dim=32, class_embed_type="timestep"), "DDIMScheduler")
    pipe._guidance_scale, pipe.unet.config.time_cond_proj_dim = 3.0, None  # so that it guides, by its pipeline's property
    unet, random = pipe.unet.double(), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    given = {
        "sample": draw(4, 4, 16, 16), "encoder_hidden_states": draw(4, 7, 64), "class_labels": torch.arange(4), "timestep_cond": draw(4, 32),
        "encoder_attention_mask": torch.tensor([[1.0] * 7, [1.0] * 3 + [0.0] * 4] * 2),
        "down_intrablock_additional_residuals": [draw(4, 8, 16, 16), draw(4, 16, 8, 8), draw(4, 16, 4, 4), draw(4, 16, 2, 2)],
    }  # fmt: skip
    half = {k: [x[2:] for x in v] if isinstance(v, list) else v[2:] for k, v in given.items()}
    pipe.scheduler.set_timesteps(2)
    first, second = pipe.scheduler.timesteps
    expected = unet(timestep=second, **half).sample
    with dato.accelerate(pipe, Strategy((Step(FULL), Step(FULL, 0.0, "cond")))):
        unet(timestep=first, **{**given, "down_intrablock_additional_residuals": None})
        found = unet(timestep=second.repeat(4), **given).sample
    assert close(found, torch.cat([expected, expected]))


def test_nothing_is_kept_that_no_later_call_needs(pipes: dict[str, Any]) -> None:
    pipe, seen = pipes["sd15"], []
    steps = (Step(FULL), Step(FULL), Step(1, 0.0, "cond", 1), Step(FULL), Step(0, 0.0, "cond", 2), Step(FULL, 0.5), Step(1), Step(FULL), Step(FULL))

    def look(unet: Any, _a: Any, _o: Any) -> None:
        last = unet._diffusers_hook.get_hook("dato").runs.last
        kept = last.kept
        seen.append(tuple(len(h.values) for h in (kept.values[0], kept.values[1], kept.compared)) if kept is not None else None)

    handle = pipe.unet.register_forward_hook(look)
    with dato.accelerate(pipe, Strategy(steps)):
        run(pipe, num_inference_steps=len(steps))
    handle.remove()
    # Predictions for call 4 (three values) and no later one; features for call 2 (two) and 6 (one). Call 5 alone compares, of the conditional
    # half also what call 2 computed.
    assert seen == [(1, 1, 1), (2, 2, 2), (3, 1, 3), (3, 1, 3), (0, 1, 3), (0, 1, 0), (0, 0, 0), (0, 0, 0), None]


def test_what_cannot_compute_one_half_is_refused_with_the_way_out(make: Callable[[], Any]) -> None:
    strategy = Strategy(MIXED[:2])
    fix = r'guidance "both".*replace\(s, guidance="both"\)'
    pipe = make()
    with pytest.raises(ValueError, match=rf"StableDiffusionInstructPix2PixPipeline guides three ways.*{fix}"):
        dato.enable(sharing(pipe, StableDiffusionInstructPix2PixPipeline), strategy)
    with pytest.raises(ValueError, match=rf"StableDiffusionPAGPipeline guides three ways.*{fix}"):
        dato.enable(sharing(pipe, StableDiffusionPAGPipeline, pag_applied_layers=["mid"]), strategy)
    with pytest.raises(ValueError, match=rf"SimpleNamespace does not say whether it guides \(it has no do_classifier_free_guidance\).*{fix}"):
        dato.enable(SimpleNamespace(unet=pipe.unet, scheduler=pipe.scheduler), strategy)
    pipe.scheduler.set_timesteps(2)
    first = pipe.scheduler.timesteps[0]
    with dato.accelerate(pipe, strategy):
        with pytest.raises(ValueError, match=rf"does not say whether it guides \(do_classifier_free_guidance is not set\).*{fix}"):
            pipe.unet(torch.zeros(2, 4, 16, 16).double(), first, torch.zeros(2, 7, 64).double())
        pipe._guidance_scale = 3.0
        with pytest.raises(ValueError, match=rf"calls its UNet with 3 rows.*even batch.*{fix}"):
            pipe.unet(torch.zeros(3, 4, 16, 16).double(), first, torch.zeros(3, 7, 64).double())
        pipe.unet(torch.zeros(2, 4, 16, 16).double(), first, torch.zeros(2, 7, 64).double())


def test_guidance_of_another_kind_is_left_alone(make_pipe: Callable[..., Any]) -> None:
    pipe = use(make_pipe(time_cond_proj_dim=32), "LCMScheduler")  # guidance is an embedding, and the batch has one half
    check(pipe, [Step(FULL, 0.0, "cond"), Step(1, 0.0, "cond"), Step(0), Step(1)], within=1e-3)


def test_the_status_says_how_many_calls_computed_one_half_and_were_extrapolated(make: Callable[[], Any]) -> None:
    pipe = make()
    with dato.accelerate(pipe, Strategy(MIXED)):
        run(pipe, num_inference_steps=len(MIXED))
        report = report_of(pipe)
    # Of the calls 2 to 4 the first is full, and the next one has one value of each half; call 6 has three of the conditional one.
    assert (report.conditional_alone, report.extrapolated) == (3, 4)
    for shown in (str(report), report.summary()):
        assert "3 computed the conditional half alone; 4 extrapolated" in shown
