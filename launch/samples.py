"""Images of winners and of the front to look at: drawn with the same prompts and seeds, kept in the search's folder, each strategy once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from dato.strategy import Strategy
from launch.image_grid import grid, write_row
from search.data.datasets import FRESH_OFFSET
from search.optimize.winners import aliases_of
from search.records import UNACCELERATED, SearchRecord
from search.run.jobs import Job, Task
from search.run.pools import Pool

WINNER_IMAGES, FRONT_IMAGES = 10, 4
"""Images of the unaccelerated pipeline and of each winner, and of each other candidate on the front: the first of the same."""


def draw_samples(pool: Pool, record: SearchRecord, steps: int) -> dict[int, torch.Tensor]:
    """(B, 3, H, W) uint8 by candidate number, -1 for the unaccelerated pipeline: of what won and of what is on the front."""
    winners = {w.candidate.number: w.candidate.strategy for w in record.winners.values()}
    front = {c.number: c.strategy for c, _ in record.front() if c.number not in winners}
    indices = list(range(FRESH_OFFSET, FRESH_OFFSET + WINNER_IMAGES))
    jobs = [Job(number, [s], indices, Task.SAMPLES) for number, s in {-1: Strategy.full(steps), **winners}.items()]
    jobs += [Job(number, [s], indices[:FRONT_IMAGES], Task.SAMPLES) for number, s in front.items()]
    made = {job.key: pictures[0] for job, pictures in pool.map(jobs) if pictures is not None}
    return {number: made[number] for number in (-1, *winners, *front) if number in made}


def write_samples(folder: Path, record: SearchRecord, samples: Mapping[int, torch.Tensor]) -> None:
    """A row of images for each winner in ``samples``, for each candidate in ``samples/front``, and ``samples.png`` with all winners named."""
    aliases, rows = aliases_of(record), []
    for i, (number, images) in enumerate(samples.items()):
        write_row(candidate_row(folder, number), images)
        if number >= 0 and number not in aliases:
            continue
        label = ", ".join(aliases[number]) if number >= 0 else UNACCELERATED
        path = folder / "samples" / f"{i}-{label}.png"
        write_row(path, images)
        rows.append((f"{label}, {record.winners[aliases[number][0]].speedup:.1f}x" if number >= 0 else label, path))
    if rows:
        small = min(images.shape[-1] for images in samples.values()) < 128
        grid(rows, scale=2 if small else 1).save(folder / "samples.png")


def candidate_row(folder: Path, number: int) -> Path:
    """Where the row of images of a candidate that won or is on the front is, or would be; -1 for the unaccelerated pipeline's."""
    return folder / "samples" / "front" / f"{number if number >= 0 else UNACCELERATED}.png"


def candidate_sheet(folder: Path, number: int) -> Image.Image | None:
    """A candidate's images under the unaccelerated pipeline's of the same prompts and seeds; None where none were drawn."""
    plain, own = candidate_row(folder, -1), candidate_row(folder, number)
    if not plain.is_file() or not own.is_file():
        return None
    row = Image.open(own)
    above = Image.open(plain).crop((0, 0, row.width, row.height))
    return grid([(UNACCELERATED, above), (f"candidate {number}", row)], scale=2 if row.height < 128 else 1)
