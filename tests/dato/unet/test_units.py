from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from peft import LoraConfig, get_peft_model
from torch import nn

import dato
from dato import Strategy
from dato.call_arguments import bind_call
from dato.unet.shallow import run_shallow
from dato.unet.units import Layout, unit_output
from tests.dato.conftest import STEPS


@pytest.fixture(scope="module")
def unet(make_pipe: Any) -> UNet2DConditionModel:
    return make_pipe().unet


def record_outputs(layout: Layout, call: tuple[Any, ...]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """A full call, and the output of every output unit in it."""
    found: dict[int, torch.Tensor] = {}
    hooks = []
    for level, unit in enumerate(layout.outputs):
        hooks.append(unit.last.register_forward_hook(lambda _m, _a, out, level=level: found.__setitem__(level, unit_output(out))))
    full = layout.unet(*call).sample
    for hook in hooks:
        hook.remove()
    return full, found


def test_units_are_numbered_as_in_the_original_code(unet: UNet2DConditionModel) -> None:
    layout = Layout.of(unet)
    assert len(layout) == 12
    kinds = [type(u.body).__name__ for u in layout.inputs]
    assert [i for i, k in enumerate(kinds) if k == "Downsample2D"] == [3, 6, 9]
    assert layout.inputs[0].body is unet.conv_in
    assert layout.outputs[1].last is unet.up_blocks[3].attentions[1]
    assert layout.outputs[0].body is unet.up_blocks[3].resnets[2]
    assert layout.outputs[3].last is unet.up_blocks[2].upsamplers[0]
    finest = [name for name, (_, d) in layout.self_attentions().items() if d == 1]
    assert len(finest) == 5
    assert len(layout.self_attentions()) == 15


def test_sdxl_has_nine_units_and_no_attention_at_the_finest_grid(make_pipe: Any) -> None:
    unet = make_pipe(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
    ).unet
    layout = Layout.of(unet)
    assert len(layout) == 9
    assert {d for _, d in layout.self_attentions().values()} == {2, 4}
    assert layout.outputs[1].last is unet.up_blocks[2].resnets[1]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (15, 17)])
@pytest.mark.parametrize("depth", range(1, 12))
def test_fresh_features_give_the_full_call_again(unet: UNet2DConditionModel, depth: int, size: tuple[int, int]) -> None:
    layout = Layout.of(unet)
    call = (torch.randn(2, 4, *size), torch.tensor(500), torch.randn(2, 7, 64))
    full, outputs = record_outputs(layout, call)
    shallow = run_shallow(layout, depth, outputs[depth], bind_call(unet, call, {}))
    assert torch.equal(shallow, full)


@torch.inference_mode()
def test_depth_1_runs_exactly_the_units_it_should(unet: UNet2DConditionModel) -> None:
    layout = Layout.of(unet)
    sample, t, states = torch.randn(2, 4, 16, 16), torch.tensor(300), torch.randn(2, 7, 64)
    cached = torch.randn(2, 8, 16, 16)
    emb = unet.time_embedding(unet.time_proj(t.expand(2)))
    block = unet.up_blocks[3]
    hidden = block.resnets[2](torch.cat([cached, unet.conv_in(sample)], 1), emb)
    hidden = block.attentions[2](hidden, encoder_hidden_states=states).sample
    naive = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    assert torch.equal(run_shallow(layout, 1, cached, bind_call(unet, (sample, t, states), {})), naive)


def test_calls_are_bound_by_name(unet: UNet2DConditionModel) -> None:
    call = bind_call(unet, (1, 2), {"encoder_hidden_states": 3})
    assert (call["sample"], call["timestep"], call["encoder_hidden_states"]) == (1, 2, 3)
    assert set(call) == set(inspect.signature(UNet2DConditionModel.forward).parameters)


@torch.inference_mode()
def test_what_cannot_be_cached_is_refused(unet: UNet2DConditionModel) -> None:
    layout = Layout.of(unet)
    call = bind_call(unet, (torch.randn(1, 4, 16, 16), 1, torch.randn(1, 7, 64)), {})
    for key, value in (
        ("cross_attention_kwargs", {"gligen": {}}),
        ("down_intrablock_additional_residuals", [torch.zeros(1)]),
        ("down_block_additional_residuals", [torch.zeros(1)]),
    ):
        with pytest.raises(ValueError, match=r"call dato.disable\(pipe\) first"):
            run_shallow(layout, 1, torch.zeros(1, 8, 16, 16), {**call, key: value})
    with pytest.raises(TypeError, match="expected a diffusers UNet2DConditionModel, but got UNet2DModel"):
        Layout.of(UNet2DModel(block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(("wrap", "inner"), [(nn.DataParallel, "module"), (lambda u: get_peft_model(u, LoraConfig(r=2, target_modules=["to_q"])), "base_model.model")], ids=["DataParallel", "PEFT"])
def test_a_unet_within_another_model_is_refused_with_the_way_to_it(pipe: Any, wrap: Any, inner: str) -> None:
    pipe.unet = wrap(pipe.unet)
    with pytest.raises(TypeError, match=rf"but got \w+: give the pipeline the UNet that it wraps, pipe.unet = pipe.unet.{inner}, "):
        dato.enable(pipe, Strategy.full(STEPS))
    pipe.unet = pipe.unet.get_submodule(inner)
    dato.enable(pipe, Strategy.full(STEPS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 3 + ("ResnetDownsampleBlock2D",),
                "up_block_types": ("ResnetUpsampleBlock2D",) + ("SimpleCrossAttnUpBlock2D",) * 3,
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "attention_head_dim": 8,
            },
            "block 0 of this UNet is a SimpleCrossAttnDownBlock2D with Attention, where Transformer2DModel is needed: .* Stable Diffusion v1, v2 and XL",
        ),
        (
            {"down_block_types": ("ResnetDownsampleBlock2D",) + ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",)},
            "ResnetDownsampleBlock2D with ResnetBlock2D, where Downsample2D is needed",
        ),
    ],
)
def test_unets_of_another_family_are_refused(make_pipe: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.of(make_pipe(**changes).unet)


def test_units_that_do_not_pair_up_are_refused(make_pipe: Any) -> None:
    unet = make_pipe().unet
    unet.up_blocks[0].resnets = unet.up_blocks[0].resnets[1:]
    with pytest.raises(ValueError, match="this UNet has 12 input units and 11 output units; caching by depth needs one output unit for each input unit"):
        Layout.of(unet)
