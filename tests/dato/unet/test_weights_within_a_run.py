"""Weights and modules that change within a run: no half that was made of them outlives them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

import dato
from dato import FULL, Step, Strategy
from tests.dato.conftest import MIXED, PRUNED, SHALLOW, STEPS, report_of, run
from tests.dato.unet.naive import Change, changing, close, naive


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
            report = report_of(pipe)
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
        pruned = report_of(other)
    dato.enable(pipe, PRUNED)
    run(pipe)
    exchange_block(pipe)
    assert torch.equal(run(pipe), expected)
    report = report_of(pipe)
    assert report.tokens_pruned == pruned.tokens_pruned
    dato.disable(pipe)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_hooks_on_all_modules_see_every_convolution(make: Callable[[], Any]) -> None:
    handles: list[Any] = []

    def scale(_pipe: Any) -> None:
        handles.append(nn.modules.module.register_module_forward_hook(lambda m, _a, out: 1.5 * out if isinstance(m, nn.Conv2d) else None))

    expected, _ = naive(make(), SHALLOW, **changing(2, scale))
    handles.pop().remove()
    try:
        with dato.accelerate(pipe := make(), SHALLOW):
            result = run(pipe, **changing(2, scale))
    finally:
        handles.pop().remove()
    assert close(result, expected)


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
