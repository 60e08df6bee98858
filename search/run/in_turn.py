"""Strategies run in turn on the same batches: a machine that drifts slows all of them alike, so that their latencies compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dato.strategy import Strategy
from search.evaluate.evaluator import Shard
from search.records import UNACCELERATED
from search.run.jobs import Job
from search.run.pools import Pool


def run_in_turn(pool: Pool, strategies: Mapping[str, Strategy], batches: Sequence[Sequence[int]]) -> tuple[dict[str, list[Shard]], dict[str, str]]:
    """Shards by name of the strategies that work, and errors by name of the others; the batches are spread over the workers.

    Where one of several fails, each is run alone, the unaccelerated pipeline first, and nothing more when that fails itself.
    """
    share = min(pool.size, len(batches))
    jobs = [Job(i, list(strategies.values()), batches[i::share]) for i in range(share)]
    results = {job.key: (job, shards) for job, shards in pool.map(jobs)}
    failed = [job for job, shards in results.values() if shards is None]
    if failed and len(strategies) == 1:
        return {}, dict.fromkeys(strategies, failed[0].errors[0])
    if failed:
        found: dict[str, list[Shard]] = {}
        errors: dict[str, str] = {}
        for name in sorted(strategies, key=lambda n: n != UNACCELERATED):
            alone, error = run_in_turn(pool, {name: strategies[name]}, batches)
            found, errors = found | alone, errors | error
            if UNACCELERATED in errors:
                break
        return found, errors
    # By shard number, not by finish: sums of floats depend on their order.
    ordered = [results[i][1] for i in range(share)]
    return {name: [shards[k] for shards in ordered] for k, name in enumerate(strategies)}, {}
