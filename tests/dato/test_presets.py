import json
from pathlib import Path

import pytest

from dato import FULL, Strategy, StrategyError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_every_preset_has_50_steps_and_says_where_it_comes_from() -> None:
    assert len(Strategy.presets()) == 13
    for name in Strategy.presets():
        strategy = Strategy.preset(name)
        assert len(strategy) == 50
        assert strategy.provenance["source"]


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
        with pytest.raises(StrategyError, match=rf"no preset is named '{name}'; there are paper-b1, .*, and deepcache-N for every N from 2 to 50"):
            Strategy.preset(name)


def test_the_second_reading_of_table_6_is_the_first_backwards() -> None:
    b1, other = Strategy.preset("paper-b1"), Strategy.preset("paper-b1-reversed")
    assert other.steps == tuple(reversed(b1.steps))
    assert str(b1).startswith("011111F1111")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published data is not beside the project")
def test_vectors_are_those_published() -> None:
    for vector in json.loads((SHARED / "authors_cache_vectors.json").read_text())["vectors"]:
        assert [s.cache_depth for s in Strategy.preset(f"authors-l{vector['line']}")] == vector["cache_id"]
