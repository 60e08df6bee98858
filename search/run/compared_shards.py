"""Shards of a comparison on disk, and their dispatch: what is there is not computed again."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from search.evaluate.compare import EntryShard
from search.evaluate.variants import Entry
from search.run.jobs import Job, Task


class Pool(Protocol):
    """Where jobs run: `RayPool` or `InProcessPool`."""

    def map(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result, or with None and its errors."""
        ...


class ShardStore:
    """One file for each entry and shard, written whole or not at all.

    Args:
        folder: A folder for each entry's digest is made in it.
        session: A name for this run: entries that were timed in another run are marked in tables.
    """

    def __init__(self, folder: Path, session: str) -> None:
        self.folder, self.session = folder, session

    def path(self, entry: Entry, shard: int) -> Path:
        """Where a shard is."""
        return self.folder / entry.digest / f"{shard:05}.npz"

    def save(self, entry: Entry, shard: int, content: EntryShard) -> None:
        """Write a shard."""
        path = self.path(entry, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {k: getattr(content, k) for k in ("indices", "batch_ms", "parts_ms", "calls_by_depth", "device", "seconds")}
        arrays = {f"score {k}": v.numpy() for k, v in content.scores.items()}
        partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
        np.savez(partial, features=content.features.numpy(), about=np.array(json.dumps({**about, "session": self.session, "name": entry.name})), **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    def load(self, entry: Entry, shard: int) -> tuple[EntryShard, str] | None:
        """A shard and the session that made it, or None where it is missing or damaged."""
        try:
            with np.load(self.path(entry, shard), allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                scores = {k.removeprefix("score "): torch.from_numpy(file[k]) for k in file.files if k.startswith("score ")}
                features = torch.from_numpy(file["features"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        session = about.pop("session")
        about.pop("name")
        return EntryShard(features=features, scores=scores, **about), session


def compare(
    pool: Pool, entries: Sequence[Entry], shards: Sequence[Sequence[Sequence[int]]], store: ShardStore, say: Callable[[str], None]
) -> dict[str, str]:
    """Compute the missing shards of the entries; returns errors by entry name.

    The entries of a shard run in turn on one worker, and shards spread over workers. An entry that fails is tried once more
    by itself, on as many workers as the pool allows, and then has an error.

    Args:
        pool: Of `ComparisonSpec` evaluators.
        entries: What is compared.
        shards: Batches of image indices, by shard.
        store: Holds what is done.
        say: Takes a line about each shard.
    """
    distinct = list({e.digest: e for e in entries}.values())
    missing = {k: [e for e in distinct if store.load(e, k) is None] for k in range(len(shards))}
    jobs = [Job(k, wanted, list(shards[k])) for k, wanted in missing.items() if wanted]
    there = len(shards) - len(jobs)
    say(f"{len(distinct)} entries, {len(shards)} shards" + (f", of which {there} are there already" if there else ""))
    failed: list[tuple[int, Entry]] = []
    for done, (job, made) in enumerate(pool.map(jobs), there + 1):
        shard_results = made if made is not None else [None] * len(job.strategies)
        for entry, shard in zip(job.strategies, shard_results, strict=True):
            if shard is None or shard.error:
                failed.append((job.key, entry))
            else:
                store.save(entry, job.key, shard)
        say(f"shard {done} of {len(shards)}")
    errors: dict[str, str] = {}
    again = [Job((k, entry.digest), [entry], list(shards[k]), Task.EVALUATE_ALONE) for k, entry in failed]
    for job, made in pool.map(again) if again else ():
        (entry,) = job.strategies
        if made is None:
            for same in (e for e in entries if e.digest == entry.digest):
                errors.setdefault(same.name, job.errors[0])
            say(f"{entry.name} failed: {job.errors[0]}")
        else:
            store.save(entry, job.key[0], made[0])
    return errors
