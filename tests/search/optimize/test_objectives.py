import pytest

from dato.files import written
from search.measurements import Measurement
from search.optimize.objectives import Objectives

PLAIN = Measurement(fid=10.0, latency_ms=400.0)
FAST = Measurement(fid=12.0, latency_ms=100.0)


def test_two_objectives_in_their_own_units() -> None:
    assert Objectives().values(FAST) == (12.0, 100.0)
    assert Objectives().count == 2
    assert Objectives().violation(FAST, PLAIN) == 0


def test_the_weighted_score_of_algorithm_1_is_one_objective() -> None:
    scored = Objectives(latency_weight=0.05)
    assert scored.values(FAST) == (12.0 + 0.05 * 100.0,)
    assert scored.count == 1


def test_violations_add_up_as_shares_of_their_limits() -> None:
    limits = Objectives(max_fid=10.0, max_latency_ms=80.0, min_speedup=5.0)
    # 12 is 20 % above 10, 100 ms 25 % above 80, and 4x needs 25 % less time for 5x.
    assert limits.violation(FAST, PLAIN) == pytest.approx(0.2 + 0.25 + 0.25)
    assert Objectives(min_speedup=4.0).violation(FAST, PLAIN) == 0


@pytest.mark.parametrize("name", ["latency_weight", "max_fid", "max_latency_ms", "min_speedup"])
@pytest.mark.parametrize("value", [0, -1, "fast", True])
def test_a_limit_that_is_no_positive_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"search.{name} is {written(value)}; give a number above 0"):
        Objectives(**{name: value})  # type: ignore[arg-type]
