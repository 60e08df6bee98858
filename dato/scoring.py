"""Which tokens change most between steps, and one base token per patch (arXiv 2501.00375, section 3.2.1).

Letters: B batch, C channels, h x w the latent grid, N = h * w tokens, N_base patches, s the patch side.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Align = Literal["cond", "uncond", "none"]


def diff_score(newer: torch.Tensor, older: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference over channels of two consecutive outputs, Eq. 6.

    Args:
        newer: (B, C, h, w).
        older: (B, C, h, w).

    Returns:
        (B, h * w), at least float32: the dynamics of each token in raster order.
    """
    if newer.shape != older.shape or newer.ndim != 4:
        raise ValueError(f"expected two tensors of one shape (B, C, h, w), but they have {tuple(newer.shape)} and {tuple(older.shape)}")
    wide = torch.promote_types(newer.dtype, torch.float32)
    return (newer.to(wide) - older.to(wide)).abs().mean(1).flatten(1)


def pool_score(score: torch.Tensor, size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Average a (B, h * w) score of an h x w `size` over the cells of a coarser token `grid`: (B, rows * columns)."""
    if size == grid:
        return score
    return F.adaptive_avg_pool2d(score.unflatten(1, size)[:, None], grid).flatten(1)


def base_tokens(score: torch.Tensor, height: int, width: int, patch: int) -> torch.Tensor:
    """The token with the highest score of each patch, Eq. 7; the first in raster order on a tie.

    Args:
        score: (B, N), N = height * width, in raster order.
        height: Rows of the token grid.
        width: Columns of the token grid.
        patch: Side s of a patch in tokens. Ragged edges hold no base token: only patches that fit have one.

    Returns:
        (B, (height // s) * (width // s)) int64 indices into N, patches in raster order.
    """
    if score.ndim != 2 or score.shape[1] != height * width:
        raise ValueError(f"expected a score of shape (B, {height * width}) for a {height} x {width} grid, but it has {tuple(score.shape)}")
    if not 1 <= patch <= min(height, width):
        raise ValueError(f"patch is {patch}; allowed is 1 to {min(height, width)} on a {height} x {width} grid")
    rows, columns = height // patch, width // patch
    grid = score.unflatten(1, (height, width))[:, : rows * patch, : columns * patch]
    inside = grid.unflatten(2, (columns, patch)).unflatten(1, (rows, patch)).transpose(2, 3).flatten(3).argmax(3)
    top = torch.arange(rows, device=score.device)[:, None] * patch + inside // patch
    left = torch.arange(columns, device=score.device) * patch + inside % patch
    return (top * width + left).flatten(1)


def align(base: torch.Tensor, source: Align) -> torch.Tensor:
    """Impose one guidance half's base tokens on the other, Eq. 8.

    Args:
        base: (B, N_base) of a classifier-free-guidance batch, which diffusers orders [uncond, cond].
        source: The half that is copied: "cond", "uncond", or "none" to leave both as they are.

    Returns:
        (B, N_base).
    """
    if source not in ("cond", "uncond", "none"):
        raise ValueError(f"align source is {source!r}; allowed are 'cond', 'uncond' and 'none'")
    if source == "none":
        return base
    if len(base) % 2:
        raise ValueError(f"aligning needs an even batch [uncond, cond], but it has {len(base)} rows")
    uncond, cond = base.chunk(2)
    return (cond if source == "cond" else uncond).repeat(2, 1)
