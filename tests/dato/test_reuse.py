"""How what is kept is continued, on values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dato.reuse import History, extrapolate

PLACES = st.lists(st.integers(0, 999).map(float), min_size=1, max_size=3, unique=True)


@given(PLACES, st.integers(0, 999).map(float), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_a_polynomial_of_the_order_is_continued_exactly(places: list[float], at: float, coefficients: list[float]) -> None:
    def value(t: float) -> torch.Tensor:
        return sum(torch.full((2, 3), c, dtype=torch.float64) * (t / 1000) ** i for i, c in enumerate(coefficients[: len(places)]))

    found, more = extrapolate(at, [(t, value(t)) for t in places])
    largest = max(abs(float(w)) for w in _weights(at, places))
    assert torch.allclose(found, value(at), atol=1e-12 * (1 + largest), rtol=0)
    assert more == (len(places) > 1 and at not in places)


def _weights(at: float, places: list[float]) -> list[float]:
    """What one at one place and zero at the others gives."""
    return [float(extrapolate(at, [(t, torch.full((1,), float(t == own), dtype=torch.float64)) for t in places])[0]) for own in places]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    value, slope = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    points = [(t, (value + slope * t / 1000).to(dtype)) for t in (241.0, 261.0, 281.0)]
    found, _ = extrapolate(181.0, points)  # with weights of 10, -15 and 6
    exact, _ = extrapolate(181.0, [(t, x.double()) for t, x in points])
    assert found.dtype == dtype

    def error(x: torch.Tensor) -> float:
        return float((x.double() - exact).abs().max())

    assert error(found) <= error(exact.to(dtype)) + 1e-4
    assert error(sum(w * x for w, (_, x) in zip((10, -15, 6), points, strict=True))) > 2 * error(found), "rounding in every term"


def test_one_value_is_returned_as_it_is() -> None:
    history, tensor = History(), torch.randn(2, 3)
    history.add(5.0, torch.zeros(2, 3), alone=False)
    history.add(5.0, tensor, alone=False)  # a value at the same timestep takes the place of the one before
    for order in (0, 1, 2):
        assert history.reused(1.0, "both", order)[0] is tensor
    history.add(3.0, torch.zeros(1, 3), alone=True)
    assert torch.equal(history.reused(1.0, "both", 0)[0], torch.cat([tensor[:1], torch.zeros(1, 3)]))
    assert torch.equal(history.reused(1.0, "cond", 1)[0], -tensor[1:])  # from 5 and 3, at 1
