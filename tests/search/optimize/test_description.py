import numpy as np

from dato.strategy import Step, Strategy
from search.optimize.description import SAMPLER_PLACES, describe, sampler_place, step_arrays


def test_a_run_in_numbers_is_as_it_happens() -> None:
    strategy = Strategy((Step(0, 0.0, "cond", 1), Step(1, 0.3, "cond"), Step(0, 0.0, "cond", 1), Step(3, 0.5, "cond", 2), Step(12)), sampler="UniPC")
    found = describe(strategy)
    assert (found.sampler, found.steps) == ("UniPC", 5)
    assert found.guided_share == 0.2
    assert found.cached_share == 0.6, "the first call is computed in full, whatever is written"
    assert found.mean_depth == 4 / 3
    assert found.mean_order == 1.0
    assert np.isclose(found.mean_ratio, (0 + 0.3 + 0.5 + 0) / 4), "of the steps that compute anything"


def test_what_reuses_nothing_has_no_depth() -> None:
    found = describe(Strategy.full(4))
    assert (found.sampler, found.guided_share, found.cached_share, found.mean_depth, found.mean_order, found.mean_ratio) == ("own", 1.0, 0.0, None, None, 0.0)


def test_arrays_are_of_the_entries_as_written_or_stretched() -> None:
    strategy = Strategy((Step(0), Step(12, 0.3, "cond"), Step(1, 0.5, "both", 1)))
    arrays = step_arrays(strategy)
    assert [list(a) for a in (arrays.depth, arrays.ratio, arrays.alone, arrays.order)] == [[0, 12, 1], [0, 0.3, 0.5], [False, True, False], [0, 0, 1]]
    assert (list(arrays.full), list(arrays.replay)) == ([False, True, False], [True, False, False])
    assert list(step_arrays(strategy, 6).depth) == [0, 0, 12, 12, 1, 1]


def test_samplers_have_places() -> None:
    places = [sampler_place(Strategy.full(2, sampler=s)) for s in ("DDIM", "UniPC", "HeunDiscreteScheduler", None)]
    assert len(set(places)) == 4
    assert max(places) == SAMPLER_PLACES - 1 == places[-1]
