"""What a worker sends back of one variant on some batches of images, and how it adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch


@dataclass
class Shard:
    """One variant's features, scores and timings over some batches.

    Attributes:
        features: (N, num_features) float32; (0, 0) where no metric needs any.
        batch_ms: Milliseconds per image of each batch.
        parts_ms: Of text_encoder, unet or transformer, and vae, by batch.
        calls_by_depth: Calls of the UNet or transformer in one run at each cache depth; empty for what follows no strategy.
        seconds: Wall time spent.
        device: Where.
        batch: Images in the largest batch.
        indices: Of the images, in the order of the features.
        scores: Of each image by metric, in the same order: its own, or how close it is to the unaccelerated one.
        session: Which run of a command timed it; "" where nobody asks.
        error: Why the other values are not to be used, or None.
    """

    features: torch.Tensor
    batch_ms: list[float] = field(default_factory=list)
    parts_ms: list[dict[str, float]] = field(default_factory=list)
    calls_by_depth: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = ""
    batch: int = 0
    indices: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    session: str = ""
    error: str | None = None

    def add(self, batch: Shard) -> None:
        """Take in the shard of one more batch of the same variant, computed here."""
        self.features = torch.cat([self.features, batch.features]) if len(batch.features) else self.features
        self.batch_ms += batch.batch_ms
        self.parts_ms += batch.parts_ms
        self.calls_by_depth, self.batch = batch.calls_by_depth, max(self.batch, batch.batch)
        self.seconds += batch.seconds
        self.indices += batch.indices
        for name, values in batch.scores.items():
            self.scores.setdefault(name, []).extend(values)


def make_join(latency_device: str | None = None) -> Callable[[Sequence[Sequence[Shard]]], list[Shard]]:
    """A joiner of shards by batch, each a list with one shard for each variant.

    Args:
        latency_device: Part of the names of the devices whose latency counts, whatever the case; None for all. Images count
            wherever they were made.
    """

    def join(parts: Sequence[Sequence[Shard]]) -> list[Shard]:
        return [join_shards([part[k] for part in parts], latency_device) for k in range(len(parts[0]))]

    return join


def join_shards(shards: Sequence[Shard], latency_device: str | None = None) -> Shard:
    """One variant's shards as one, in the order of their batches, as if one worker had done them all; the one that failed, where one did.

    The device is the one that the latency comes from; others are named after it. Raises ValueError where none counts.
    """
    seconds = sum(s.seconds for s in shards)
    for s in shards:
        if s.error:
            return replace(s, seconds=seconds)
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
        seconds=seconds,
        device=" and ".join(clocks) + (f" (images also on {' and '.join(others)})" if others else ""),
        batch=max(s.batch for s in shards),
        indices=[i for s in shards for i in s.indices],
        scores={name: [v for s in shards for v in s.scores[name]] for name in shards[0].scores},
    )


def counts(device: str, latency_device: str | None) -> bool:
    """Whether a device's latency counts."""
    return latency_device is None or latency_device.lower() in device.lower()


def in_order(shards: Sequence[Shard], values: torch.Tensor) -> torch.Tensor:
    """(N, ...) values of the shards' images by image index: the groups of intervals go by position, whoever made which batch.

    In the order of the shards where these do not tell which images they are of.
    """
    indices = [i for s in shards for i in s.indices]
    return values[torch.tensor(indices).argsort()] if len(indices) == len(values) else values
