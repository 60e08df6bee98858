"""MACs of transformers: those of the real calls, and published figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dato
from dato import FULL, Step, Strategy, StrategyError
from dato.costs import CostModel
from search.evaluate.geometry import Geometry, geometry
from tests.dato.transformer.pipelines import BATCHED, BLOCKS, FAMILIES, run, tiny

STRATEGY = Strategy((Step(FULL), *(Step(d) for d in range(1, BLOCKS)), Step(0)))


class Counted:
    """What the flop counter finds in each call of a transformer."""

    def __init__(self, model: Any) -> None:
        self.calls: list[int] = []
        self._open: list[FlopCounterMode] = []
        self.handles = [model.register_forward_pre_hook(self._before), model.register_forward_hook(self._after)]

    def _before(self, *_: Any) -> None:
        self._open.append(FlopCounterMode(display=False).__enter__())

    def _after(self, *_: Any) -> None:
        counter = self._open.pop()
        counter.__exit__(None, None, None)
        self.calls.append(int(counter.get_total_flops()) // 2)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_calls_that_a_pipeline_makes(family: str, guided: bool) -> None:
    pipe = tiny(family, torch.float32)
    costs = CostModel(pipe.transformer, 8, 8, text=7)
    counted = Counted(pipe.transformer)
    # PyTorch's counter does not know the fused attention of CPUs; of products and a softmax it knows the products.
    with dato.accelerate(pipe, STRATEGY), sdpa_kernel(SDPBackend.MATH):
        run(pipe, guided=guided, steps=len(STRATEGY))
    calls = [costs.macs(step) for step in STRATEGY]
    expected = [2 * c for c in calls] if family in BATCHED else [c for c in calls for _ in range(2)]
    assert counted.calls == (expected if guided else calls)
    assert costs.depths == (0, 1, 2, 3, 4, FULL)
    assert costs.strategy_macs(STRATEGY, guided=guided) == sum(calls) * (1 + guided)


def test_flux_is_as_published() -> None:
    # 3,719.50 TFLOPs of 50 steps at 1024 px in TaylorSeer's Table 1 (arXiv 2503.06923), two FLOPs a MAC.
    costs = geometry("flux").costs()
    assert 50 * 2 * costs.macs(Step(FULL)) / 1e12 == pytest.approx(3719.5, rel=1e-3)
    assert costs.share(Step(1)) == pytest.approx(1 / 57, rel=0.03)
    assert costs.share(Step(13)) < costs.share(Step(56)) < 1
    assert len(costs.depths) == 57 and costs.depths[-1] == 12
    with pytest.raises(StrategyError, match="57 blocks"):
        costs.macs(Step(57))
    with pytest.raises(ValueError, match=r"FluxTransformer2DModel, in which dato prunes no tokens.*[Gg]ive prune_ratio 0"):
        costs.macs(Step(FULL, 0.5))


@pytest.mark.parametrize(("name", "blocks", "parameters"), [("sd35", 24, 2.24), ("pixart", 28, 0.61), ("qwen_image", 60, 20.4), ("flux", 57, 11.9), ("embedded_dit", 12, None)])
def test_geometries_are_of_the_published_size(name: str, blocks: int, parameters: float | None) -> None:
    shape = geometry(name)
    assert len(shape.costs().depths) == blocks + (blocks <= FULL)
    if parameters:
        assert sum(p.numel() for p in shape.meta().parameters()) / 1e9 == pytest.approx(parameters, rel=0.01)
    assert shape.guided is (name != "flux")
    assert not shape.is_unet


def test_the_embedded_transformer_s_calls_are_those_of_its_geometry() -> None:
    from search.evaluate.pipelines import ModelSpec, load_pipeline

    shape = geometry("embedded_dit")
    pipe = load_pipeline(ModelSpec(name="embedded_dit", path="embedded_dit"))
    counted = Counted(pipe.transformer)
    with sdpa_kernel(SDPBackend.MATH):
        pipe("a handwritten seven", num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    assert counted.calls == [2 * shape.costs().macs(Step(FULL))]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_example_call_runs(family: str) -> None:
    model = tiny(family, torch.float32).transformer
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    shape = Geometry(family, config, 8, type(model).__name__, text=5)
    with torch.no_grad():
        made = shape.random(torch.bfloat16)
        assert made(**shape.example(2, torch.bfloat16))[0].isfinite().all()


def test_another_transformer_is_refused_by_name() -> None:
    from diffusers import SanaTransformer2DModel

    with torch.device("meta"):
        other = SanaTransformer2DModel(num_layers=2)
    with pytest.raises(ValueError, match=r"SanaTransformer2DModel.*dato accelerates PixArtTransformer2DModel"):
        CostModel(other, 8, 8)
