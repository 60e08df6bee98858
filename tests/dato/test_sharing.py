"""Pipelines that share a UNet: each gets what it would get alone, or is refused by name."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)

import dato
from dato import FULL, Options, Step, Strategy
from tests.dato.conftest import PRUNED, STEPS, random_controlnet, report_of, run, runs_of, sharing, use

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
MASK = torch.zeros(1, 1, 32, 32).index_fill(3, torch.arange(16), 1.0)
WAYS: dict[str, tuple[type, dict[str, Any]]] = {
    "guided": (StableDiffusionPipeline, {"guidance_scale": 3.0}),
    "unguided": (StableDiffusionPipeline, {"guidance_scale": 1.0}),
    "img2img": (StableDiffusionImg2ImgPipeline, {"image": IMAGE, "strength": 0.7}),
    "inpaint": (StableDiffusionInpaintPipeline, {"image": IMAGE, "mask_image": MASK, "strength": 0.8, "guidance_scale": 1.0}),
    "controlnet": (StableDiffusionControlNetPipeline, {"image": IMAGE}),
}


def as_kind(pipe: Any, way: str, scheduler: Any = None) -> Any:
    """A pipeline of another kind with the same UNet."""
    parts = {"scheduler": scheduler} if scheduler is not None else {}
    if way == "controlnet":
        parts["controlnet"] = random_controlnet(pipe.unet)
    return sharing(pipe, WAYS[way][0], **parts)


def generate(pipe: Any, way: str, **changes: Any) -> torch.Tensor:
    settings = {**WAYS[way][1], **changes}
    if way in ("img2img", "inpaint"):  # their size is the image's
        settings = {"height": None, "width": None, **settings} if way == "inpaint" else settings
    if way == "img2img":
        generator = torch.Generator().manual_seed(0)
        return pipe(["a handwritten seven"], generator=generator, num_inference_steps=STEPS, output_type="latent", **{"guidance_scale": 3.0, **settings}).images
    return run(pipe, **settings)


@pytest.fixture
def fresh(make_pipe: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: use(make_pipe(), "DDIMScheduler", clip_sample=False)


@pytest.fixture
def alone(fresh: Callable[[], Any]) -> Callable[[str], torch.Tensor]:
    """What a way of running gives with the strategy enabled on its own pipeline, in the absence of any other."""

    def give(way: str) -> torch.Tensor:
        pipe = as_kind(fresh(), way)
        with dato.accelerate(pipe, PRUNED):
            return generate(pipe, way)

    return give


@pytest.mark.parametrize("separate", [False, True], ids=["one scheduler", "two schedulers"])
@pytest.mark.parametrize(
    ("enabled", "running"),
    [("guided", "unguided"), ("unguided", "guided"), ("guided", "img2img"), ("unguided", "img2img"), ("img2img", "unguided"), ("guided", "inpaint"), ("unguided", "controlnet"), ("controlnet", "guided")],
)
def test_each_gets_what_it_gets_alone(fresh: Any, alone: Any, enabled: str, running: str, separate: bool) -> None:
    base = fresh()
    first = as_kind(base, enabled)
    second = as_kind(base, running, DDIMScheduler.from_config(base.scheduler.config) if separate else None)
    expected = {way: alone(way) for way in (enabled, running)}
    plain = generate(second, running)
    with dato.accelerate(first, PRUNED):
        for _ in range(2):  # before and after the enabled pipeline ran
            assert torch.equal(generate(second, running), expected[running])
            report = report_of(first)
            assert (report.pipeline, report.finished) == (type(second).__name__, True)
            assert report.pipeline in str(report)
            assert report.pipeline in report.summary()
            assert torch.equal(generate(first, enabled), expected[enabled])
        assert dato.status(second) is None
        dato.disable(second)  # nothing is enabled on it
        assert torch.equal(generate(second, running), expected[running])
    assert torch.equal(generate(second, running), plain)


@pytest.mark.parametrize("separate", [False, True], ids=["one scheduler", "two schedulers"])
@pytest.mark.parametrize("inner", ["guided", "unguided", "img2img"])
def test_a_run_within_a_callback_of_another(fresh: Any, alone: Any, inner: str, separate: bool) -> None:
    outer = fresh()
    other = as_kind(outer, inner, DDIMScheduler.from_config(outer.scheduler.config) if separate else None)
    results = []

    def preview(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step in (0, 2):
            results.append(generate(other, inner))
        return kwargs

    plain = run(outer, callback_on_step_end=preview)
    results.clear()
    with dato.accelerate(outer, Strategy.full(STEPS)):
        assert torch.equal(run(outer, callback_on_step_end=preview), plain)
    results.clear()
    with dato.accelerate(outer, PRUNED):
        assert torch.equal(run(outer, callback_on_step_end=preview), alone("guided"))
        assert all(torch.equal(r, alone(inner)) for r in results)
        report = report_of(outer)
    assert (report.pipeline, report.finished, report.calls) == ("StableDiffusionPipeline", True, STEPS)


def test_a_run_of_the_same_pipeline_within_its_own_callback(fresh: Any, alone: Any) -> None:
    pipe = fresh()
    inner = []

    def again(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1 and not inner:
            inner.append(run(pipe))
        return kwargs

    with dato.accelerate(pipe, PRUNED):
        outer = run(pipe, callback_on_step_end=again)
    assert torch.equal(inner[0], alone("guided"))
    assert torch.equal(outer, alone("guided"))


def test_a_run_that_fails_within_a_callback_leaves_the_outer_one_alone(fresh: Any, alone: Any) -> None:
    outer = fresh()
    other = as_kind(outer, "img2img", DDIMScheduler.from_config(outer.scheduler.config))

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    def preview(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            with pytest.raises(KeyboardInterrupt):
                generate(other, "img2img", callback_on_step_end=stop)
        return kwargs

    with dato.accelerate(outer, PRUNED):
        assert torch.equal(run(outer, callback_on_step_end=preview), alone("guided"))
        with pytest.raises(KeyboardInterrupt):
            run(outer, callback_on_step_end=stop)
        assert torch.equal(generate(other, "img2img"), alone("img2img"))
        assert torch.equal(run(outer), alone("guided"))
        assert len(runs_of(outer.unet).open) == 1  # nothing of the abandoned ones is held


def test_two_threads_with_one_unet(fresh: Any, alone: Any) -> None:
    first = fresh()
    second = as_kind(first, "unguided", DDIMScheduler.from_config(first.scheduler.config))
    expected = {"guided": alone("guided"), "unguided": alone("unguided")}
    found: dict[str, list[torch.Tensor]] = {"guided": [], "unguided": []}

    def work(pipe: Any, way: str) -> None:
        for _ in range(3):
            found[way].append(generate(pipe, way))

    with dato.accelerate(first, PRUNED):
        threads = [threading.Thread(target=work, args=a) for a in ((first, "guided"), (second, "unguided"))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    for way, results in found.items():
        assert len(results) == 3
        assert all(torch.equal(r, expected[way]) for r in results)


def sampling(self: Any, prompt: str, guidance_scale: float) -> torch.Tensor:
    """A pipeline's loop that was written outside of its class."""
    self._guidance_scale = guidance_scale
    self.scheduler.set_timesteps(STEPS)
    halves = self.encode_prompt(prompt, "cpu", 1, guidance_scale > 1)
    states = torch.cat([halves[1], halves[0]]) if guidance_scale > 1 else halves[0]
    latents = torch.ones(1, 4, 16, 16)
    for t in self.scheduler.timesteps:
        noise = self.unet(torch.cat([latents] * len(states)), t, states).sample
        if guidance_scale > 1:
            noise = noise[:1] + guidance_scale * (noise[1:] - noise[:1])
        latents = self.scheduler.step(noise, t, latents).prev_sample
    return latents


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_pipeline_whose_loop_is_written_elsewhere(fresh: Any, scale: float) -> None:
    kind = type("Written", (StableDiffusionPipeline,), {"__call__": sampling})
    base = fresh()
    other = sharing(base, kind)
    with dato.accelerate(other, PRUNED):
        expected = other("a seven", scale)
    with dato.accelerate(base, PRUNED):
        run(base, guidance_scale=4.0 - scale)
        assert torch.equal(other("a seven", scale), expected)
        report = report_of(base)
    assert report.pipeline == "Written"


