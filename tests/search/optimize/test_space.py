from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dato.strategy import FULL, Step, Strategy, StrategyError
from search.optimize.space import SearchSpace, SpaceSettings

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


def test_depths_beyond_full_s_number_lie_below_it() -> None:
    space = SearchSpace(steps=4, depths=(0, 1, 19, 38, FULL), ratios=(0.0,))
    for strategy in (Strategy.full(4), Strategy((Step(FULL), Step(38), Step(19), Step(FULL)))):
        assert space.decode(space.encode(strategy)) == strategy
    assert space.decode(space.nearest(Strategy((Step(FULL), Step(2), Step(20), Step(40))))).steps == (Step(FULL), Step(19), Step(38), Step(FULL))
    shallow = SearchSpace(steps=2, ratios=(0.0,))
    assert shallow.decode(shallow.nearest(Strategy((Step(FULL), Step(30))))) == Strategy.full(2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": [0, 1]}, "must hold 12"),
        ({"depths": [1, 0, 12]}, "ascending"),
        ({"depths": [0, 1000, 12]}, "cache_depth is 1000"),
        ({"depths": [0, 12, 13]}, "12, the full call, last"),
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
    with pytest.raises(StrategyError, match=r"the sampler DPM\+\+.*space.samplers.*dato.Strategy\(strategy.steps\)"):
        space.encode(Strategy.full(4, sampler="DPM++"))
    near = space.decode(space.nearest(Strategy.full(4, sampler="DPM++")))
    assert near.sampler is None and {s.cache_depth for s in near} == {FULL}


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


def joint(**changed: Any) -> SearchSpace:
    values: dict[str, Any] = {
        "steps": 20, "lengths": (3, 4, 6, 10, 20), "samplers": (None, "DPM++", "DDIM"), "guidance": ("both", "cond"), "orders": (0, 1), "ratios": (0.0, 0.5),
    }  # fmt: skip
    return SearchSpace(**values | changed)


def test_a_joint_genome_holds_what_a_run_is() -> None:
    space = joint()
    assert len(space.upper) == 4 * 20 + 2
    genome = space.genome(np.full(20, 2), np.zeros(20, dtype=int), np.arange(20) >= 5, 0, sampler=1, length=1)
    assert space.decode(genome) == Strategy((Step(12), *[Step(12, guidance="cond")] * 3), sampler="DPM++")


@given(st.integers(0, 2**32 - 1))
def test_what_a_joint_genome_decodes_to_encodes_to_the_same_strategy(seed: int) -> None:
    space = joint()
    strategy = space.decode(np.random.default_rng(seed).integers(0, space.upper + 1))
    assert space.decode(space.encode(strategy)) == strategy
    assert strategy.canonical() == strategy


@given(st.integers(0, 2**32 - 1))
def test_only_active_genes_have_an_effect(seed: int) -> None:
    space, chance = joint(), np.random.default_rng(seed)
    genome, other = (chance.integers(0, space.upper + 1) for _ in range(2))
    assert space.decode(np.where(space.active(genome), genome, other)) == space.decode(genome)


def test_a_run_of_fewer_steps_takes_its_genes_from_its_place_in_the_longest() -> None:
    space = joint()
    assert [space.group_at(i, 4) for i in range(4)] == [2, 7, 12, 17]
    assert [space.group_at(i, 20) for i in range(20)] == list(range(20))
    deep_late = space.genome(np.where(np.arange(20) >= 10, 2, 1), np.zeros(20, dtype=int))
    for length in range(5):
        genome = deep_late.copy()
        genome[-1] = length
        strategy = space.decode(genome)
        assert [s.cache_depth for s in strategy] == [1] * (len(strategy) // 2) + [12] * (len(strategy) - len(strategy) // 2)


def test_rivals_lie_in_a_joint_space() -> None:
    space = joint()
    for strategy in (Strategy.full(6, sampler="DPM++"), Strategy.full(3, sampler="DDIM"), Strategy.uniform(20, 3), Strategy.full(20)):
        assert space.decode(space.encode(strategy)) == strategy
    assert len(space.decode(space.nearest(Strategy.full(7, sampler="DPM++")))) == 6
    assert len(space.decode(space.nearest(Strategy.full(50)))) == 20


def test_the_paper_space_is_the_default_and_has_no_other_genes() -> None:
    built = SpaceSettings().build(50)
    assert (built.lengths, built.samplers, built.guidance, built.orders) == ((50,), (None,), ("both",), (0,))
    assert len(built.upper) == 100


def test_steps_are_numbers_or_shares_of_the_model() -> None:
    assert SpaceSettings(steps=(0.15, 0.5, 1.0)).build(20).lengths == (3, 10, 20)
    assert SpaceSettings(steps=(30, 4)).build(20).lengths == (4, 30)
    assert SpaceSettings(guidance=("both", "cond")).build(20, guided=False).guidance == ("both",)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"samplers": ("DPM--",)}, "DPM--"),
        ({"samplers": ("DPM++", "DPM++")}, "samplers"),
        ({"guidance": ("uncond",)}, "guidance"),
        ({"orders": (1, 0)}, "orders"),
        ({"orders": (0, 3)}, "order"),
        ({"lengths": (4, 30)}, "lengths"),
        ({"lengths": (6, 4, 20)}, "lengths"),
        ({"frozen": {0: Step(12)}}, "frozen"),
    ],
)
def test_a_joint_space_that_cannot_be_is_refused_by_name(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(StrategyError, match=named):
        joint(**changed)


@pytest.mark.parametrize("steps", [(0,), (-3,), (1.5,), (2000,)])
def test_numbers_of_steps_that_cannot_be_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(StrategyError, match=r"space\.steps"):
        SpaceSettings(steps=steps).build(20)
