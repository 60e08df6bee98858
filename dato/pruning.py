"""Which tokens self-attention skips, and from which base token each comes back (arXiv 2501.00375, sections 3.2.2-3.2.3).

Letters: B batch, N tokens, C channels, K pruned tokens, N_base base tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PrunePlan:
    """Indices into the N tokens of a sequence; every token is either kept or pruned, once.

    Attributes:
        keep: (B, N - K) int64, ascending: the tokens that take part.
        pruned: (B, K) int64: the tokens that do not.
        source: (B, K) int64: for each pruned token, the kept token whose result it takes.
    """

    keep: torch.Tensor
    pruned: torch.Tensor
    source: torch.Tensor
    _gather: torch.Tensor = field(init=False, repr=False, compare=False)
    _restore: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Both movements become one row selection of a flattened (B * tokens, C) matrix, the fastest gather there is
        # on CPU and GPU alike, with its index made once for all layers that share the plan.
        batch, kept = self.keep.shape
        total = kept + self.pruned.shape[1]
        rows = torch.arange(batch, device=self.keep.device)[:, None]
        place = torch.empty(batch, total, dtype=torch.int64, device=self.keep.device)
        place.scatter_(1, self.keep, torch.arange(kept, device=self.keep.device).expand(batch, kept))
        place.scatter_(1, self.pruned, place.gather(1, self.source))
        object.__setattr__(self, "_gather", (self.keep + rows * total).flatten())
        object.__setattr__(self, "_restore", (place + rows * kept).flatten())

    def prune(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N - K, C): the kept tokens."""
        self._check(x, self.keep.shape[1] + self.pruned.shape[1])
        return x.flatten(0, 1).index_select(0, self._gather).unflatten(0, self.keep.shape)

    def recover(self, y: torch.Tensor) -> torch.Tensor:
        """(B, N - K, C) -> (B, N, C): kept tokens back in their places, pruned ones copied from their source."""
        self._check(y, self.keep.shape[1])
        return y.flatten(0, 1).index_select(0, self._restore).unflatten(0, (len(y), -1))

    def _check(self, x: torch.Tensor, tokens: int) -> None:
        if x.ndim != 3 or x.shape[:2] != (self.keep.shape[0], tokens):
            raise ValueError(f"expected a tensor of shape ({self.keep.shape[0]}, {tokens}, C), but it has {tuple(x.shape)}")


def plan(tokens: torch.Tensor, base: torch.Tensor, num_prune: int) -> PrunePlan:
    """Prune the tokens most similar to a base token, Eq. 9; each comes back from its most similar base token.

    Similarity is the cosine, to the base tokens only. Base tokens themselves are never pruned.

    Args:
        tokens: (B, N, C).
        base: (B, N_base) int64 indices into N, distinct in each row.
        num_prune: K, from 0 to N - N_base.

    Returns:
        A `PrunePlan` of K pruned tokens per sample.
    """
    if tokens.ndim != 3 or base.ndim != 2 or len(tokens) != len(base):
        raise ValueError(f"expected tokens (B, N, C) and base (B, N_base), but they have {tuple(tokens.shape)} and {tuple(base.shape)}")
    batch, total, _ = tokens.shape
    if not 0 <= num_prune <= total - base.shape[1]:
        raise ValueError(f"num_prune is {num_prune}; allowed is 0 to {total - base.shape[1]}: {base.shape[1]} of {total} are base tokens")
    device = tokens.device
    wide = tokens if tokens.is_cuda else tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    # Only tokens that may go are compared, and a token's own length does not change which base token is nearest.
    others = _complement(base, total)
    rows = torch.arange(batch, device=device)[:, None] * total
    flat = wide.flatten(0, 1)
    unit_base = F.normalize(flat.index_select(0, (base + rows).flatten()), dim=-1).unflatten(0, base.shape)
    rest = flat.index_select(0, (others + rows).flatten()).unflatten(0, others.shape)
    nearest_similarity, nearest = torch.bmm(rest, unit_base.transpose(1, 2)).max(-1)
    similarity = nearest_similarity / torch.linalg.vector_norm(rest, dim=-1).clamp_min(1e-12)
    chosen = similarity.topk(num_prune, dim=1, sorted=False).indices
    pruned = others.gather(1, chosen)
    source = base.gather(1, nearest.gather(1, chosen))
    return PrunePlan(keep=_complement(pruned, total), pruned=pruned, source=source)


def _complement(indices: torch.Tensor, total: int) -> torch.Tensor:
    """(B, total - K): what is not among the (B, K) indices, in raster order, without a sort or a question to the device."""
    batch, count = indices.shape
    left = torch.ones(batch, total, dtype=torch.int64, device=indices.device).scatter_(1, indices, 0)
    place = torch.where(left == 1, left.cumsum(1) - 1, total - count)
    found = torch.empty(batch, total - count + 1, dtype=torch.int64, device=indices.device)
    found.scatter_(1, place, torch.arange(total, device=indices.device).expand(batch, total))
    return found[:, :-1].contiguous()
