"""The course of a comparison: variants on shards of images, where what is kept is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.evaluate.variants import Variant
from search.run.jobs import Job
from search.run.pools import Pool


class ComparisonError(RuntimeError):
    """A comparison that cannot go on: the message says why and what to do."""


def missing(variants: Sequence[Variant], shards: int, store: ShardStore) -> list[list[Variant]]:
    """By shard number, the variants that the store has nothing of; of those that compute the same, one."""
    distinct = list({v.digest: v for v in variants}.values())
    return [[v for v in distinct if not store.has(v.digest, k)] for k in range(shards)]


def compare(
    pool: Pool, variants: Sequence[Variant], shards: Sequence[Sequence[Sequence[int]]], store: ShardStore, say: Callable[[str], None]
) -> dict[str, str]:
    """Compute the missing shards of the variants; returns errors by variant name.

    The variants of a shard run in turn on one worker, and shards spread over workers. One that fails beside others is tried once
    more by itself, on as many workers as the pool allows, and then has an error.

    Args:
        pool: Of evaluators.
        variants: What is compared.
        shards: Batches of image indices, by shard.
        store: Holds what is done.
        say: Takes a line about each shard.

    Raises:
        ComparisonError: What is computed cannot be kept.
    """
    jobs = [Job(k, due, list(shards[k])) for k, due in enumerate(missing(variants, len(shards), store)) if due]
    there = len(shards) - len(jobs)
    say(f"{len({v.digest for v in variants})} variants, {len(shards)} shards" + (f", of which {there} are there already" if there else ""))
    errors: dict[str, str] = {}
    again: list[Job] = []

    def take(job: Job, made: Sequence[Shard] | None) -> None:
        for i, variant in enumerate(job.strategies):
            if made and not made[i].error:
                if not store.put(variant.digest, job.key, [made[i]]):
                    raise ComparisonError(f"the shards of {variant.name} cannot be kept in {store.folder}; free some space, then run the same command again")
            elif len(job.strategies) > 1:
                again.append(Job(job.key, [variant], job.batches))
            elif not any(v.name in errors for v in variants if v.digest == variant.digest):
                errors.update({v.name: job.errors[0] for v in variants if v.digest == variant.digest})
                say(f"{variant.name} failed: {job.errors[0]}")

    for done, (job, made) in enumerate(pool.map(jobs), there + 1):
        take(job, made)
        say(f"shard {done} of {len(shards)}")
    for job, made in pool.map(list(again)) if again else ():
        take(job, made)
    return errors


def kept(store: ShardStore, variant: Variant, shards: int) -> list[Shard]:
    """A variant's shards that the store has, in the order of their numbers."""
    return [shard for k in range(shards) for shard in store.get(variant.digest, k) or ()]
