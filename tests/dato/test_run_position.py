"""Which call of which run a UNet call is: other pipelines, own loops, interrupted runs."""

from __future__ import annotations

import copy
import re
import threading
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import dato
from dato import FULL, Step, Strategy, StrategyError
from dato.run_position import RunPosition, index_in
from tests.dato.conftest import STEPS, report_of, run, runs_of, sharing, use

CACHED = Strategy.uniform(STEPS, STEPS)  # the first call full, the others shallow


def beside(pipe: Any, kind: Any = StableDiffusionPipeline) -> Any:
    """A pipeline with the same UNet and a scheduler of its own."""
    pipe.scheduler.register_to_config(**{k: False for k in pipe.scheduler.config if k == "clip_sample"})  # as diffusers does to that of a new pipeline
    return sharing(pipe, kind, scheduler=copy.deepcopy(pipe.scheduler))


def stop_after(step: int) -> Any:
    def stop(_pipe: Any, i: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if i == step:
            raise KeyboardInterrupt
        return kwargs

    return stop


class TestPipelinesThatShareTheUNet:
    def test_with_its_own_scheduler_it_follows_from_its_own_start(self, pipe: Any) -> None:
        other = beside(use(pipe, "DDIMScheduler"))
        with dato.accelerate(pipe, CACHED):
            alone = run(pipe)
            assert torch.equal(run(other), alone)
            with pytest.raises(KeyboardInterrupt):
                run(other, callback_on_step_end=stop_after(2))
            assert torch.equal(run(other), alone)
            assert torch.equal(run(pipe), alone)
            report = report_of(pipe)
        assert report.calls_by_depth == {FULL: 1, 1: 5}

    def test_image_to_image_with_its_own_scheduler(self, pipe: Any) -> None:
        other = beside(use(pipe, "DDIMScheduler"), StableDiffusionImg2ImgPipeline)
        settings = {"strength": 0.5, "num_inference_steps": STEPS, "output_type": "latent", "image": torch.zeros(1, 3, 32, 32)}
        with dato.accelerate(pipe, CACHED):
            run(pipe)
            results = [other("x", **settings, generator=torch.Generator().manual_seed(0)).images for _ in range(3)]
            report = report_of(pipe)
        assert report.calls_by_depth == {FULL: 1, 1: 2}
        assert all(torch.equal(r, results[0]) for r in results)

    def test_other_steps_are_refused(self, pipe: Any) -> None:
        other = beside(use(pipe, "DDIMScheduler"))
        dato.enable(pipe, CACHED)
        for _ in range(2):  # before the enabled pipeline ever ran, and after
            with pytest.raises(StrategyError, match=r"6 steps, but the scheduler makes 4 calls.*num_inference_steps=6.*resample\(4\)") as error:
                run(other, num_inference_steps=4)
            assert "Or call dato.disable on the enabled StableDiffusionPipeline" in str(error.value)
            run(pipe)
        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback_on_step_end=stop_after(1))
        with pytest.raises(StrategyError, match=r"6 steps, but the scheduler makes 4 calls"):
            run(other, num_inference_steps=4)

    def test_pndm_with_its_own_scheduler_begins_at_either_of_the_repeated_timesteps(self, pipe: Any) -> None:
        other = beside(pipe, StableDiffusionImg2ImgPipeline)
        with dato.accelerate(pipe, CACHED):
            run(pipe)
            # Of 7 calls for 6 steps the last 6, then the last 5: the second list begins at the repeated timestep's second place.
            for strength, calls in ((0.9, 6), (0.7, 5)):
                other("x", image=torch.zeros(1, 3, 32, 32), strength=strength, num_inference_steps=STEPS, output_type="latent")
                report = report_of(pipe)
                assert report.finished
                assert report.calls_by_depth == {FULL: 1, 1: calls - 1}


class Copying(ModelHook):
    """Gives the model copies of its arguments, as a hook does that moves them to another device."""

    def pre_forward(self, _module: Any, *args: Any, **kwargs: Any) -> Any:
        copied = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
        return tuple(copied), {k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in kwargs.items()}


