from __future__ import annotations

from typing import Any

import pytest

from search.run.settings import SearchPlan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generations": 0}, "search.generations is 0; give an integer of at least 1"),
        ({"mode": "async"}, "search.mode is 'async'; allowed are generational and asynchronous"),
        ({"latency": "guessed"}, "search.latency is 'guessed'; allowed are measured and predicted"),
        ({"max_candidates": 1.5}, "search.max_candidates is 1.5; give an integer of at least 1"),
        ({"max_minutes": -1}, "search.max_minutes is -1; give a number above 0"),
    ],
)
def test_bad_plans_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchPlan(**{"generations": 4, "population": 6, **wrong})
