"""Costs against published figures, and against a count by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from dato import FULL, Options, Step, Strategy, StrategyError
from dato.costs import CostModel
from search.evaluate.geometry import geometry


@pytest.fixture(scope="module")
def sd15() -> CostModel:
    shape = geometry("sd15")
    return CostModel(shape.meta(), shape.latent, shape.latent)


def test_limits_are_those_of_the_arithmetic(sd15: CostModel) -> None:
    assert sd15.macs(Step(FULL)) / 1e9 == pytest.approx(401.6, rel=0.005)
    assert sd15.macs(Step(1)) / 1e9 == pytest.approx(31.6, rel=0.005)
    assert sd15.macs(Step(0, 0.5)) == 0
    for interval, limit in ((2, 1.85), (3, 2.55), (5, 3.80), (10, 5.85)):
        assert sd15.limit(Strategy.uniform(50, interval)) == pytest.approx(limit, rel=0.005)
    assert sd15.limit(Strategy.preset("authors-l12"), extra_calls=1) == pytest.approx(7.67, rel=0.005)
    assert sd15.limit(Strategy.preset("authors-l12", 0.5), extra_calls=1) == pytest.approx(8.87, rel=0.01)


def test_a_call_of_the_conditional_half_alone_costs_half(sd15: CostModel) -> None:
    full, shallow = sd15.macs(Step(FULL)), sd15.macs(Step(1))
    both, limited = Strategy.full(4), Strategy((Step(FULL), *[Step(FULL, 0.0, "cond")] * 3))
    assert sd15.macs(Step(1, 0.0, "cond", 2)) == shallow
    assert (sd15.strategy_macs(both), sd15.strategy_macs(limited)) == (8 * full, 5 * full)
    assert (sd15.strategy_macs(both, guided=False), sd15.strategy_macs(limited, guided=False)) == (4 * full, 4 * full)
    assert sd15.limit(limited) == pytest.approx(8 / 5)
    # Begun with the conditional half alone, the first call of both halves is full whatever it says.
    late = Strategy((Step(1, 0.0, "cond"), Step(0, 0.0, "cond", 1), Step(0), Step(1), Step(1, 0.0, "cond")))
    assert sd15.strategy_macs(late) == 3 * full + 3 * shallow
    assert sd15.strategy_macs(late, guided=False) == full + 2 * shallow


def test_samplers_are_counted_by_their_calls_against_those_of_the_unaccelerated_run(sd15: CostModel) -> None:
    limited = Strategy((Step(FULL), *[Step(FULL, 0.0, "cond")] * 3), sampler="DPM++")
    assert sd15.limit(limited, plain_calls=51) == pytest.approx(2 * 51 / 5)  # of 50 steps with PNDM
    assert sd15.limit(limited, plain_calls=51, guided=False) == pytest.approx(51 / 4)
    assert sd15.limit(limited, extra_calls=1) == pytest.approx(2 * 5 / 7)  # PNDM makes two calls by the first step
    assert sd15.limit(limited, extra_calls=3) == pytest.approx(2 * 7 / 9)  # Heun's makes two by each but the last
    with pytest.raises(StrategyError, match="makes 6 calls; allowed are 7"):
        sd15.strategy_macs(limited, extra_calls=2)


def test_a_pruned_layer_saves_what_its_attention_would_have_cost(sd15: CostModel) -> None:
    # One layer of 4096 tokens and width 320 at d = 1: four projections and two attention products over the kept half, and
    # the similarity of the other 3072 tokens to 1024 base tokens.
    tokens, kept, width = 4096, 2048, 320
    saved = 4 * (tokens - kept) * width**2 + 2 * (tokens**2 - kept**2) * width - 3072 * 1024 * width
    assert sd15.macs(Step(1)) - sd15.macs(Step(1, 0.5)) == saved


def test_planning_in_every_layer_costs_more(sd15: CostModel) -> None:
    shape = geometry("sd15")
    each = CostModel(shape.meta(), 64, 64, Options(plan_per="layer"))
    assert each.macs(Step(FULL, 0.5)) - sd15.macs(Step(FULL, 0.5)) == 4 * 3072 * 1024 * 320


def test_convolutions_and_linear_layers_of_a_real_call(pipe: Any) -> None:
    counted = 0

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        elif isinstance(module, nn.Linear):
            counted += output.numel() * module.in_features
        if type(module).__name__ == "Attention":
            queries, width = args[0].shape[1], module.inner_dim
            keys = queries if not module.is_cross_attention else 77
            counted += 2 * queries * keys * width

    handles = [m.register_forward_hook(count) for m in pipe.unet.modules()]
    with torch.no_grad():
        pipe.unet(torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 77, 64))
    for handle in handles:
        handle.remove()
    assert CostModel(pipe.unet, 16, 16).macs(Step(FULL)) == counted