@pytest.mark.parametrize("exchange", ["before", "within"])
def test_another_scheduler_on_the_running_pipeline(fresh: Any, exchange: str) -> None:
    pipe = fresh()

    def swap(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            _pipe.scheduler = DDIMScheduler.from_config(_pipe.scheduler.config)
            _pipe.scheduler.set_timesteps(STEPS)
        return kwargs

    expected = run(pipe)
    settings = {"callback_on_step_end": swap} if exchange == "within" else {}
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe, **settings), expected)
    with dato.accelerate(pipe, PRUNED):
        cached = run(pipe)
        if exchange == "before":
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        assert torch.equal(run(pipe, **settings), cached)


class TestRefusedWhenTheyRun:
    def test_perturbed_attention(self, pipe: Any) -> None:
        other = sharing(pipe, StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
        alone, processors = run(pipe), dict(pipe.unet.attn_processors)
        with dato.accelerate(pipe, PRUNED):
            accelerated = run(pipe)
            with pytest.raises(ValueError, match="StableDiffusionPAGPipeline guides three ways"):
                run(other)
            pipe.unet.set_attn_processor(processors)  # diffusers leaves PAG's behind whenever its run fails
            assert torch.equal(run(pipe), accelerated)
        assert torch.equal(run(pipe), alone)

    @pytest.mark.parametrize("name", ["LEditsPPPipelineStableDiffusion", "StableDiffusionPix2PixZeroPipeline", "StableDiffusionGLIGENTextImagePipeline", "StableDiffusionParadigmsPipeline", "TextToVideoZeroPipeline"])
    def test_enabling_is_refused_too(self, pipe: Any, name: str) -> None:
        kind = type(name, (getattr(diffusers, name),), {})  # also by a subclass
        other = kind.__new__(kind)
        object.__setattr__(other, "unet", pipe.unet)
        with pytest.raises(ValueError, match=rf"{name} (calls its UNet more than once|reads the attention maps)"):
            dato.enable(other, PRUNED)

    def test_ledits(self, pipe: Any) -> None:
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2)
        other = sharing(pipe, diffusers.LEditsPPPipelineStableDiffusion, scheduler=scheduler)
        image = torch.rand(1, 3, 32, 32)
        with dato.accelerate(pipe, PRUNED), pytest.raises(ValueError, match=r"LEditsPPPipelineStableDiffusion reads the attention maps.*invert.*dato.disable"):
            other.invert(image=image, source_prompt="", num_inversion_steps=STEPS, skip=0.1, height=32, width=32)
        other.invert(image=image, source_prompt="", num_inversion_steps=STEPS, skip=0.1, height=32, width=32)

    def test_inversion_by_a_pipeline_that_samples_too(self, pipe: Any) -> None:
        class Inverting(StableDiffusionPipeline):
            @torch.no_grad()
            def invert(self) -> None:
                for t in reversed(self.scheduler.timesteps):
                    self.unet(torch.zeros(1, 4, 16, 16), t, torch.zeros(1, 7, 64))

        use(pipe, "DDIMScheduler")
        other = sharing(pipe, Inverting)
        with dato.accelerate(other, PRUNED):
            run(other)
            with pytest.raises(ValueError, match=r"Inverting.invert does not sample.*dato.disable.*before invert"):
                other.invert()
            run(other)


