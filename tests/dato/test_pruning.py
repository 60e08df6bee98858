import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dato import pruning, scoring


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7), st.integers(2, 8), st.floats(0, 1), st.integers(0, 10**6))
def test_plan_is_eq_9_and_recovery_copies_the_most_similar_base_token(
    batch: int, height: int, width: int, channels: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = height * width
    tokens = torch.randn(batch, total, channels, generator=generator)
    base = scoring.base_tokens(torch.rand(batch, total, generator=generator), height, width, 2)
    num_prune = int(share * (total - base.shape[1]))
    plan = pruning.plan(tokens, base, num_prune)
    kept = plan.prune(tokens)
    recovered = plan.recover(kept * 2)
    assert kept.shape == (batch, total - num_prune, channels)
    for b in range(batch):
        keep, pruned, source = plan.keep[b].tolist(), plan.pruned[b].tolist(), plan.source[b].tolist()
        bases = base[b].tolist()
        assert sorted(keep + pruned) == list(range(total))
        assert keep == sorted(keep)
        assert not set(pruned) & set(bases)

        def similarity(i: int, j: int, b: int = b) -> float:
            x, y = tokens[b, i].double(), tokens[b, j].double()
            return float(x @ y / (x.norm() * y.norm()))

        best = {i: max(similarity(i, j) for j in bases) for i in range(total) if i not in bases}
        expected = sorted(best.values(), reverse=True)[:num_prune]
        assert sorted((best[i] for i in pruned), reverse=True) == pytest.approx(expected, abs=1e-5)
        for i, j in zip(pruned, source, strict=True):
            assert j in bases
            assert similarity(i, j) == pytest.approx(best[i], abs=1e-5)
            assert torch.equal(recovered[b, i], 2 * tokens[b, j])
        for i in keep:
            assert torch.equal(recovered[b, i], 2 * tokens[b, i])


def test_a_plan_made_by_hand_moves_what_it_says() -> None:
    plan = pruning.PrunePlan(keep=torch.tensor([[0, 2]]), pruned=torch.tensor([[3, 1]]), source=torch.tensor([[2, 0]]))
    x = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    assert plan.prune(x).flatten().tolist() == [0.0, 2.0]
    assert plan.recover(torch.tensor([[[10.0], [12.0]]])).flatten().tolist() == [10.0, 10.0, 12.0, 12.0]


def test_extremes() -> None:
    tokens, base = torch.randn(2, 16, 4), scoring.base_tokens(torch.rand(2, 16), 4, 4, 2)
    assert torch.equal(pruning.plan(tokens, base, 0).prune(tokens), tokens)
    most = pruning.plan(tokens, base, 12)
    assert torch.equal(most.keep, base.sort(1).values)
    for wrong in (-1, 13):
        with pytest.raises(ValueError, match=rf"num_prune is {wrong}; allowed is 0 to 12"):
            pruning.plan(tokens, base, wrong)
    with pytest.raises(ValueError, match=r"expected tokens \(B, N, C\)"):
        pruning.plan(tokens[0], base, 1)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(2, 16, C\)"):
        most.prune(tokens[:, :5])
