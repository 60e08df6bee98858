import pytest

from dato.strategy import Strategy
from search.nsga2 import Nsga2, hypervolume
from search.space import SearchSpace

SPACE = SearchSpace(steps=10)


def toy(strategy: Strategy) -> tuple[float, float]:
    """Quality is lost per missing full step and per pruned token, time is gained: a smooth trade-off."""
    cost = {0: 0.0, 1: 0.1, 12: 1.0}
    time = sum(cost[s.cache_depth] * (1 - 0.3 * s.prune_ratio) for s in strategy)
    loss = sum(1 - cost[s.cache_depth] + 0.2 * s.prune_ratio for s in strategy)
    return loss**2, time


def play(seed: int, generations: int, operators: str = "stepwise") -> list[Strategy]:
    algorithm = Nsga2(space=SPACE, population=12, seed=seed, operators=operators)  # type: ignore[arg-type]
    asked = []
    for _ in range(generations):
        strategies = algorithm.ask()
        asked += strategies
        algorithm.tell([toy(s) for s in strategies])
    return asked


@pytest.mark.parametrize("operators", ["stepwise", "paper"])
def test_the_seed_fixes_the_whole_search(operators: str) -> None:
    assert play(3, 6, operators) == play(3, 6, operators)
    assert play(3, 2, operators) != play(4, 2, operators)


@pytest.mark.parametrize("operators", ["stepwise", "paper"])
def test_no_strategy_is_asked_twice(operators: str) -> None:
    digests = [s.digest for s in play(0, 10, operators)]
    assert len(set(digests)) == len(digests)


def test_the_front_grows() -> None:
    asked = play(0, 25)
    reference = (100.0, 10.0)
    early, late = [hypervolume([toy(s) for s in part], reference) for part in (asked[:12], asked)]
    assert late > early


def test_stepwise_starts_with_uniform_strategies() -> None:
    first = play(0, 1)
    assert first[0].calls_by_depth == {12: 5, 1: 5}
    assert {s.prune_ratio for s in first[0]} == {0.3}


def test_failures_are_infeasible_and_do_not_spread() -> None:
    algorithm = Nsga2(space=SPACE, population=8, seed=0)
    for _ in range(5):
        strategies = algorithm.ask()
        algorithm.tell([None if i % 2 else toy(s) for i, s in enumerate(strategies)])
    assert len(algorithm.ask()) == 8


def test_a_wrong_order_of_calls_is_refused() -> None:
    algorithm = Nsga2(space=SPACE, population=8, seed=0)
    with pytest.raises(RuntimeError, match="0 asked"):
        algorithm.tell([(1.0, 1.0)])
    algorithm.ask()
    with pytest.raises(RuntimeError, match="ask was called twice"):
        algorithm.ask()
    with pytest.raises(RuntimeError, match="1 objectives for 8"):
        algorithm.tell([(1.0, 1.0)])


def test_an_exhausted_space_ends_the_asking() -> None:
    algorithm = Nsga2(space=SearchSpace(steps=1, ratios=(0.5,)), population=4, seed=0)
    asked = []
    for _ in range(4):
        strategies = algorithm.ask()
        if not strategies:
            break
        asked += strategies
        algorithm.tell([(1.0, 1.0)] * len(strategies))
    assert {s.digest for s in asked} == {s.digest for s in asked}
    assert len(asked) == 3


def test_hypervolume_against_counting() -> None:
    points = [(1.0, 4.0), (2.0, 2.0), (3.0, 3.0), (4.0, 1.0), (5.0, 5.0)]
    # Of the 6 x 6 unit cells below (6, 6), those at or above some point in both directions.
    cells = sum(any(x >= p[0] and y >= p[1] for p in points) for x in range(6) for y in range(6))
    assert hypervolume(points, (6.0, 6.0)) == pytest.approx(cells / 36)
    assert hypervolume([(7.0, 1.0)], (6.0, 6.0)) == 0.0
