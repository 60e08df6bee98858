"""A strategy's sampler as data: names, JSON, digests, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dato import FULL, Step, Strategy, StrategyError
from dato.card import FILES, write_card
from dato.sampler import SAMPLERS, Sampler

KARRAS = Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True})
FEW = Strategy((Step(FULL, 0.3), Step(1, 0.5), Step(0)), {"source": "a test"}, KARRAS)


def test_a_name_of_the_field_or_a_class_is_a_sampler() -> None:
    for name, sampler in SAMPLERS.items():
        strategy = Strategy.full(10, sampler=name)
        assert strategy.sampler == sampler
        assert str(sampler) == name
        assert name in repr(strategy)
        assert name in strategy.summary()
    assert Strategy.uniform(6, 2, sampler="HeunDiscreteScheduler").sampler == Sampler("HeunDiscreteScheduler")
    assert Strategy.full(10).sampler is None
    assert str(KARRAS) == "DPMSolverMultistepScheduler(algorithm_type='dpmsolver++', use_karras_sigmas=True)"


def test_whatever_a_strategy_is_made_into_keeps_its_sampler() -> None:
    for other in (FEW.canonical(), FEW.resample(9), FEW.with_provenance(a=1), Strategy.from_document(FEW.document()), pickle.loads(pickle.dumps(FEW))):
        assert other.sampler == KARRAS
    assert FEW.canonical().provenance == FEW.provenance


def test_equality_and_digest_tell_samplers_apart() -> None:
    kinds = [Strategy(FEW.steps), FEW, *(Strategy(FEW.steps, sampler=s) for s in SAMPLERS.values())]
    assert len(set(kinds)) == len({s.digest for s in kinds}) == len(kinds)
    assert Strategy(FEW.steps).digest == "5e66ec63c3373f3c"  # as before there were samplers
    turned = Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"})
    assert (turned, hash(turned), Strategy(FEW.steps, sampler=turned).digest) == (KARRAS, hash(KARRAS), FEW.digest)
    whole, exact = (Sampler("DDIMScheduler", {"sample_max_value": v}) for v in (1, np.float32(1.0)))
    assert Strategy(FEW.steps, sampler=whole).digest == Strategy(FEW.steps, sampler=exact).digest


def test_it_is_written_in_schema_2_and_without_one_in_schema_1(tmp_path: Path) -> None:
    data = json.loads(FEW.to_json())
    assert data["schema"] == "dato.strategy/2"
    assert data["sampler"] == {"scheduler": "DPMSolverMultistepScheduler", "settings": {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}}
    assert [s["cache_depth"] for s in data["steps"]] == ["full", 1, 0]
    assert json.loads(Strategy(FEW.steps).to_json())["schema"] == "dato.strategy/1"
    write_card(FEW, tmp_path)
    for name in FILES:
        again = Strategy.load(tmp_path / name)
        assert (again, again.provenance, again.digest) == (FEW, FEW.provenance, FEW.digest)


def test_files_written_by_hand() -> None:
    steps = [{"cache_depth": "full", "prune_ratio": 0}]
    for sampler, meant in (("UniPC", SAMPLERS["UniPC"]), ("DDIMScheduler", Sampler("DDIMScheduler")), ({"scheduler": "DDIMScheduler"}, Sampler("DDIMScheduler")), (None, None)):
        found = Strategy.from_json(json.dumps({"schema": "dato.strategy/2", "sampler": sampler, "steps": steps}))
        assert (found.sampler, found.steps) == (meant, (Step(FULL),))
    assert Strategy.from_json(json.dumps({"schema": "dato.strategy/2", "steps": steps})).sampler is None


@pytest.mark.parametrize(
    "change",
    [lambda d: d["sampler"]["settings"].update(use_karras_sigmas=False), lambda d: d.update(sampler="DPM++"), lambda d: d.pop("sampler"), lambda d: d["steps"][0].update(cache_depth=1)],
)
def test_a_changed_file_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(FEW.to_json())
    change(data)
    with pytest.raises(StrategyError, match="was changed after it was written"):
        Strategy.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"schema": "dato.strategy/1", "sampler": "DDIM", "steps": []}, ("unknown keys ['sampler']", "dato.strategy/1")),
        ({"schema": "dato.strategy/2", "steps": [{"cache_depth": 12, "prune_ratio": 0}]}, ("step 0", "cache_depth is 12", "but 12", '"full"')),
        ({"schema": "dato.strategy/2", "steps": [{"cache_depth": "deep", "prune_ratio": 0}]}, ("step 0", "'deep'")),
        ({"schema": "dato.strategy/2", "steps": ["full"]}, ("step 0", "'full'", "cache_depth and prune_ratio")),
        ({"schema": "dato.strategy/2", "guess": 1, "steps": []}, ("unknown keys ['guess']", "sampler")),
        ({"schema": "dato.strategy/2", "sampler": "LMS", "steps": [{"cache_depth": 1, "prune_ratio": 0}]}, ("file: sampler is 'LMS'", "DDIM, DPM++, Euler, PLMS, UniPC", "HeunDiscreteScheduler")),
        ({"schema": "dato.strategy/2", "sampler": {"class": "x"}, "steps": [{"cache_depth": 1, "prune_ratio": 0}]}, ("sampler is {'class': 'x'}", "scheduler and settings")),
    ],
)
def test_broken_files_are_refused(data: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy.from_json(json.dumps(data), where="file")
    assert all(words in str(caught.value) for words in named), str(caught.value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Strategy.full(3, sampler=3), ("sampler is 3", "DPM++")),  # type: ignore[arg-type]
        (lambda: Strategy.full(3, sampler="os.system"), ("sampler is 'os.system'", "a scheduler class of diffusers")),
        (lambda: Sampler("DDIMScheduler", {3: 4}), ("settings of the sampler DDIMScheduler", "{3: 4}")),  # type: ignore[dict-item]
        (lambda: Sampler("DDIMScheduler", {"a": {1}}), ("settings of the sampler DDIMScheduler", "a set")),
        (lambda: Sampler("DDIMScheduler", {"a": float("nan")}), ("settings of the sampler DDIMScheduler", "nan")),
    ],
)
def test_what_is_no_sampler_is_refused(make: Callable[[], object], named: tuple[str, ...]) -> None:
    with pytest.raises(StrategyError) as caught:
        make()
    assert all(words in str(caught.value) for words in named), str(caught.value)