class TestHooksThatComeAndGoWithinARun:
    @pytest.mark.parametrize("first", ["on", "off"])
    def test_a_hook_that_copies(self, pipe: Any, first: str) -> None:
        def exchange(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step in (1, 4):
                if hasattr(_pipe.unet, "_hf_hook"):
                    remove_hook_from_module(_pipe.unet)
                else:
                    add_hook_to_module(_pipe.unet, Copying())
            return kwargs

        use(pipe, "DDIMScheduler")
        with dato.accelerate(pipe, CACHED):
            expected = run(pipe)
            if first == "on":
                add_hook_to_module(pipe.unet, Copying())
            for _ in range(2):
                assert torch.equal(run(pipe, callback_on_step_end=exchange), expected)
                report = report_of(pipe)
                assert (report.calls_by_depth, report.finished) == ({FULL: 1, 1: 5}, True)

    def test_all_hooks_of_offloading(self, pipe: Any) -> None:
        def remove(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                _pipe.remove_all_hooks()
            return kwargs

        with dato.accelerate(pipe, CACHED):
            expected = run(pipe)
            pipe.enable_model_cpu_offload(device="cpu")
            assert torch.equal(run(pipe, callback_on_step_end=remove), expected)

    def test_a_call_from_elsewhere_at_the_next_timestep_is_told_what_is_true(self, pipe: Any) -> None:
        said: list[str] = []

        @torch.inference_mode()
        def stray() -> None:
            with pytest.raises(ValueError, match="comes to this timestep next") as error:
                pipe.unet(torch.ones(1, 4, 16, 16), int(pipe.scheduler.timesteps[3]), torch.ones(1, 7, 64))
            said.append(str(error.value))

        def beside_it(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 2:
                thread = threading.Thread(target=stray)
                thread.start()
                thread.join()
            return kwargs

        use(pipe, "DDIMScheduler")
        with dato.accelerate(pipe, CACHED):
            expected = run(pipe)
            assert torch.equal(run(pipe, callback_on_step_end=beside_it), expected)
        assert "call 4 of 6" in said[0]
        assert "elsewhere than in that run" in said[0]


class TestOwnLoops:
    @pytest.fixture
    def loop(self, pipe: Any) -> Any:
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        return SimpleNamespace(unet=pipe.unet, scheduler=scheduler, x=torch.ones(1, 4, 16, 16), e=torch.ones(1, 7, 64))

    @torch.inference_mode()
    @pytest.mark.parametrize("kind", ["element", "number", "batch", "half"])
    def test_a_run_that_stops_early_leaves_nothing_to_the_next(self, loop: Any, kind: str) -> None:
        as_given = {"element": lambda t: t, "number": float, "batch": lambda t: t.repeat(1), "half": lambda t: t.half()}[kind]
        loop.scheduler.set_timesteps(STEPS)
        with dato.accelerate(loop, CACHED):
            results = []
            for _ in range(2):
                for t in loop.scheduler.timesteps[:3]:
                    results.append(loop.unet(loop.x, as_given(t), loop.e).sample)
            report = report_of(loop)
        assert report.calls_by_depth == {FULL: 1, 1: 2}
        assert all(torch.equal(a, b) for a, b in zip(results[:3], results[3:], strict=True))

    @torch.inference_mode()
    @pytest.mark.parametrize("steps", [2, STEPS])
    @pytest.mark.parametrize("numbers", [False, True])
    def test_guidance_in_two_calls_is_refused(self, loop: Any, steps: int, numbers: bool) -> None:
        loop.scheduler.set_timesteps(steps)
        with dato.accelerate(loop, Strategy.uniform(steps, steps)), pytest.raises(ValueError, match="or it is called more than once in a step"):
            for t in loop.scheduler.timesteps:
                for _ in ("uncond", "cond"):
                    loop.unet(loop.x, float(t) if numbers else t, loop.e)

    @torch.inference_mode()
    def test_asking_does_not_change_the_position(self, loop: Any) -> None:
        loop.scheduler.set_timesteps(3)
        with dato.accelerate(loop, Strategy((Step(FULL), Step(0), Step(1)))):
            runs = runs_of(loop.unet)
            first, second, third = loop.scheduler.timesteps
            assert runs.coming(first, loop.x) is None
            assert runs.last is None
            loop.unet(loop.x, first, loop.e)
            assert runs.last is not None
            assert runs.coming(second, loop.x) == (runs.last, Step(0))
            assert runs.coming(third, loop.x) is None
            assert runs.coming(second, loop.x) == (runs.last, Step(0))
            assert runs.coming(second, loop.x.repeat(2, 1, 1, 1)) is None  # a batch that changes makes the call a full one
            with pytest.raises(ValueError, match=r"at timestep 1, but .* SimpleNamespace comes to 334 next \(call 2 of 3\)"):
                loop.unet(loop.x, third, loop.e)
            loop.unet(loop.x, second, loop.e)


def test_an_element_is_told_by_where_it_lies() -> None:
    scheduler = PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps
    assert [index_in(x, t) for x in t] == list(range(STEPS + 1))
    assert [index_in(x.expand(2), t) for x in t[2:]] == list(range(2, STEPS + 1))
    assert [index_in(x, t) for x in (t[0].clone(), float(t[0]), t[0].double())] == [None] * 3
    assert [index_in(x, t[::2]) for x in t[:3]] == [0, None, 1]
    position = RunPosition().begun(t, t[2])
    assert position is not None
    assert (position.first, position.own) == (2, True)


@pytest.mark.parametrize("name", ["StableDiffusionPanoramaPipeline", "StableDiffusionSAGPipeline", "StableDiffusionAttendAndExcitePipeline"])
def test_pipelines_that_call_more_than_once_in_a_step_are_refused(pipe: Any, name: str) -> None:
    other = beside(pipe, getattr(diffusers, name))
    with pytest.raises(ValueError, match=re.escape(f"{name} calls its UNet more than once in a step")):
        dato.enable(other, CACHED)
    assert not hasattr(pipe.unet, "_diffusers_hook")
