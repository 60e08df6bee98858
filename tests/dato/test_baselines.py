"""The rivals run through the same interface, and DeepCache as a strategy is the DeepCache package."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from dato import Strategy, accelerate, baselines
from tests.dato.conftest import STEPS, run, use


@pytest.mark.parametrize("branch", range(11))
def test_deepcache_as_a_strategy_is_the_package(pipe: Any, branch: int) -> None:
    package = pytest.importorskip("DeepCache", reason="the extra 'baselines' is not installed")
    use(pipe, "DDIMScheduler")
    helper = package.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    theirs = run(pipe)
    helper.disable()
    with accelerate(pipe, Strategy.uniform(STEPS, 3, depth=branch + 1)):
        ours = run(pipe)
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))


def test_each_changes_the_run_and_is_undone(pipe: Any) -> None:
    pytest.importorskip("tomesd", reason="the extra 'baselines' is not installed")
    plain, scheduler = run(pipe), pipe.scheduler
    for baseline in (
        baselines.tomesd(STEPS, 0.5),
        baselines.deepcache_tomesd(STEPS, 2, 0.5),
    ):
        with baseline.applied(pipe) as (faster, steps):
            images = run(faster, num_inference_steps=steps)
        assert torch.isfinite(images).all()
        assert not torch.equal(images, plain), baseline.name
        assert pipe.scheduler is scheduler
        assert torch.equal(run(pipe), plain), baseline.name
    with baselines.plain(STEPS).applied(pipe) as (same, steps):
        assert torch.equal(run(same, num_inference_steps=steps), plain)


def test_token_merging_gives_the_same_images_again_and_leaves_the_default_generator_alone(pipe: Any) -> None:
    pytest.importorskip("tomesd", reason="the extra 'baselines' is not installed")
    found = []
    for _ in range(2):
        torch.rand(3)
        state = torch.get_rng_state()
        with baselines.tomesd(STEPS, 0.5).applied(pipe) as (merged, steps):
            found.append(run(merged, num_inference_steps=steps))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)


def test_limited_guidance_is_in_the_first_half_of_the_steps() -> None:
    strategy = baselines.limited_guidance(5, "DPM++")
    assert str(strategy) == "FFFF'F'"
    assert strategy.sampler == Strategy.full(5, "DPM++").sampler
    assert str(baselines.limited_guidance(4)) == "FFF'F'"
    assert str(baselines.limited_guidance(1)) == "F"


def test_what_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"merge_ratio is 0.9; ToMeSD allows 0 to 0.75"):
        baselines.tomesd(50, 0.9)
    with pytest.raises(ValueError, match=r"the strategy has 20; use strategy.resample\(50\)"):
        baselines.Baseline(name="x", steps=50, strategy=Strategy.full(20))


def test_they_are_reached_from_the_package_and_imported_when_asked_for() -> None:
    code = (
        "import sys, dato; assert not {'dato.baselines', 'dato.costs'} & set(sys.modules); "
        "print(dato.baselines.plain(3).name, dato.costs.CostModel.__name__); dato.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["unaccelerated", "CostModel"]
    assert "AttributeError: module 'dato' has no attribute 'nothing'" in done.stderr
