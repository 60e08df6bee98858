"""What holds for every model layout, sampler, guidance and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dato
from dato import FULL, Step, Strategy
from tests.dato.conftest import SAMPLERS, STEPS, cast, report_of, run, use


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("layout", ["sd15", "sd2", "sdxl"])
class TestContract:
    @pytest.fixture
    def pipe(self, layout: str, sampler: str, dtype: torch.dtype, make_layout: Callable[[str], Any]) -> Any:
        return cast(use(make_layout(layout), sampler), dtype)

    def test_exact_where_nothing_is_saved_and_exactly_undone(self, pipe: Any, guidance: float) -> None:
        unet = pipe.unet
        attributes, processors = set(vars(unet)), dict(unet.attn_processors)
        plain = run(pipe, guidance_scale=guidance)
        with dato.accelerate(pipe, Strategy.full(STEPS)):
            assert torch.equal(run(pipe, guidance_scale=guidance), plain)
        strategy = Strategy.uniform(STEPS, 2, depth=2, prune_ratio=0.5)
        dato.enable(pipe, strategy)
        once = run(pipe, guidance_scale=guidance)
        dato.enable(pipe, strategy)
        assert torch.equal(run(pipe, guidance_scale=guidance), once)
        assert not torch.equal(once, plain)
        report = report_of(pipe)
        assert report.finished
        assert sum(report.tokens_pruned.values()) > 0
        dato.disable(pipe)
        assert torch.equal(run(pipe, guidance_scale=guidance), plain)
        assert set(vars(unet)) == attributes
        assert unet.attn_processors == processors
        for module in unet.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not hasattr(module, "_diffusers_hook")

    def test_depth_0_replays_the_last_prediction(self, pipe: Any, guidance: float) -> None:
        seen: list[torch.Tensor] = []
        handle = pipe.unet.register_forward_hook(lambda _m, _a, output: seen.append(output[0].clone()))
        with dato.accelerate(pipe, Strategy((Step(FULL), Step(0), Step(0, 0.5), Step(1), Step(0), Step(FULL)))):
            run(pipe, guidance_scale=guidance)
            report = report_of(pipe)
        handle.remove()
        assert report.calls_by_depth == {FULL: 2 + len(seen) - STEPS, 0: 3, 1: 1}
        assert torch.equal(seen[-6], seen[-5])
        assert torch.equal(seen[-6], seen[-4])
        assert not torch.equal(seen[-4], seen[-3])
        assert torch.equal(seen[-3], seen[-2])
        assert not torch.equal(seen[-2], seen[-1])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("layout", ["sd15", "sd2", "sdxl"])
def test_an_image_alone_or_in_a_batch(layout: str, sampler: str, guidance: float, make_layout: Callable[[str], Any]) -> None:
    pipe = use(make_layout(layout), sampler)

    def gap() -> float:
        together, alone = run(pipe, (5, 6, 7), guidance_scale=guidance), run(pipe, (6,), guidance_scale=guidance)
        return float((together[1] - alone[0]).abs().max() / alone.abs().max())

    plain = gap()  # kernels round differently for another batch, with or without a strategy
    with dato.accelerate(pipe, Strategy.uniform(STEPS, 3)):
        assert gap() < max(1e-5, 2 * plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
@torch.inference_mode()
def test_full_size(name: str) -> None:
    """One full and one shallow call at the real width, on a small latent: the shapes fit, and the costs are those published."""
    from types import SimpleNamespace

    from diffusers import DDIMScheduler

    from dato.costs import CostModel
    from search.evaluate.geometry import geometry

    shape = geometry(name)
    costs = CostModel(shape.meta(), shape.latent, shape.latent)
    full, shallow = {"sd15": (401.6, 31.6), "sd2": (402.1, 31.6), "sdxl": (3380.6, 49.0)}[name]
    assert costs.macs(Step(FULL)) / 1e9 == pytest.approx(full, rel=0.005)
    assert costs.macs(Step(1)) / 1e9 == pytest.approx(shallow, rel=0.005)
    pipe = SimpleNamespace(unet=shape.random(torch.bfloat16), scheduler=DDIMScheduler(), do_classifier_free_guidance=True)
    call = shape.example(2, torch.bfloat16)
    call["sample"] = call["sample"][:, :, :16, :16]
    plain = pipe.unet(**call).sample
    # One timestep throughout: with the same input again, what was kept is what would be computed.
    pipe.scheduler.timesteps = torch.full((3,), int(call["timestep"]))
    first, second, third = ({**call, "timestep": t} for t in pipe.scheduler.timesteps)
    with dato.accelerate(pipe, Strategy((Step(FULL), Step(1), Step(2, 0.5)))):
        assert torch.equal(pipe.unet(**first).sample, plain)
        assert torch.allclose(pipe.unet(**second).sample, plain, atol=0.05 * float(plain.abs().max()))
        assert torch.isfinite(pipe.unet(**third).sample).all()
        report = report_of(pipe)
    assert report.calls_by_depth == {FULL: 1, 1: 1, 2: 1}
