"""Which rivals fit a model, and that a transformer's caches are measured like everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dato.cache_tools import TOOLS
from search.data.datasets import DataSpec
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.pipelines import ModelSpec
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.rivals import RivalSettings, fitting, rival_variants
from search.evaluate.variants import VariantError


def test_a_unets_rivals_are_those_of_the_paper() -> None:
    found = fitting(RivalSettings(), {"unet": ["diffusers", "UNet2DConditionModel"], "transformer": [None, None]})
    assert found.tomesd == (0.3, 0.5) and found.deepcache == (2, 3, 5, 10, 20) and found.cache_dit == ()
    assert {v.family for v in rival_variants(50, found)} == {"plain", "fewer", "limited", "tomesd", "deepcache", "naive"}


@pytest.mark.parametrize("kind", sorted({kind for kinds in TOOLS.values() for kind in kinds}))
def test_a_transformers_rivals_run_it(kind: str) -> None:
    found = fitting(RivalSettings(), {"transformer": ["diffusers", kind]})
    variants = rival_variants(20, found)
    assert not {"tomesd", "deepcache", "naive"} & {v.family for v in variants}
    caches = [v.baseline.cache for v in variants if v.baseline.cache]
    assert {c.tool for c in caches} == {tool for tool, kinds in TOOLS.items() if kind in kinds}
    assert all(c.why_not(kind) is None for c in caches)
    assert ("limited" in {v.family for v in variants}) is (kind != "FluxTransformer2DModel")
    assert len({v.digest for v in variants}) == len(variants) == len({v.name for v in variants})


def test_what_is_given_stays_and_nothing_is_nothing() -> None:
    found = fitting(RivalSettings(fewer_steps=("own-3",), cache_dit=(), taylorseer=("2",)), {"transformer": ["diffusers", "SD3Transformer2DModel"]})
    assert (found.fewer_steps, found.cache_dit, found.taylorseer) == (("own-3",), (), ("2",))
    (own,) = [v for v in rival_variants(20, found) if v.family == "fewer"]
    assert own.baseline.strategy is not None and own.baseline.strategy.sampler is None and own.baseline.steps == 3


def test_caches_run_with_other_samplers_too() -> None:
    (_, here, fewer) = rival_variants(20, RivalSettings(mag_cache=("0.1",), cached_steps=("UniPC-8",)))
    assert (here.name, here.baseline.steps, here.baseline.sampler) == ("MagCache, 0.1", 20, None)
    assert (fewer.name, fewer.baseline.steps, str(fewer.baseline.sampler), fewer.family) == ("MagCache, 0.1, UniPC-8", 8, "UniPC", "mag_cache")
    with pytest.raises(VariantError, match=r"rivals.cached_steps names 'Heun-3'"):
        rival_variants(20, RivalSettings(mag_cache=("0.1",), cached_steps=("Heun-3",)))
    with pytest.raises(VariantError, match=r"rivals.cache_dit: cache-dit is given 'F1'"):
        rival_variants(20, RivalSettings(cache_dit=("F1",)))


@pytest.mark.slow
def test_two_workers_measure_the_same_of_a_cache(tmp_path: Path) -> None:
    pytest.importorskip("cache_dit", reason="the extra 'baselines' is not installed")
    spec = EvaluatorSpec(ModelSpec(name="dit", path="embedded_dit", steps=5, guidance=3.0), DataSpec(name="digits", kind="digits"), EvaluationProtocol(images=4, batch=2), ("fid",))
    rivals = rival_variants(5, RivalSettings(mag_cache=("0.5",), cache_dit=("F1B0_W1_R0.5",), taylorseer=("2",), faster_cache=("2",)))
    one, two = spec.build(), spec.build()
    together, last = one.run(rivals, [[0, 1], [2, 3]]), two.run(rivals, [[2, 3]])
    assert [s.error for s in together] == [None] * 5
    for variant, a, b in zip(rivals, together, last, strict=True):
        assert torch.equal(a.features[2:], b.features), variant.name
        assert variant.family == "plain" or not torch.equal(a.features, together[0].features), variant.name
    wrong = replace(spec, model=ModelSpec(name="embedded", path="embedded", steps=5)).build()
    plain, refused = wrong.run(rivals[:2], [[0, 1]])
    assert plain.error is None and refused.error is not None and "has no transformer" in refused.error
