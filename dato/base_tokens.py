"""Which tokens a call prunes around: one base token per patch, by DiffScore or at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dato import scoring
from dato.options import Options, patch_side, token_grid
from dato.reuse import Kind


def choose_base_tokens(downsamples: Iterable[int], kind: Kind, compared: Sequence[torch.Tensor], options: Options, generator: torch.Generator) -> dict[int, torch.Tensor]:
    """One base token per patch for each token grid: (B, N_base) by downsample. A grid with no room for a patch has none.

    Args:
        downsamples: Side of the latent over side of the token grid, of each grid.
        kind: What the call is given.
        compared: The last two outputs of what the call computes, each (B, C, h, w), the last one first; with fewer tokens are drawn at random.
        options: How tokens are chosen.
        generator: Behind every random choice.
    """
    wanted = sorted(downsamples)
    score = scoring.diff_score(*compared) if options.use_score and len(compared) == 2 and wanted else None
    bases = {}
    for downsample in wanted:
        height, width = token_grid(kind.size, downsample)
        patch = patch_side(options, height, width)
        if patch is None:
            continue
        if score is not None:
            grid = tuple(compared[0].shape[-2:])
            pooled = scoring.pool_score(score, (grid[0], grid[1]), (height, width))
            if options.score_noise:
                noise = _draw(generator, height * width, torch.randn, kind.device).to(pooled)
                pooled = pooled + options.score_noise * pooled.std(1, keepdim=True) * noise
        else:
            # One draw for the whole batch: an image's result does not depend on its neighbours.
            pooled = _draw(generator, height * width, torch.rand, kind.device).expand(kind.batch, -1)
        base = scoring.base_tokens(pooled, height, width, patch)
        bases[downsample] = scoring.align(base, options.align) if kind.guided and score is not None else base
    return bases


def _draw(generator: torch.Generator, count: int, draw: Any, device: torch.device) -> torch.Tensor:
    """(1, count) random numbers, the same on every device."""
    drawn = draw(1, count, generator=generator)
    # From pinned memory a copy waits for nothing; from any other it waits for all that the GPU still has to do.
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
