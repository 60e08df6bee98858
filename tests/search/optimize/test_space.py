import numpy as np
import pytest

from dato.strategy import FULL, Step, Strategy, StrategyError
from search.optimize.space import SearchSpace

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


def test_grouped_steps_share_their_genes() -> None:
    space = SearchSpace(steps=5, steps_per_gene=2)
    assert space.upper.tolist() == [2, 2, 2, 4, 4, 4]
    strategy = space.decode(np.array([2, 1, 0, 0, 4, 0]))
    assert [s.cache_depth for s in strategy] == [FULL, FULL, 1, 1, 0]
    assert space.decode(space.encode(strategy)) == strategy
    with pytest.raises(StrategyError, match="2 steps a group"):
        space.encode(Strategy((Step(FULL, 0.3), Step(1, 0.3), Step(1, 0.3), Step(1, 0.3), Step(0))))


def test_frozen_steps_are_what_they_are_frozen_to() -> None:
    space = SearchSpace(steps=4, frozen={0: Step(FULL, 0.0), 3: Step(1, 0.2)})
    generator = np.random.default_rng(0)
    for _ in range(20):
        strategy = space.decode(generator.integers(0, space.upper + 1))
        assert (strategy[0], strategy[3]) == (Step(FULL, 0.0), Step(1, 0.2))
        assert space.decode(space.encode(strategy)) == strategy
    with pytest.raises(StrategyError, match=r"step 3 is .* frozen to"):
        space.encode(Strategy((Step(FULL, 0.0), Step(1, 0.3), Step(1, 0.3), Step(1, 0.3))))


def test_two_stages_as_in_the_papers_code() -> None:
    only_ratios = SearchSpace(steps=4, fixed_depths=[FULL, 1, 0, 1])
    assert only_ratios.upper.tolist() == [0] * 4 + [4] * 4
    assert [s.cache_depth for s in only_ratios.decode(np.array([0, 0, 0, 0, 1, 2, 3, 4]))] == [FULL, 1, 0, 1]
    only_depths = SearchSpace(steps=4, fixed_ratios=[0.3, 0.4, 0.5, 0.6])
    strategy = only_depths.decode(np.array([2, 1, 0, 2, 0, 0, 0, 0]))
    assert strategy.steps == (Step(FULL, 0.3), Step(1, 0.4), Step(0, 0.0), Step(FULL, 0.6))
    assert only_depths.decode(only_depths.encode(strategy)) == strategy


def test_a_strategy_with_a_sampler_is_not_taken_for_one_without() -> None:
    space = SearchSpace(steps=4)
    for take in (space.nearest, space.encode):
        with pytest.raises(StrategyError, match=r"the sampler DPM\+\+.*dato.Strategy\(strategy.steps\)"):
            take(Strategy.full(4, sampler="DPM++"))


def test_the_nearest_genome_of_any_strategy() -> None:
    space = SearchSpace(steps=20)
    strategy = space.decode(space.nearest(Strategy.preset("paper-b1")))
    fitted = Strategy.preset("paper-b1").resample(20)
    assert [s.cache_depth for s in strategy] == [s.cache_depth for s in fitted]
    between = SearchSpace(steps=2).decode(SearchSpace(steps=2).nearest(Strategy((Step(FULL, 0.0), Step(3, 0.44)))))
    assert between.steps == (Step(FULL, 0.3), Step(FULL, 0.4)), "the deeper of two allowed depths, the closer of two ratios"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps_per_gene": 0}, "steps_per_gene is 0; give an integer of at least 1"),
        ({"steps_per_gene": 5}, "steps_per_gene is 5; give 1 to 4"),
        ({"fixed_depths": [12, 1]}, "fixed_depths has 2 values for 4 steps"),
        ({"fixed_ratios": [0.9] * 4}, "prune_ratio is 0.9"),
        ({"frozen": {4: Step(1)}}, "frozen names step 4; steps are 0 to 3"),
    ],
)
def test_bad_restrictions_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        SearchSpace(**{"steps": 4, **wrong})