class TestOwnLoops:
    @torch.inference_mode()
    def test_guidance_that_is_not_known(self, fresh: Any) -> None:
        pipe = fresh()
        pipe.scheduler.set_timesteps(STEPS)
        sample, states = torch.ones(2, 4, 16, 16), torch.ones(2, 7, 64)
        with dato.accelerate(pipe, PRUNED), pytest.raises(ValueError, match=r"does not say whether it guides.*_guidance_scale.*align=\"none\".*prune_ratio 0"):
            pipe.unet(sample, pipe.scheduler.timesteps[0], states)
        with dato.accelerate(pipe, PRUNED, Options(align="none")):
            pipe.unet(sample, pipe.scheduler.timesteps[0], states)
        pipe._guidance_scale = 3.0
        with dato.accelerate(pipe, PRUNED):
            pipe.unet(sample, pipe.scheduler.timesteps[0], states)

    @torch.inference_mode()
    def test_the_enabled_pipeline_is_gone(self, fresh: Any) -> None:
        pipe = fresh()
        unet, scheduler = pipe.unet, pipe.scheduler
        other = as_kind(pipe, "unguided")
        dato.enable(pipe, PRUNED)
        del pipe
        gc.collect()
        scheduler.set_timesteps(STEPS)
        with pytest.raises(ValueError, match="the pipeline that the strategy was enabled on is gone"):
            unet(torch.ones(1, 4, 16, 16), scheduler.timesteps[0], torch.ones(1, 7, 64))
        generate(other, "unguided")  # a pipeline that runs is known
        report = report_of(other)
        assert report.finished
        dato.enable(other, Strategy.full(STEPS))
        dato.disable(other)
        assert not hasattr(unet, "_diffusers_hook")

    @torch.inference_mode()
    @pytest.mark.parametrize("kind", ["element", "number"])
    def test_a_pipeline_that_runs_within_a_loop(self, fresh: Any, alone: Any, kind: str) -> None:
        pipe = fresh()
        loop = SimpleNamespace(unet=pipe.unet, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
        sample, states = torch.ones(1, 4, 16, 16), torch.ones(1, 7, 64)

        def all_of(interrupt: bool) -> list[torch.Tensor]:
            loop.scheduler.set_timesteps(STEPS)
            found = []
            for i, t in enumerate(loop.scheduler.timesteps):
                if interrupt and i == 3:
                    within.append(run(pipe))
                found.append(loop.unet(sample, t if kind == "element" else float(t), states).sample)
            return found

        within: list[torch.Tensor] = []
        with dato.accelerate(loop, Strategy((Step(FULL), *[Step(2)] * (STEPS - 1)))):
            expected = all_of(False)
            assert all(torch.equal(a, b) for a, b in zip(all_of(True), expected, strict=True))
        with dato.accelerate(pipe, Strategy((Step(FULL), *[Step(2)] * (STEPS - 1)))):
            assert torch.equal(within[0], run(pipe))

    @torch.inference_mode()
    def test_two_loops_in_turn(self, fresh: Any) -> None:
        pipe = fresh()
        loop = SimpleNamespace(unet=pipe.unet, scheduler=None)
        schedulers = [DDIMScheduler.from_config(pipe.scheduler.config) for _ in range(2)]
        samples, states = [torch.ones(1, 4, 16, 16), torch.zeros(1, 4, 16, 16)], torch.ones(1, 7, 64)
        with dato.accelerate(loop, Strategy((Step(FULL), *[Step(2)] * (STEPS - 1)))):
            for s in schedulers:
                s.set_timesteps(STEPS)
            expected = []
            for s, x in zip(schedulers, samples, strict=True):
                loop.scheduler = s
                expected.append([loop.unet(x, t, states).sample for t in s.timesteps])
            for i in range(STEPS):  # and the second begins at every place of the first
                loop.scheduler = schedulers[0]
                schedulers[0].set_timesteps(STEPS)
                for t in schedulers[0].timesteps[:i]:
                    loop.unet(samples[0], t, states)
                loop.scheduler = schedulers[1]
                schedulers[1].set_timesteps(STEPS)
                late = [loop.unet(samples[1], t, states).sample for t in schedulers[1].timesteps[i:]]
                assert report_of(loop).calls_by_depth[FULL] == 1
                assert report_of(loop).calls == len(late)
            for s in schedulers:
                s.set_timesteps(STEPS)
            for i in range(STEPS):
                for n, (s, x) in enumerate(zip(schedulers, samples, strict=True)):
                    loop.scheduler = s
                    assert torch.equal(loop.unet(x, s.timesteps[i], states).sample, expected[n][i])
