"""Intervals over the choice of images, on sets whose truth is known."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy.special import stdtrit

from search.metrics.intervals import Groups, Value, without_each
from search.metrics.quality import Fid


def test_groups_are_whole_turns_of_the_prompts() -> None:
    found = Groups(turn=10).of(100)
    assert Counter(found.tolist()) == {g: 10 for g in range(10)}
    for g in range(10):
        assert sorted(i % 10 for i in torch.nonzero(found == g).flatten().tolist()) == list(range(10)), "a group holds every class once"


@pytest.mark.parametrize(
    ("count", "groups", "sizes"),
    [
        (105, Groups(turn=10), [10] * 9 + [15]),  # the rest of a turn goes with the last group
        (500, Groups(turn=10), [30] * 15 + [50]),  # 50 turns: three a group
        (200, Groups(turn=10, most=4), [50] * 4),
        (30, Groups(turn=10), [2] * 15),  # three turns are too few: runs of images
        (500, Groups(turn=1000), [25] * 20),
        (100, Groups(), [5] * 20),
        (4, Groups(), [2, 2]),
    ],
)
def test_sizes_of_groups(count: int, groups: Groups, sizes: list[int]) -> None:
    found = groups.of(count)
    assert found.tolist() == sorted(found.tolist()), "groups are runs of images"
    assert [int((found == g).sum()) for g in range(int(found.max()) + 1)] == sizes


@pytest.mark.parametrize(("count", "groups"), [(100, Groups(most=0)), (100, Groups(most=1)), (3, Groups())])
def test_no_groups_no_interval(count: int, groups: Groups) -> None:
    assert without_each(groups.of(count)) == []
    assert math.isnan(Value.around(1.0, ()).low)


def test_the_mean_has_its_textbook_interval() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 7.0], dtype=torch.float64)
    found = Value.around(float(x.mean()), [float(x[torch.arange(4) != i].mean()) for i in range(4)])
    assert found.high - found.value == pytest.approx(3.182446 * float(x.std()) / 2, rel=1e-6), "t with 3 degrees of freedom times s / sqrt(n)"
    assert found.value - found.low == pytest.approx(found.high - found.value)


def balanced(count: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of `count` images of ten classes in turn, unaccelerated, and the same ones a little changed."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(10, 8, generator=torch.Generator().manual_seed(99))
    plain = centres[torch.arange(count) % 10] + 0.5 * torch.randn(count, 8, generator=generator)
    return plain, plain + shift + 0.2 * torch.randn(count, 8, generator=generator)


@pytest.mark.parametrize("count", [50, 100, 200])
def test_intervals_cover_what_other_images_give(count: int) -> None:
    """120 sets: the 95 % interval covers the mean over all sets, of the FID and of its paired difference, and is no wider than it takes."""
    fid, groups = Fid(balanced(2000, 12345)[0] + 0.2), Groups(turn=10)
    pairs = [balanced(count, seed, shift=0.05) for seed in range(120)]
    plain = [fid.value(a, groups) for a, _ in pairs]
    differences = [fid.value(b, groups).minus(p) for (_, b), p in zip(pairs, plain, strict=True)]
    for values in (plain, differences):
        truth = sum(v.value for v in values) / len(values)
        assert sum(v.low <= truth <= v.high for v in values) / len(values) >= 0.9
        spread = float(torch.tensor([v.value for v in values]).std())
        freedom = len(values[0].left_out) - 1
        errors = torch.tensor([(v.high - v.value) / float(stdtrit(freedom, 0.975)) for v in values])
        assert float(errors.median()) == pytest.approx(spread, rel=0.3)


def test_single_images_would_overstate_balanced_sets() -> None:
    """Leaving out images one by one ignores that every set has as many of each class."""
    fid, (plain, _) = Fid(balanced(2000, 12345)[0]), balanced(100, 1)
    by_turn, by_image = fid.value(plain, Groups(turn=10)), fid.value(plain, Groups(most=100))
    assert by_image.high - by_image.low > 2 * (by_turn.high - by_turn.low)


def test_a_difference_without_the_same_groups_has_no_interval() -> None:
    assert math.isnan(Value.around(2.0, (1.0, 2.0, 3.0)).minus(Value(value=1.0)).low)
