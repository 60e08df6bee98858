import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dato import scoring


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_diff_score_is_eq_6(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    newer, older = torch.randn(2, batch, channels, height, width, generator=generator)
    score = scoring.diff_score(newer, older)
    assert score.shape == (batch, height * width)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                total = sum(abs(float(newer[b, c, y, x]) - float(older[b, c, y, x])) for c in range(channels))
                assert float(score[b, y * width + x]) == pytest.approx(total / channels, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_base_tokens_are_eq_7_on_ragged_grids(batch: int, height: int, width: int, patch: int, seed: int) -> None:
    if patch > min(height, width):
        patch = min(height, width)
    score = torch.rand(batch, height * width, generator=torch.Generator().manual_seed(seed))
    base = scoring.base_tokens(score, height, width, patch)
    assert base.dtype == torch.int64
    for b in range(batch):
        expected = []
        for i in range(height // patch):
            for j in range(width // patch):
                inside = [(i * patch + y) * width + j * patch + x for y in range(patch) for x in range(patch)]
                expected.append(max(inside, key=lambda n: float(score[b, n])))
        assert base[b].tolist() == expected


def test_the_first_of_equal_scores_wins() -> None:
    assert scoring.base_tokens(torch.zeros(1, 16), 4, 4, 2).tolist() == [[0, 2, 8, 10]]


def test_align_is_eq_8_on_uncond_cond_batches() -> None:
    base = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    assert scoring.align(base, "cond").tolist() == [[4, 5], [6, 7], [4, 5], [6, 7]]
    assert scoring.align(base, "uncond").tolist() == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert scoring.align(base, "none") is base


def test_pooling_averages_cells() -> None:
    score = torch.arange(16.0)[None]
    assert scoring.pool_score(score, (4, 4), (2, 2)).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert scoring.pool_score(score, (4, 4), (4, 4)) is score


def test_wrong_shapes_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match="two tensors of one shape"):
        scoring.diff_score(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"shape \(B, 12\) for a 3 x 4 grid"):
        scoring.base_tokens(torch.zeros(1, 9), 3, 4, 2)
    with pytest.raises(ValueError, match="patch is 5; allowed is 1 to 3"):
        scoring.base_tokens(torch.zeros(1, 12), 3, 4, 5)
    with pytest.raises(ValueError, match="needs an even batch"):
        scoring.align(torch.zeros(3, 2, dtype=torch.int64), "cond")
    with pytest.raises(ValueError, match="allowed are 'cond', 'uncond' and 'none'"):
        scoring.align(torch.zeros(2, 2, dtype=torch.int64), "both")  # type: ignore[arg-type]
