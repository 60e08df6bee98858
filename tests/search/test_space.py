import numpy as np
import pytest

from dato.strategy import FULL, Step, Strategy, StrategyError
from search.space import SearchSpace

SPACE = SearchSpace(steps=4)


def test_decode_gives_the_canonical_strategy() -> None:
    strategy = SPACE.decode(np.array([2, 0, 1, 1, 4, 3, 0, 2]))
    assert strategy.steps == (Step(FULL, 0.7), Step(0, 0.0), Step(1, 0.3), Step(1, 0.5))


def test_genomes_that_differ_only_where_nothing_runs_are_one_strategy() -> None:
    one, other = SPACE.decode(np.array([2, 0, 1, 1, 4, 3, 0, 2])), SPACE.decode(np.array([2, 0, 1, 1, 4, 1, 0, 2]))
    assert one == other
    assert one.digest == other.digest


def test_encode_undoes_decode() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        strategy = SPACE.decode(generator.integers(0, SPACE.upper + 1))
        assert SPACE.decode(SPACE.encode(strategy)) == strategy


def test_encode_refuses_what_is_outside() -> None:
    with pytest.raises(StrategyError, match="outside the search space"):
        SPACE.encode(Strategy.uniform(4, 2, depth=3, prune_ratio=0.3))
    with pytest.raises(StrategyError, match=r"resample\(4\)"):
        SPACE.encode(Strategy.full(5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": [0, 1]}, "must hold 12"),
        ({"depths": [1, 0, 12]}, "ascending"),
        ({"depths": [0, 13]}, "cache_depth is 13"),
        ({"ratios": [0.3, 0.8]}, "prune_ratio is 0.8"),
        ({"ratios": []}, "at least one value"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_spaces_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        SearchSpace(**{"steps": 4, **wrong})
