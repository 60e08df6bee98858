"""The split resnet is the resnet, and it is used where it may be."""

from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

import dato
from dato import FULL, Step, Strategy
from dato.call_arguments import bind_call
from dato.unet.shallow import run_shallow, share_of
from dato.unet.split_resnet import cached_share, can_split, run_resnet
from dato.unet.units import Layout
from tests.dato.conftest import STEPS, precomputed, run


def make_resnet(first: int, second: int, **changes: Any) -> ResnetBlock2D:
    torch.manual_seed(0)
    return ResnetBlock2D(in_channels=first + second, out_channels=16, temb_channels=12, groups=8, groups_out=4, **changes).double()


@torch.inference_mode()
@pytest.mark.parametrize("channels", [(32, 32), (16, 48), (8, 56)])
def test_the_parts_add_up_to_the_whole(channels: tuple[int, int]) -> None:
    resnet = make_resnet(*channels)
    for name, p in resnet.named_parameters():
        if "norm" in name:
            nn.init.normal_(p)
    cached, skip = (torch.randn(3, c, 7, 5, dtype=torch.float64) for c in channels)
    emb = torch.randn(3, 12, dtype=torch.float64)
    assert can_split(resnet, channels[0])
    share = cached_share(resnet, cached)
    assert torch.allclose(run_resnet(resnet, share, skip, emb), resnet(torch.cat([cached, skip], 1), emb), atol=1e-12)


def test_what_cannot_be_told_apart_is_not() -> None:
    assert not can_split(make_resnet(12, 52), 12)  # a group of 8 channels would straddle the seam
    assert not can_split(make_resnet(32, 32, up=True), 32)
    assert not can_split(make_resnet(32, 32, time_embedding_norm="scale_shift"), 32)
    assert not can_split(nn.Conv2d(4, 4, 1), 2)
    watched = make_resnet(32, 32)
    watched.conv1.register_forward_hook(lambda *_: None)
    assert not can_split(watched, 32)
    wrapped = make_resnet(32, 32)
    wrapped.conv1 = nn.Sequential(wrapped.conv1)  # as a LoRA adapter does
    assert not can_split(wrapped, 32)


@torch.inference_mode()
@pytest.mark.parametrize("depth", range(1, 12))
def test_shallow_calls_agree_at_every_depth(pipe: Any, depth: int) -> None:
    unet = pipe.unet.double()
    layout = Layout.of(unet)
    call = bind_call(unet, (torch.randn(2, 4, 16, 16).double(), torch.tensor(300), torch.randn(2, 7, 64).double()), {})
    seen: list[torch.Tensor] = []
    handle = layout.outputs[depth].last.register_forward_hook(lambda _m, _a, out: seen.append(out if isinstance(out, torch.Tensor) else out[0]))
    unet(call["sample"], call["timestep"], call["encoder_hidden_states"])
    handle.remove()
    share = share_of(layout, depth, seen[0])
    assert (share is None) == (depth in (3, 4)), "where groups straddle"
    assert torch.allclose(run_shallow(layout, depth, seen[0], call, share), run_shallow(layout, depth, seen[0], call), atol=1e-10)


def test_only_work_that_is_used_again_is_kept(pipe: Any) -> None:
    kept = []
    handle = pipe.unet.register_forward_hook(lambda m, _a, _o: kept.append(precomputed(m)))
    with dato.accelerate(pipe, Strategy((Step(FULL), Step(1), Step(FULL), Step(1), Step(0), Step(1)))):
        run(pipe)
    handle.remove()
    # PNDM's extra call is governed by the first entry. After the last call nothing is kept at all.
    assert kept == [[], [], [], [], [1], [1], []]
    assert STEPS == 6
