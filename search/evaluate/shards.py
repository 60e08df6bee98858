"""One strategy's shards from several workers, put together as if one worker had done them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from search.evaluate.evaluator import Shard


def make_join(latency_device: str | None = None) -> Callable[[Sequence[Sequence[Shard]]], list[Shard]]:
    """A joiner of shards by batch, each a list with one shard for each strategy.

    Args:
        latency_device: Part of the names of the devices whose latency counts, whatever the case; None for all. Images count
            wherever they were made.
    """

    def join(parts: Sequence[Sequence[Shard]]) -> list[Shard]:
        return [join_shards([part[k] for part in parts], latency_device) for k in range(len(parts[0]))]

    return join


def join_shards(shards: Sequence[Shard], latency_device: str | None = None) -> Shard:
    """One strategy's shards as one, in the order of their batches.

    The device is the one that the latency comes from; others are named after it. Raises ValueError where none counts.
    """
    timed = [s for s in shards if counts(s.device, latency_device)]
    if not timed:
        made_on = ", ".join(sorted({s.device for s in shards}))
        raise ValueError(f"no batch ran on a device named like {latency_device!r}, only on {made_on}; set cluster.latency_device=null or add such workers")
    clocks = sorted({s.device for s in timed})
    others = sorted({s.device for s in shards} - set(clocks))
    return Shard(
        features=torch.cat([s.features for s in shards]),
        batch_ms=[ms for s in timed for ms in s.batch_ms],
        parts_ms=[p for s in timed for p in s.parts_ms],
        calls_by_depth=dict(shards[0].calls_by_depth),
        seconds=sum(s.seconds for s in shards),
        device=" and ".join(clocks) + (f" (images also on {' and '.join(others)})" if others else ""),
        batch=max(s.batch for s in shards),
        indices=[i for s in shards for i in s.indices],
        similarity={name: [v for s in shards for v in s.similarity[name]] for name in shards[0].similarity},
    )


def counts(device: str, latency_device: str | None) -> bool:
    """Whether a device's latency counts."""
    return latency_device is None or latency_device.lower() in device.lower()
