"""Strategies on real pipelines: exact where nothing is saved, exactly undone, honest about what was done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import dato
from dato import FULL, Options, Step, Strategy, StrategyError
from dato.call_plan import entry_of_call
from tests.dato.conftest import STEPS, report_of, run, runs_of, sharing, use


def test_enabling_twice_is_enabling_once(pipe: Any) -> None:
    strategy = Strategy.uniform(STEPS, 3, prune_ratio=0.5)
    dato.enable(pipe, strategy)
    once = run(pipe)
    dato.enable(pipe, strategy)
    assert torch.equal(run(pipe), once)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())
    assert hooks == 2 + 1 + 2 * 5  # before and after the UNet, one capture, five layers before and after
    dato.disable(pipe)
    dato.disable(pipe)
    assert dato.status(pipe) is None


def test_a_nested_strategy_gives_way_again(pipe: Any) -> None:
    outer, inner = Strategy.uniform(STEPS, 2), Strategy.uniform(STEPS, 3)
    with dato.accelerate(pipe, outer):
        before = run(pipe)
        with dato.accelerate(pipe, inner):
            assert not torch.equal(run(pipe), before)
        assert torch.equal(run(pipe), before)
    assert dato.status(pipe) is None


def test_another_unet_in_the_block_leaves_no_hook_on_either(pipe: Any, make_pipe: Callable[..., StableDiffusionPipeline]) -> None:
    first, second = pipe.unet, make_pipe().unet
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        with dato.accelerate(pipe, Strategy.uniform(STEPS, 3, prune_ratio=0.5)):
            pipe.unet = second
            assert dato.status(pipe) is None
            dato.enable(pipe, Strategy.full(STEPS))
        assert hasattr(first, "_diffusers_hook")  # the outer strategy, on the UNet that it was enabled on
    for unet in (first, second):
        assert not hasattr(unet, "_diffusers_hook")
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_nothing_is_held_after_a_finished_run(make_layout: Callable[[str], Any]) -> None:
    pipe = use(make_layout("sdxl"), "EulerDiscreteScheduler")
    with dato.accelerate(pipe, Strategy.uniform(STEPS, 3, prune_ratio=0.5)):
        runs = runs_of(pipe.unet)
        for settings in ({}, {"denoising_end": 0.5}):
            run(pipe, **settings)
            report = report_of(pipe)
            assert report.finished
            assert runs.last is not None
            assert runs.last in runs.open
            assert all(state.kept is None for state in runs.open)


def test_canonical_strategies_give_the_same_images(pipe: Any) -> None:
    strategy = Strategy(tuple(Step(d, 0.5) for d in (0, 1, 0, FULL, 0, 1)))
    results = []
    for s in (strategy, strategy.canonical()):
        with dato.accelerate(pipe, s):
            results.append(run(pipe))
    assert torch.equal(*results)


def test_the_status_counts_what_was_done(pipe: Any) -> None:
    with dato.accelerate(pipe, Strategy.uniform(STEPS, 3, prune_ratio=0.5)):
        before = report_of(pipe)
        assert not before.calls_by_depth
        run(pipe, (0, 1))
        report = report_of(pipe)
    assert report.finished
    # PNDM makes 7 calls for 6 steps: F F 1 1 F 1 1. The batch is 4 with guidance, 16 x 16 tokens, half of them pruned.
    assert report.calls_by_depth == {FULL: 3, 1: 4}
    first, last = report.layers[0], report.layers[-1]
    assert len(report.layers) == 5
    assert report.tokens_pruned[first] == 3 * 4 * 128
    assert report.tokens_pruned[last] == 7 * 4 * 128


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [Options(diff_source="feature"), Options(align="none"), Options(align="uncond"), Options(use_score=False), Options(plan_per="layer"), Options(score_noise=0.5), Options(max_downsample=2), Options(patch=4)],
)
def test_the_ways_of_choosing_tokens_differ_and_repeat(pipe: Any, options: Options, guidance: float) -> None:
    strategy = Strategy.uniform(STEPS, 2, prune_ratio=0.5)
    with dato.accelerate(pipe, strategy):
        default = run(pipe, guidance_scale=guidance)
    with dato.accelerate(pipe, strategy, options):
        first, again = run(pipe, guidance_scale=guidance), run(pipe, guidance_scale=guidance)
    assert torch.equal(first, again)
    if guidance == 1.0 and options.align != "cond":
        assert torch.equal(first, default)  # without guidance there is nothing to align
    else:
        assert not torch.equal(first, default)


def test_every_depth_runs(pipe: Any) -> None:
    for depth in range(1, 12):
        with dato.accelerate(pipe, Strategy.uniform(STEPS, 3, depth=depth, prune_ratio=0.3)):
            assert torch.isfinite(run(pipe)).all()
            report = report_of(pipe)
            assert report.calls_by_depth[depth] == 4


def test_steps_that_do_not_fit_name_the_way_out(pipe: Any) -> None:
    with dato.accelerate(pipe, Strategy.full(5)), pytest.raises(StrategyError, match=r"5 steps, but the scheduler makes 7 calls.*resample"):
        run(pipe)
    with pytest.raises(StrategyError, match=r"makes 60 calls; allowed are 50 or 51.*resample\(60\)"):
        entry_of_call(0, 60, 50)
    with pytest.raises(StrategyError, match=r"makes 99 calls; allowed are 79.*resample\(50\)"):
        entry_of_call(0, 99, 40, order=2)


def test_calls_and_entries() -> None:
    assert [entry_of_call(k, 51, 50) for k in (0, 1, 2, 50)] == [0, 0, 1, 49]
    assert [entry_of_call(k, 50, 50) for k in (0, 1, 49)] == [0, 1, 49]
    assert [entry_of_call(k, 99, 50, order=2) for k in (0, 1, 2, 97, 98)] == [0, 0, 1, 48, 49]


def test_image_to_image_follows_the_last_entries(pipe: Any) -> None:
    use(pipe, "DDIMScheduler")
    other = sharing(pipe, StableDiffusionImg2ImgPipeline)
    strategy = Strategy((Step(FULL), Step(FULL), Step(FULL), Step(1), Step(1), Step(0)))
    with dato.accelerate(other, strategy):
        other("x", image=torch.rand(1, 3, 32, 32), strength=0.5, num_inference_steps=6, output_type="latent")
        report = report_of(other)
    assert report.calls_by_depth == {FULL: 1, 1: 1, 0: 1}  # entries 3, 4, 5; the first call is full all the same
    assert report.finished


def test_an_interrupted_run_leaves_nothing_stale(pipe: Any) -> None:
    strategy = Strategy.uniform(STEPS, 3, prune_ratio=0.5)
    with dato.accelerate(pipe, strategy):
        clean = run(pipe)

        def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 3:
                raise KeyboardInterrupt
            return kwargs

        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback_on_step_end=stop)
        report = report_of(pipe)
        assert not report.finished
        assert torch.equal(run(pipe), clean)
        assert run(pipe, height=48, width=24).shape[-2:] == (24, 12)
        assert torch.equal(run(pipe), clean)


def test_guidance_switched_off_midway(pipe: Any) -> None:
    def off(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            _pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[1]
        return kwargs

    settings = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    use(pipe, "DDIMScheduler")
    plain = run(pipe, **settings)
    with dato.accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe, **settings), plain)
    with dato.accelerate(pipe, Strategy.uniform(STEPS, 4, prune_ratio=0.5)):
        assert torch.isfinite(run(pipe, **settings)).all()


def test_the_global_generator_is_untouched(pipe: Any) -> None:
    before = torch.get_rng_state()
    with dato.accelerate(pipe, Strategy.uniform(STEPS, 3, prune_ratio=0.5)):
        run(pipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_pipelines_in_two_threads(make_pipe: Callable[..., StableDiffusionPipeline]) -> None:
    pipes = [make_pipe(), make_pipe()]
    strategies = [Strategy.uniform(STEPS, 2, prune_ratio=0.3), Strategy.uniform(STEPS, 3, prune_ratio=0.6)]
    for p, s in zip(pipes, strategies, strict=True):
        dato.enable(p, s)
    alone = [run(p) for p in pipes]
    together: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, run(pipes[i]))) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(together[i], alone[i]) for i in range(2))


def test_what_cannot_be_accelerated_is_refused(pipe: Any, make_pipe: Callable[..., StableDiffusionPipeline]) -> None:
    with pytest.raises(TypeError, match=r"dato.Strategy.load reads files and names"):
        dato.enable(pipe, "paper-b1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no unet"):
        dato.enable(object(), Strategy.full(4))
    with dato.accelerate(pipe, Strategy.full(4)), pytest.raises(ValueError, match="another pipeline shares this UNet"):
        dato.enable(sharing(pipe), Strategy.full(4))
    small = make_pipe(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(StrategyError, match="cache_depth 10 is beyond this UNet, which has 9 units; allowed are 0 to 8, or 12"):
        dato.enable(small, Strategy.uniform(4, 2, depth=10))
    with pytest.raises(ValueError, match="align is 'both'; allowed are 'cond', 'uncond', 'none'"):
        Options(align="both")  # type: ignore[arg-type]


def test_a_report_prints_in_a_few_lines_and_its_summary_is_a_table(pipe: Any) -> None:
    strategy = Strategy((Step(FULL, 0.5), Step(1, 0.5), Step(0), Step(FULL), Step(1), Step(1))).with_provenance(environment={"a": "x" * 5000})
    with dato.accelerate(pipe, strategy):
        before = str(dato.status(pipe))
        run(pipe)
        report = report_of(pipe)
    assert "not run yet" in before
    shown = str(report)
    assert len(shown.splitlines()) <= 4
    assert len(shown) < 500
    assert f"finished: {report.calls} UNet calls" in shown
    assert strategy.digest in shown
    table = report.summary()
    assert "xxx" not in table
    assert all(name in table and f"{report.tokens_pruned[name]:,}" in table for name in report.layers)


def test_options_of_another_type_are_refused(pipe: Any) -> None:
    for wrong in ({}, {"patch": 3}, "noise", 3):
        with pytest.raises(TypeError, match=rf"of type {type(wrong).__name__}; give dato.Options\(...\)"):
            dato.enable(pipe, Strategy.full(6), wrong)  # type: ignore[arg-type]
    assert dato.status(pipe) is None
    assert dato.Options(patch=np.int64(3), seed=np.int32(1), score_noise=np.float32(0.5)).patch == 3
