import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from dato.provenance import ProvenanceError, ProvenanceWarning, check, describe, fingerprints
from dato.strategy import Strategy


def measured_on(pipe: Any, steps: int = 6) -> Strategy:
    facts = json.loads(json.dumps(describe(pipe)))
    scheduler = facts.pop("scheduler")
    return Strategy.uniform(steps, 3).with_provenance(model={"path": "owner/model", **facts}, sampler={"steps": steps, "settings": scheduler})


def complaint(pipe: Any, strategy: Strategy) -> str:
    with pytest.warns(ProvenanceWarning) as caught:
        check(pipe, strategy)
    return str(caught[0].message)


def test_the_same_pipeline_says_nothing(pipe: StableDiffusionPipeline) -> None:
    before = torch.get_rng_state()
    check(pipe, measured_on(pipe))
    check(pipe, Strategy.full(6))
    check(pipe, Strategy.preset("paper-b1"))
    assert torch.equal(before, torch.get_rng_state())


def test_narrower_precision_and_layout_are_the_same_weights(pipe: StableDiffusionPipeline) -> None:
    strategy = measured_on(pipe)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = copy.copy(pipe)
        narrow.unet = copy.deepcopy(pipe.unet).to(dtype).to(memory_format=torch.channels_last)
        wide = copy.copy(pipe)
        wide.unet = copy.deepcopy(narrow.unet).float()
        from_narrow = measured_on(narrow)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check(narrow, strategy)
            check(wide, from_narrow)
        assert not said
        # They are compared at all: one other tensor is seen in either direction.
        with torch.no_grad():
            narrow.unet.conv_in.weight.add_(1)
            wide.unet.conv_in.weight.add_(1)
        assert "the UNet's weights are" in complaint(narrow, strategy)
        assert "the UNet's weights are" in complaint(wide, from_narrow)


def test_another_unet_is_an_error_that_names_every_difference(make_pipe: Callable[..., Any]) -> None:
    strategy = measured_on(make_pipe(block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                                     up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")))  # fmt: skip
    with pytest.raises(ProvenanceError) as caught:
        check(make_pipe(), strategy)
    said = str(caught.value)
    for part in ("owner/model", "block_out_channels is [8, 16, 16, 16] here and was [8, 16, 16]", "down_block_types", "up_block_types", "replace(strategy, provenance={})"):
        assert part in said
    assert "layers_per_block" not in said
    check(make_pipe(), replace(strategy, provenance={}))


def test_other_weights_sampler_and_steps_are_warnings(pipe: StableDiffusionPipeline) -> None:
    strategy = measured_on(pipe)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1e-3
    said = complaint(pipe, strategy)
    assert "the UNet's weights are" in said
    assert "sampler" not in said
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert "the sampler is DDIMScheduler and was PNDMScheduler: pipe.scheduler = diffusers.PNDMScheduler.from_config" in complaint(pipe, strategy)
    assert "it has 12 steps and was measured with 6" in complaint(pipe, strategy.resample(12))


def test_another_setting_of_the_sampler(pipe: StableDiffusionPipeline) -> None:
    strategy = measured_on(pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert "timestep_spacing is 'trailing' and was 'leading'" in complaint(pipe, strategy)


def test_foreign_notes_are_not_compared(pipe: StableDiffusionPipeline) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for notes in ({"model": "a name"}, {"model": {"unet": 3, "weights": []}}, {"sampler": {"steps": "many", "settings": None}}, {"model": {"weights": {"int8": "x"}}}):
            check(pipe, Strategy.full(6).with_provenance(**notes))
    assert not said


def test_lora_layers_do_not_change_the_fingerprint(pipe: StableDiffusionPipeline) -> None:
    before = fingerprints(pipe.unet)
    assert set(before) == {"float32", "float16", "bfloat16"}
    pipe.unet.conv_in.register_parameter("lora_A", torch.nn.Parameter(torch.ones(2)))
    assert fingerprints(pipe.unet) == before
    assert fingerprints(torch.nn.Linear(2, 2, device="meta")) == {}
