import json
import re
from pathlib import Path

import pytest

from dato import FULL, Step, Strategy, StrategyError
from dato.baselines import limited_guidance

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_every_preset_says_where_it_comes_from_and_has_50_steps_or_those_of_its_name() -> None:
    assert len(Strategy.presets()) == 23
    for name in Strategy.presets():
        strategy = Strategy.preset(name)
        of_sampler = re.fullmatch(r"(?:ddim|dpmpp|euler|plms|unipc)-(\d+)(?:-limited-guidance)?", name)
        assert len(strategy) == (int(of_sampler[1]) if of_sampler else 50)
        assert (strategy.sampler is not None) == bool(of_sampler)
        assert "arXiv" in strategy.provenance["source"]


def test_vectors_take_one_ratio() -> None:
    strategy = Strategy.preset("authors-l12", prune_ratio=0.5)
    assert strategy.calls_by_depth == {FULL: 4, 1: 21, 0: 25}
    assert {s.prune_ratio for s in strategy} == {0.5}
    assert strategy == Strategy.load("authors-l12@0.5")
    assert Strategy.preset("authors-l12").digest != strategy.digest
    with pytest.raises(StrategyError, match=r"paper-b1 holds a ratio for each of its steps; leave it out"):
        Strategy.preset("paper-b1", 0.5)
    with pytest.raises(StrategyError, match=r"no number after the @; write a prune ratio, such as authors-l6@0.5"):
        Strategy.load("authors-l6@half")
    with pytest.raises(StrategyError, match=r"prune_ratio is 0.8; allowed is"):
        Strategy.preset("authors-l6", 0.8)
    with pytest.raises(StrategyError, match="no preset is named 'paper'; there are paper-b1"):
        Strategy.preset("paper")


def test_deepcache_with_any_interval() -> None:
    for n in (2, 4, 10, 50):
        assert Strategy.preset(f"deepcache-{n}") == Strategy.load(f"deepcache-{n}") == Strategy.uniform(50, n)
        assert Strategy.preset(f"deepcache-{n}").provenance == Strategy.preset("deepcache-5").provenance
    assert {s.prune_ratio for s in Strategy.load("deepcache-7@0.5")} == {0.5}
    for name in ("deepcache-1", "deepcache-51", "deepcache-05", "deepcache-", "deepcache-100"):
        with pytest.raises(StrategyError, match=rf"no preset is named '{name}'; there are paper-b1, .*, and deepcache-N, .* for every N from 2 to 50"):
            Strategy.preset(name)


@pytest.mark.parametrize(("name", "sampler"), [("ddim", "DDIM"), ("dpmpp", "DPM++"), ("euler", "Euler"), ("plms", "PLMS"), ("unipc", "UniPC")])
def test_fewer_steps_of_a_sampler(name: str, sampler: str) -> None:
    for n in (2, 7, 8, 50):
        assert Strategy.preset(f"{name}-{n}") == Strategy.load(f"{name}-{n}") == Strategy.full(n, sampler=sampler)
        limited = Strategy.load(f"{name}-{n}-limited-guidance")
        assert [s.guidance for s in limited] == ["both"] * (n - n // 2) + ["cond"] * (n // 2)
        assert limited == limited_guidance(n, sampler), "as the rival of the same name"
        assert "arXiv 2404.07724" in limited.provenance["source"]
    pruned = Strategy.load(f"{name}-5-limited-guidance@0.5")
    assert pruned == Strategy.preset(f"{name}-5-limited-guidance", 0.5)
    assert pruned.steps == (Step(FULL, 0.5),) * 3 + (Step(FULL, 0.5, "cond"),) * 2
    assert Strategy.from_json(pruned.to_json()) == pruned


def test_samplers_and_steps_that_no_preset_has_are_refused_with_those_there_are() -> None:
    for name in ("dpmpp-1", "dpmpp-51", "dpmpp-08", "dpmpp-", "dpm++-8", "DPM++-8", "heun-8", "dpmpp-8-limited", "deepcache-5-limited-guidance", "paper-b1-limited-guidance"):
        with pytest.raises(StrategyError, match=rf"no preset is named '{re.escape(name)}'; .*<sampler>-N and <sampler>-N-limited-guidance for every N from 2 to 50 and the samplers ddim, dpmpp"):
            Strategy.preset(name)
    with pytest.raises(StrategyError, match=r"no number after the @; write a prune ratio, such as dpmpp-8@0.5"):
        Strategy.load("dpmpp-8@half")


def test_the_second_reading_of_table_6_is_the_first_backwards() -> None:
    b1, other = Strategy.preset("paper-b1"), Strategy.preset("paper-b1-reversed")
    assert other.steps == tuple(reversed(b1.steps))
    assert str(b1).startswith("011111F1111")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published data is not beside the project")
def test_vectors_are_those_published() -> None:
    for vector in json.loads((SHARED / "authors_cache_vectors.json").read_text())["vectors"]:
        assert [s.cache_depth for s in Strategy.preset(f"authors-l{vector['line']}")] == vector["cache_id"]
