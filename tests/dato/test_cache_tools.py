"""Other tools that cache a transformer's blocks run as they are, and what they leave out in a known schedule is what our strategies leave out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from dato import Strategy, accelerate, baselines
from dato.cache_tools import TOOLS, CacheTool
from tests.dato.transformer.pipelines import run, tiny

STEPS = 12
SETTINGS = {
    "FirstBlockCache": ("0.5",), "TaylorSeer": ("2", "lite-2"), "MagCache": ("0.5",), "FasterCache": ("2",), "cache-dit": ("F1B0_W2_R0.5", "F1B1_W2_R0.5_T1", "F1B0_W1_R9_Mfast"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> None:
    diffusers.logging.set_verbosity_error()  # FasterCache warns that it is experimental


def _pipe(family: str) -> Any:
    return tiny(family, torch.float32)


@pytest.mark.filterwarnings("ignore:.*SwigPyPacked|.*swigvarlink:DeprecationWarning")
@pytest.mark.parametrize("family", ["pixart", "sd3", "sd3.5", "flux", "qwen-image"])
def test_each_changes_the_run_and_is_undone(family: str) -> None:
    pipe = _pipe(family)
    plain, kind, tried = run(pipe, steps=STEPS), type(pipe.transformer).__name__, 0
    for tool, settings in SETTINGS.items():
        for cache in (CacheTool(tool=tool, setting=s) for s in settings):
            if cache.why_not(kind) is not None:
                with pytest.raises(ValueError, match=rf"{tool}.*does not run .*{kind}.*leave it out of rivals"), baselines.cached(STEPS, cache).applied(pipe):
                    pass
                continue
            if tool == "cache-dit":
                pytest.importorskip("cache_dit", reason="the extra 'baselines' is not installed")
            baseline = baselines.cached(STEPS, cache).calibrated(pipe, lambda: run(pipe, steps=STEPS))
            found = []
            for _ in range(2):
                with baseline.applied(pipe) as (faster, steps):
                    found.append(run(faster, steps=steps))
            assert torch.isfinite(found[0]).all()
            assert torch.equal(*found), f"{cache} keeps something from one run to the next"
            assert not torch.equal(found[0], plain), f"{cache} does nothing"
            assert torch.equal(run(pipe, steps=STEPS), plain), f"{cache} is not undone"
            tried += 1
    assert tried >= 5
    with accelerate(pipe, Strategy.full(STEPS)):
        assert torch.equal(run(pipe, steps=STEPS), plain), "nothing is left that a strategy is refused for"


@pytest.mark.parametrize(
    ("family", "tool", "setting", "depth"),
    [
        ("pixart", "FirstBlockCache", "9999", 1), ("flux", "FirstBlockCache", "9999", 1), ("qwen-image", "FirstBlockCache", "9999", 1),
        ("sd3.5", "cache-dit", "F1B0_W1_R9999", 1), ("sd3", "cache-dit", "F3B0_W1_R9999", 3), ("qwen-image", "cache-dit", "F2B0_W1_R9999", 2),
    ],
)  # fmt: skip
def test_blocks_reused_in_every_call_are_the_strategy_that_reuses_them_in_every_call(family: str, tool: str, setting: str, depth: int) -> None:
    if tool == "cache-dit":
        pytest.importorskip("cache_dit", reason="the extra 'baselines' is not installed")
    pipe = _pipe(family)
    with baselines.cached(STEPS, CacheTool(tool=tool, setting=setting)).applied(pipe):
        theirs = run(pipe, steps=STEPS)
    with accelerate(pipe, Strategy.uniform(STEPS, STEPS, depth=depth)):
        ours = run(pipe, steps=STEPS)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))


def test_what_cache_dit_leaves_on_flux_is_refused_with_the_way_out() -> None:
    package = pytest.importorskip("cache_dit", reason="the extra 'baselines' is not installed")
    pipe = _pipe("flux")
    package.enable_cache(pipe)
    package.disable_cache(pipe)
    with pytest.raises(ValueError, match=r"cache_dit.*del pipe.transformer.forward"), accelerate(pipe, Strategy.full(STEPS)):
        run(pipe, steps=STEPS)
    del pipe.transformer.forward
    with accelerate(pipe, Strategy.full(STEPS)):
        run(pipe, steps=STEPS)


def test_a_cache_runs_with_another_sampler_and_fewer_steps() -> None:
    pipe = _pipe("flux")
    own = pipe.scheduler
    baseline = baselines.cached(5, CacheTool(tool="FirstBlockCache", setting="0.000001"), "UniPC")  # nothing is ever so close: no block is reused
    with baseline.applied(pipe) as (faster, steps):
        found = run(faster, steps=steps)
    assert pipe.scheduler is own
    with accelerate(pipe, Strategy.full(5, "UniPC")):
        assert torch.equal(run(pipe, steps=5), found)


def test_magcache_learns_one_ratio_for_each_step() -> None:
    for family in ("sd3", "flux", "qwen-image"):
        pipe = _pipe(family)
        found = CacheTool(tool="MagCache", setting="0.5").calibrated(pipe, STEPS, lambda pipe=pipe: run(pipe, steps=STEPS)).ratios  # type: ignore[misc]
        assert found is not None and len(found) == STEPS and found[0] == 1.0 and all(r > 0 for r in found)
    with pytest.raises(ValueError, match="MagCache has to see the model once"), CacheTool(tool="MagCache", setting="0.5").applied(pipe, STEPS):
        pass


@pytest.mark.parametrize(
    ("tool", "setting", "message"),
    [
        ("TeaCache", "0.1", "tool is 'TeaCache'; allowed are FirstBlockCache"),
        ("FirstBlockCache", "0", "FirstBlockCache is given '0'; give a threshold"),
        ("TaylorSeer", "light-3", "give an interval, such as 3 or lite-3"),
        ("FasterCache", "0.5", "FasterCache is given '0.5'; give an interval"),
        ("cache-dit", "F1B0", "cache-dit is given 'F1B0'; give blocks in front"),
    ],
)
def test_what_is_not_one_is_refused(tool: str, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheTool(tool=tool, setting=setting)


def test_where_they_cannot_be_they_say_so(pipe: Any) -> None:
    for tool in TOOLS:
        cache = CacheTool(tool=tool, setting=SETTINGS[tool][0])
        with pytest.raises(ValueError, match=f"StableDiffusionPipeline has no transformer, and {tool} caches the blocks of one"), cache.applied(pipe, 4):
            pass
    one = baselines.cached(4, CacheTool(tool="FirstBlockCache", setting="0.1"))
    with pytest.raises(ValueError, match="has a strategy and FirstBlockCache"):
        replace(one, strategy=Strategy.full(4))
