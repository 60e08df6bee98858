import numpy as np
import pytest

from dato.strategy import FULL, Strategy
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.pareto import hypervolume
from search.optimize.space import SearchSpace
from search.optimize.surrogate import Surrogate

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
    assert len(asked) == len({s.digest for s in asked}) == 3


def test_hypervolume_against_counting() -> None:
    points = [(1.0, 4.0), (2.0, 2.0), (3.0, 3.0), (4.0, 1.0), (5.0, 5.0)]
    # Of the 6 x 6 unit cells below (6, 6), those at or above some point in both directions.
    cells = sum(any(x >= p[0] and y >= p[1] for p in points) for x in range(6) for y in range(6))
    assert hypervolume(points, (6.0, 6.0)) == pytest.approx(cells / 36)
    assert hypervolume([(7.0, 1.0)], (6.0, 6.0)) == 0.0


def test_given_strategies_come_first_and_once() -> None:
    given = [Strategy.preset("paper-b1"), Strategy.uniform(10, 4, prune_ratio=0.5), Strategy.uniform(10, 4, prune_ratio=0.5)]
    for operators in ("stepwise", "paper"):
        first = Nsga2(space=SPACE, population=8, seed=0, operators=operators, given=given).ask()  # type: ignore[arg-type]
        assert len(first) == 8
        assert first[1] == Strategy.uniform(10, 4, prune_ratio=0.5)
        assert [s.cache_depth for s in first[0]] == [s.cache_depth for s in given[0].resample(10)]
        assert len({s.digest for s in first}) == 8


def test_candidates_beyond_a_limit_lose_against_all_within() -> None:
    """With times above 4 forbidden, the parents of later generations are all below it."""
    algorithm, times = Nsga2(space=SPACE, population=12, seed=0), dict[str, float]()
    for _ in range(15):
        strategies = algorithm.ask()
        values = [toy(s) for s in strategies]
        times |= {s.digest: time for s, (_, time) in zip(strategies, values, strict=True)}
        algorithm.tell(values, [max(0.0, time / 4 - 1) for _, time in values])
    parents = {digest for child in algorithm.ask() for digest in algorithm.parents(child)}
    assert len(parents) > 4
    assert all(times[digest] <= 4 for digest in parents)
    assert max(times.values()) > 4


def test_one_objective() -> None:
    algorithm = Nsga2(space=SPACE, population=12, seed=0, objectives=1)
    scores: list[list[float]] = []
    for _ in range(15):
        strategies = algorithm.ask()
        scores.append([loss + 5 * time for loss, time in map(toy, strategies)])
        algorithm.tell([(score,) for score in scores[-1]])
    assert min(scores[-1]) < min(scores[0])


def test_a_screened_search_evaluates_what_is_predicted_to_be_best() -> None:
    algorithm = Nsga2(space=SPACE, population=12, seed=0, screen=lambda: Surrogate(surplus=4, least=12))
    surrogate = Surrogate(surplus=4, least=12)
    for _ in range(4):
        strategies = algorithm.ask()
        assert len(strategies) == 12
        algorithm.tell([toy(s) for s in strategies])
        for s in strategies:
            surrogate.learn(s, toy(s))
    made = [SPACE.decode(np.random.default_rng(1).integers(0, SPACE.upper + 1)) for _ in range(200)]
    made += [SPACE.decode(np.random.default_rng(i).integers(0, SPACE.upper + 1)) for i in range(200)]
    fids, spreads, prices = surrogate.predict(made)
    assert (spreads > 0).all()
    real = np.array([toy(s) for s in made])
    for predicted, k in ((fids, 0), (prices, 1)):
        assert np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(real[:, k])))[0, 1] > 0.6


class TestAsynchronous:
    def test_results_may_come_in_any_order(self) -> None:
        algorithm = AsynchronousNsga2(space=SPACE, population=8, seed=0)
        out, seen = [], set()
        generator = np.random.default_rng(0)
        for _ in range(100):
            while len(out) < 5:
                strategy = algorithm.ask_one()
                assert strategy is not None
                assert strategy.digest not in seen
                seen.add(strategy.digest)
                out.append(strategy)
            done = out.pop(int(generator.integers(5)))
            algorithm.tell_one(done, toy(done))

    def test_more_workers_than_the_population_are_all_busy(self) -> None:
        algorithm = AsynchronousNsga2(space=SPACE, population=8, seed=0)
        assert len({s.digest for _ in range(30) if (s := algorithm.ask_one())}) == 30

    def test_what_was_not_asked_for_cannot_be_told(self) -> None:
        algorithm = AsynchronousNsga2(space=SPACE, population=8, seed=0)
        with pytest.raises(RuntimeError, match="never asked for"):
            algorithm.tell_one(Strategy.full(10), (1.0, 1.0))

    def test_it_gets_better(self) -> None:
        algorithm = AsynchronousNsga2(space=SPACE, population=12, seed=0)
        told = []
        for _ in range(240):
            strategy = algorithm.ask_one()
            assert strategy is not None
            told.append(toy(strategy))
            algorithm.tell_one(strategy, told[-1])
        assert hypervolume(told, (100.0, 10.0)) > hypervolume(told[:24], (100.0, 10.0))


WHOLE = SearchSpace(
    steps=20, lengths=(3, 4, 6, 10, 20), samplers=(None, "DPM++", "DDIM"), guidance=("both", "cond"), orders=(0, 1), ratios=(0.0, 0.3, 0.5)
)  # fmt: skip


@pytest.mark.parametrize("screened", [True, False])
def test_a_search_of_the_whole_schedule_begins_with_what_users_try_first(screened: bool) -> None:
    algorithm = Nsga2(space=WHOLE, population=24, seed=0, screen=(lambda: Surrogate(seed=0)) if screened else None)
    asked = algorithm.ask()
    assert len({s.digest for s in asked}) == 24
    assert len({len(s) for s in asked}) >= 4
    assert {str(s.sampler) for s in asked} == {"None", "DPM++", "DDIM"}
    if screened:
        everything = [s for s in asked if {x.cache_depth for x in s} == {FULL} and {x.prune_ratio for x in s} == {0.0}]
        assert [s for s in everything if {x.guidance for x in s} == {"both"} and s.sampler], "fewer steps"
        limited = [s for s in everything if s[0].guidance == "both" and s[-1].guidance == "cond"]
        assert limited and all([x.guidance for x in s] == sorted(x.guidance for x in s) for s in limited), "both halves first"
        assert [s for s in asked if any(x.cache_depth == 0 for x in s)], "caching"


def test_offspring_of_the_whole_schedule_mix_lengths_and_samplers_and_differ() -> None:
    algorithm, seen = Nsga2(space=WHOLE, population=20, seed=1), set[str]()
    for _ in range(4):
        asked = algorithm.ask()
        assert len(asked) == 20 and not seen & {s.digest for s in asked}
        seen |= {s.digest for s in asked}
        children = [s for s in asked if algorithm.parents(s)]
        algorithm.tell([(len(s) + s.calls_by_depth.get(0, 0), 30.0 - len(s)) for s in asked])
    assert children and len({len(s) for s in children}) >= 3 and len({str(s.sampler) for s in children}) >= 2
