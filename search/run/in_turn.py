"""Strategies run in turn on the same batches: a machine that drifts slows all of them alike, so that their latencies compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dato.strategy import Strategy
from search.evaluate.shards import Shard
from search.records import UNACCELERATED
from search.run.jobs import Job
from search.run.pools import Pool


def run_in_turn(pool: Pool, strategies: Mapping[str, Strategy], batches: Sequence[Sequence[int]]) -> tuple[dict[str, list[Shard]], dict[str, str]]:
    """Shards by name of the strategies that work, and errors by name of the others; the batches are spread over the workers.

    One that fails beside others is run alone, the unaccelerated pipeline first, and nothing more when that fails itself.
    """
    share = min(pool.size, len(batches))
    jobs = [Job(i, list(strategies.values()), batches[i::share]) for i in range(share)]
    results = {job.key: (job, shards) for job, shards in pool.map(jobs)}
    # By shard number, not by finish: sums of floats depend on their order.
    ordered = [results[i] for i in range(share)]
    found = {name: [shards[k] for _, shards in ordered if shards is not None] for k, name in enumerate(strategies)}
    failed = [name for name, shards in found.items() if len(shards) < share or (len(found) > 1 and any(s.error for s in shards))]
    errors: dict[str, str] = {}
    for name in sorted(failed, key=lambda n: n != UNACCELERATED):
        del found[name]
        if len(strategies) == 1:
            return found, {name: next(job.errors[0] for job, shards in ordered if shards is None)}
        alone, error = run_in_turn(pool, {name: strategies[name]}, batches)
        found, errors = found | alone, errors | error
        if UNACCELERATED in errors:
            break
    return found, errors
