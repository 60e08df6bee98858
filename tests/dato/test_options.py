"""Options that cannot be are refused when they are made, those that leave nothing to prune when they are enabled."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline

import dato
from dato import FULL, Options, Step, Strategy, StrategyError
from dato.costs import CostModel
from dato.unet.attention import chosen_layers
from dato.unet.units import Layout
from tests.dato.conftest import STEPS, report_of, run, use

HALF = Strategy.uniform(STEPS, 3, depth=2, prune_ratio=0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch": 1}, r"patch is 1; allowed are integers from 2"),
        ({"patch": 2.5}, r"patch is 2.5; allowed are integers from 2"),
        ({"diff_source": "image"}, r"diff_source is 'image'; allowed are 'noise', 'feature'"),
        ({"plan_per": "run"}, r"plan_per is 'run'; allowed are 'call', 'layer'"),
        ({"use_score": "no"}, r"use_score is 'no'; allowed are True and False"),
        ({"seed": 0.5}, r"seed is 0.5; allowed are integers"),
        ({"max_downsample": 0}, r"max_downsample is 0; allowed are integers from 1, or None"),
        ({"max_downsample": -1}, r"max_downsample is -1; allowed are integers from 1"),
        ({"max_downsample": 2.0}, r"max_downsample is 2.0; allowed are integers from 1"),
        ({"layers": "up_blocks.3"}, r"layers is 'up_blocks.3'; allowed are a tuple of module names"),
        ({"layers": ()}, r"layers is \(\); allowed are a tuple of module names"),
        ({"layers": ("up_blocks.3", 3)}, r"layers is \('up_blocks.3', 3\); allowed"),
        ({"score_noise": -1}, r"score_noise is -1; allowed is 0 <= score_noise < infinity"),
        ({"score_noise": math.nan}, r"score_noise is nan; allowed"),
        ({"score_noise": math.inf}, r"score_noise is inf; allowed"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**given)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("sdxl", Options(max_downsample=1), r"max_downsample is 1, but this UNet has self-attention layers at 2, 4 only; allowed are integers from 2, or None"),
        ("sd15", Options(layers=("up_blocks.3", "up_blcks.2")), r"no self-attention layer is named up_blcks.2...; there are .*up_blocks.3.attentions.0"),
        ("sd15", Options(layers=("up_blocks.2",)), r"named up_blocks.2... are at downsample 2, and max_downsample leaves those up to 1 only; give Options\(max_downsample=2\)"),
    ],
)
def test_a_strategy_that_prunes_has_a_layer_to_prune_in(layout: str, options: Options, message: str, make_layout: Callable[[str], Any]) -> None:
    pipe = make_layout(layout)
    with pytest.raises(ValueError, match=message):
        dato.enable(pipe, HALF, options)
    with pytest.raises(ValueError, match=message):
        CostModel(pipe.unet, 16, 16, options).macs(Step(FULL, 0.5))
    assert not hasattr(pipe.unet, "_diffusers_hook")


def test_without_pruning_no_layer_is_needed(make_layout: Callable[[str], Any]) -> None:
    pipe = use(make_layout("sdxl"), "DDIMScheduler")
    with dato.accelerate(pipe, Strategy.uniform(STEPS, 3), Options(max_downsample=1)):
        run(pipe)
    without = make_layout("sd15").unet.from_config({**make_layout("sd15").unet.config, "down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4})
    assert chosen_layers(Layout.of(without), Options(), prunes=False) == {}
    with pytest.raises(ValueError, match="this UNet has no self-attention layer in which tokens could be pruned; use prune_ratio 0"):
        chosen_layers(Layout.of(without), Options())


@torch.inference_mode()
@pytest.mark.parametrize("options", [Options(), Options(max_downsample=4), Options(patch=4), Options(patch=8, max_downsample=8)])
@pytest.mark.parametrize("size", [(1, 16), (2, 12), (3, 8), (5, 7)])
def test_narrow_grids_are_pruned_where_a_patch_fits(pipe: Any, size: tuple[int, int], options: Options) -> None:
    strategy = Strategy((Step(FULL, 0.74), Step(FULL, 0.5), Step(FULL, 0.5)))
    own = SimpleNamespace(unet=pipe.unet, scheduler=DDIMScheduler(), do_classifier_free_guidance=False)
    own.scheduler.set_timesteps(3)
    with dato.accelerate(own, strategy, options):
        for t in own.scheduler.timesteps:
            own.unet(torch.randn(1, 4, *size), t, torch.randn(1, 7, 64))
        report = report_of(own)
    # The cost model agrees on whether anything is pruned; the similarity of Eq. 9 may cost more than so few tokens save.
    costs = CostModel(pipe.unet, *size, options)
    assert bool(report.tokens_pruned) == (costs.macs(Step(FULL, 0.5)) != costs.macs(Step(FULL))) == (size[0] > 1)


def test_a_pipeline_that_does_not_say_whether_it_guides(make_pipe: Callable[..., Any]) -> None:
    base = use(make_pipe(in_channels=7, num_class_embeds=1000), "DDIMScheduler")
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipe = StableDiffusionUpscalePipeline(**parts, low_res_scheduler=DDPMScheduler(), max_noise_level=350)
    for options in (None, Options(align="uncond")):
        with pytest.raises(ValueError, match=r'StableDiffusionUpscalePipeline does not say whether it guides .* use dato.Options\(align="none"\)'):
            dato.enable(pipe, HALF, options)
    for strategy, options in ((HALF, Options(align="none")), (HALF, Options(use_score=False)), (Strategy.uniform(STEPS, 3), None)):
        with dato.accelerate(pipe, strategy, options):
            assert dato.status(pipe) is not None


def test_depths_of_another_unet(make_layout: Callable[[str], Any]) -> None:
    with pytest.raises(StrategyError, match="cache_depth 10 is beyond this UNet, which has 9 units; allowed are 0 to 8, or 12"):
        CostModel(make_layout("sdxl").unet, 16, 16).macs(Step(10))
