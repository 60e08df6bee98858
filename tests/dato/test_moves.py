"""Models that are offloaded, copied, exchanged, saved and freed while a strategy is enabled."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks import ModelHook as DiffusersHook

import dato
from dato import FULL, Step, Strategy
from tests.dato.conftest import PRUNED, STEPS, random_controlnet, report_of, run, untouched, use, with_controlnet

DEEP = Strategy((Step(FULL), Step(11, 0.3), Step(5, 0.0, "cond"), Step(0), Step(8, 0.0, "both", 1), Step(1)))


def accelerated(pipe: Any, strategy: Strategy = PRUNED) -> torch.Tensor:
    with dato.accelerate(pipe, strategy):
        return run(pipe)


class TestOffloading:
    @pytest.mark.parametrize("first", ["offload", "enable"])
    @pytest.mark.parametrize("how", ["model", "sequential"])
    def test_by_accelerate_in_either_order_and_run_after_run(self, pipe: Any, how: str, first: str) -> None:
        plain, expected = run(pipe), accelerated(pipe)
        # Of sequential offloading the UNet's part: on a CPU accelerate cannot move the text encoder's buffers.
        offload = (lambda: pipe.enable_model_cpu_offload(device="cpu")) if how == "model" else (lambda: cpu_offload(pipe.unet, torch.device("cpu")))
        steps = [offload, lambda: dato.enable(pipe, PRUNED)]
        for do in steps if first == "offload" else reversed(steps):
            do()
        for _ in range(3):
            result = run(pipe)  # a resnet whose weights come and go is not split, which rounds differently
            assert torch.equal(result, expected) or (how == "sequential" and torch.allclose(result, expected, atol=1e-4 * float(expected.abs().max())))
            assert report_of(pipe).finished
            assert report_of(pipe).calls_by_depth[2] == 4
        dato.enable(pipe, Strategy.full(STEPS))
        assert torch.equal(run(pipe), plain)
        dato.disable(pipe)
        for _ in range(2):
            assert torch.equal(run(pipe), plain)
        pipe.remove_all_hooks()
        assert torch.equal(run(pipe), plain)
        assert not hasattr(pipe.unet, "_diffusers_hook")

    def test_taken_off_while_enabled(self, pipe: Any) -> None:
        plain, expected = run(pipe), accelerated(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        dato.enable(pipe, PRUNED)
        run(pipe)
        pipe.remove_all_hooks()
        assert torch.equal(run(pipe), expected)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(run(pipe), expected)
        pipe.remove_all_hooks()
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)

    def test_a_controlnet_is_skipped_run_after_run(self, pipe: Any) -> None:
        control = use(with_controlnet(pipe), "DDIMScheduler")
        add_hook_to_module(control.controlnet, ModelHook())
        dato.enable(control, Strategy((Step(FULL), Step(0)) * 3))
        for _ in range(2):
            run(control, image=torch.ones(1, 3, 32, 32))
            assert report_of(control).controls_skipped == 3
            remove_hook_from_module(control.controlnet)
            add_hook_to_module(control.controlnet, ModelHook())
        dato.disable(control)
        assert not hasattr(control.controlnet, "_diffusers_hook")
        remove_hook_from_module(control.controlnet)
        assert control.controlnet.forward.__func__ is type(control.controlnet).forward

    @pytest.mark.parametrize("order", ["offload first", "enable first"])
    @pytest.mark.parametrize("settings", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "block_level", "num_blocks_per_group": 3}], ids=["leaf", "block", "blocks"])
    @pytest.mark.parametrize("strategy", [PRUNED, DEEP], ids=["half", "deep"])
    def test_in_groups(self, pipe: Any, settings: dict[str, Any], strategy: Strategy, order: str, tmp_path: Path) -> None:
        # Kept on disk, weights that are not loaded are whatever memory holds: NaN here.
        use(pipe, "DDIMScheduler")
        plain, expected = run(pipe), accelerated(pipe, strategy)
        offload = lambda: apply_group_offloading(pipe.unet, torch.device("cpu"), offload_to_disk_path=str(tmp_path), **settings)  # noqa: E731
        if order == "enable first":
            dato.enable(pipe, strategy)
            offload()
        else:
            offload()
            dato.enable(pipe, strategy)
        spoil(pipe.unet)
        for _ in range(2):
            result = run(pipe)
            assert torch.allclose(result, expected, atol=1e-4 * float(expected.abs().max()))  # the halves of a resnet are joined, not split
            assert report_of(pipe).calls_by_depth[FULL] < STEPS
            spoil(pipe.unet)
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)


def spoil(unet: Any) -> None:
    """NaN in the place of every weight that is kept on disk now."""
    for module in unet.modules():
        group = getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).get("group_offloading")
        if group is not None:
            for tensor in group.group.tensor_to_key:
                tensor.data.fill_(torch.nan)


class TestForwardsOfOthers:
    def test_one_that_is_put_back_is_noticed_in_the_run(self, pipe: Any) -> None:
        plain, before = run(pipe), pipe.unet.forward
        dato.enable(pipe, PRUNED)
        pipe.unet.forward = before  # as a tool does that was there before, when it is switched off
        for ask in (dato.status, run):
            with pytest.raises(RuntimeError, match=r"another tool has since put back.*call dato.enable\(pipe, strategy\) again"):
                ask(pipe)
        expected = accelerated(pipe)
        dato.enable(pipe, PRUNED)
        assert torch.equal(run(pipe), expected)
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)

    @pytest.mark.parametrize("order", ["01d", "0d1", "d01", "1d0"])
    def test_hooks_of_diffusers_and_of_accelerate_around_it(self, pipe: Any, order: str) -> None:
        plain, expected, seen = run(pipe), accelerated(pipe), []

        class Counting(DiffusersHook):
            def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
                seen.append("diffusers")
                return args, kwargs

        class Also(ModelHook):
            def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
                seen.append("accelerate")
                return args, kwargs

        do: dict[str, Callable[[], Any]] = {
            "0": lambda: add_hook_to_module(pipe.unet, Also()),
            "1": lambda: HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(Counting(), "counting"),
            "d": lambda: dato.enable(pipe, PRUNED),
        }
        for key in order:
            do[key]()
        assert torch.equal(run(pipe), expected)
        dato.disable(pipe)
        seen.clear()
        assert torch.equal(run(pipe), plain)
        assert set(seen) == {"diffusers", "accelerate"}


class TestCopies:
    def test_a_copy_follows_by_itself(self, pipe: Any) -> None:
        plain, expected = run(pipe), accelerated(pipe)
        dato.enable(pipe, PRUNED)
        run(pipe)
        other = copy.deepcopy(pipe)
        assert torch.equal(run(other), expected)
        assert report_of(other) is not report_of(pipe)
        dato.disable(other)
        assert dato.status(other) is None
        assert untouched(other.unet)
        assert torch.equal(run(other), plain)
        assert torch.equal(run(pipe), expected)
        another = copy.deepcopy(pipe)
        dato.disable(pipe)
        assert untouched(pipe.unet)
        assert torch.equal(run(pipe), plain)
        assert torch.equal(run(another), expected)
        dato.enable(another, Strategy.full(STEPS))
        assert torch.equal(run(another), plain)

    def test_a_copy_within_a_run(self, pipe: Any) -> None:
        use(pipe, "DDIMScheduler")
        expected, copies = accelerated(pipe), []

        def duplicate(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                copies.append(copy.deepcopy(_pipe))
            return kwargs

        dato.enable(pipe, PRUNED)
        assert torch.equal(run(pipe, callback_on_step_end=duplicate), expected)
        assert torch.equal(run(copies[0]), expected)

    def test_a_copy_has_weights_of_its_own(self, pipe: Any) -> None:
        dato.enable(pipe, PRUNED)
        other = copy.deepcopy(pipe)
        for p in other.unet.parameters():
            p.data.mul_(0.9)
        changed = run(other)
        assert not torch.equal(changed, run(pipe))
        dato.disable(other)
        assert torch.equal(accelerated(other), changed)
        original = weakref.ref(pipe.unet)
        dato.enable(other, PRUNED)
        del pipe
        gc.collect()
        assert original() is None or sum(p.numel() for p in other.unet.parameters())  # the fixture may hold it
        assert torch.equal(run(other), changed)

    def test_a_copy_of_the_unet_alone_belongs_to_the_pipeline_it_is_put_into(self, pipe: Any, make_pipe: Callable[..., Any]) -> None:
        plain, expected = run(pipe), accelerated(pipe)
        dato.enable(pipe, PRUNED)
        other = make_pipe()
        other.unet = copy.deepcopy(pipe.unet)
        assert torch.equal(run(other), expected)
        assert report_of(other).finished
        dato.disable(other)
        assert untouched(other.unet)
        assert torch.equal(run(other), plain)
        assert torch.equal(run(pipe), expected)

    def test_with_a_controlnet_and_features(self, pipe: Any) -> None:
        control = use(with_controlnet(pipe), "DDIMScheduler")
        image = {"image": torch.ones(1, 3, 32, 32)}
        dato.enable(control, Strategy((Step(FULL), Step(0), Step(1, 0.5)) * 2), dato.Options(diff_source="feature", plan_per="layer"))
        expected = run(control, **image)
        other = copy.deepcopy(control)
        dato.disable(control)
        assert torch.equal(run(other, **image), expected)
        assert report_of(other).controls_skipped == 2
        dato.disable(other)
        assert untouched(other.unet)
        assert untouched(other.controlnet)

    def test_pickling_is_refused_with_the_way_out(self, pipe: Any) -> None:
        dato.enable(pipe, PRUNED)
        for what in (pipe, pipe.unet):
            with pytest.raises(TypeError, match=r"cannot be pickled: call dato.disable\(pipe\) before"):
                pickle.dumps(what)
        dato.disable(pipe)
        pickle.dumps(pipe.unet)

    def test_saving_and_from_pipe(self, pipe: Any, tmp_path: Path) -> None:
        plain, expected = run(pipe), accelerated(pipe)
        dato.enable(pipe, PRUNED)
        pipe.save_pretrained(tmp_path)
        saved = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
        assert untouched(saved)
        assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), pipe.unet.state_dict().values(), strict=True))
        other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        assert other.unet is pipe.unet
        assert dato.status(other) is None
        assert torch.equal(run(pipe), expected)
        dato.disable(other)
        assert torch.equal(run(pipe), expected)
        dato.disable(pipe)
        assert torch.equal(run(pipe), plain)

    @pytest.mark.parametrize("when", ["between", "within"])
    def test_another_precision(self, pipe: Any, when: str, make_pipe: Callable[..., Any]) -> None:
        use(pipe, "DDIMScheduler")

        def double(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 3:
                _pipe.unet.double()
                kwargs = {k: v.double() for k, v in kwargs.items()}
            return kwargs

        settings = {"callback_on_step_end": double, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
        if when == "within":
            plain = run(pipe, **settings)
            pipe.unet.float()
            with dato.accelerate(pipe, Strategy.full(STEPS)):
                assert torch.equal(run(pipe, **settings), plain)
            pipe.unet.float()
            with dato.accelerate(pipe, PRUNED):
                assert run(pipe, **settings).dtype == torch.float64
                assert report_of(pipe).calls_by_depth == {FULL: 3, 2: 3}  # calls 0 and 3, and 4, which nothing that is kept fits
            return
        with dato.accelerate(pipe, PRUNED):
            expected = run(pipe)
            pipe.to(torch.float64)
            assert torch.equal(run(pipe), accelerated(use(make_pipe(), "DDIMScheduler").to(torch.float64)))
            pipe.to(torch.float32)
            assert torch.equal(run(pipe), expected)


class TestExchangedUNets:
    def test_disabling_frees_the_one_before(self, pipe: Any, make_pipe: Callable[..., Any]) -> None:
        plain, expected, old, spare = run(pipe), accelerated(pipe), pipe.unet, make_pipe()
        dato.enable(pipe, PRUNED)
        pipe.unet = spare.unet
        assert torch.equal(run(pipe), plain)
        assert dato.status(pipe) is None
        dato.disable(pipe)
        assert untouched(old)
        assert untouched(pipe.unet)
        spare.unet = old
        assert torch.equal(accelerated(spare), expected)

    def test_enabling_again_frees_it_too(self, pipe: Any, make_pipe: Callable[..., Any]) -> None:
        expected, old = accelerated(pipe), pipe.unet
        dato.enable(pipe, PRUNED)
        pipe.unet = make_pipe().unet
        dato.enable(pipe, PRUNED)
        assert untouched(old)
        assert torch.equal(run(pipe), expected)
        dato.disable(pipe)
        assert untouched(pipe.unet)

    def test_one_left_behind_can_be_enabled_elsewhere(self, pipe: Any, make_pipe: Callable[..., Any]) -> None:
        expected, old, spare = accelerated(pipe), pipe.unet, make_pipe()
        dato.enable(pipe, Strategy.uniform(STEPS, 2))
        pipe.unet = spare.unet
        spare.unet = old
        dato.enable(spare, PRUNED)
        assert torch.equal(run(spare), expected)
        dato.disable(pipe)  # nothing of it is left
        assert torch.equal(run(spare), expected)
        dato.disable(spare)
        assert untouched(old)

    def test_two_enabled_pipelines_exchange_theirs(self, make_pipe: Callable[..., Any]) -> None:
        first, second = make_pipe(), make_pipe()
        unets = [first.unet, second.unet]
        dato.enable(first, PRUNED)
        dato.enable(second, PRUNED)
        first.unet, second.unet = second.unet, first.unet
        dato.disable(first)
        dato.disable(second)
        assert all(untouched(u) for u in unets)

    def test_a_pipeline_that_is_gone(self, make_pipe: Callable[..., Any]) -> None:
        pipe = make_pipe()
        other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        gone = weakref.ref(pipe)
        dato.enable(pipe, PRUNED)
        del pipe
        gc.collect()
        assert gone() is None
        dato.enable(other, PRUNED)
        dato.disable(other)
        assert untouched(other.unet)

    def test_an_enabled_pipeline_is_freed_with_its_unet(self, make_pipe: Callable[..., Any]) -> None:
        pipe = make_pipe()
        dato.enable(pipe, PRUNED)
        run(pipe)
        unet = weakref.ref(pipe.unet)
        del pipe
        gc.collect()
        assert unet() is None

    def test_a_controlnet_that_is_left_behind(self, pipe: Any, make_pipe: Callable[..., Any]) -> None:
        net = random_controlnet(pipe.unet)
        first, second = (with_controlnet(p, net) for p in (pipe, make_pipe()))
        dato.enable(first, PRUNED)
        first.controlnet = None
        dato.enable(second, PRUNED)
        dato.disable(first)
        dato.disable(second)
        assert untouched(net)
        assert untouched(first.unet)
        assert untouched(second.unet)
