"""The machines of the joined cluster, and how many workers each has room for now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private import state

ANY = 1_000_000
"""Room where workers reserve nothing."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that is up.

    Attributes:
        id: Ray's name for it; a machine that comes back has another.
        name: For people.
        total: What Ray was told it has, such as {"CPU": 8.0, "GPU": 1.0}.
        free: What of that nobody holds, other jobs included; as of some tenths of a second ago.
        draining: Whether it is about to go, as a spot machine after its notice, and takes nothing new.
    """

    id: str
    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    draining: bool = False


def nodes() -> list[Node]:
    """Every machine that is up, by when Ray lists it."""
    free, draining = state.available_resources_per_node(), state.state.get_draining_nodes()
    return [
        Node(
            id=n["NodeID"],
            name=f"{n['NodeManagerHostname']} at {n['NodeManagerAddress']}",
            total=n["Resources"],
            free=free.get(n["NodeID"], {}),  # nothing yet of one that joins this moment
            draining=n["NodeID"] in draining,
        )
        for n in ray.nodes()
        if n["Alive"]
    ]


def places(total: Mapping[str, float], cpus: float, gpus: float, free: Mapping[str, float] | None = None) -> int:
    """How many workers fit on one machine.

    Args:
        total: What it has.
        cpus: Of each worker.
        gpus: Of each; a part of a GPU must be of one GPU.
        free: What of it nobody holds; None for all.
    """
    left = total if free is None else free
    limits = [left.get(kind, 0.0) / each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    if 0 < gpus < 1:  # two GPUs have room for two workers of 0.6, not for three
        limits.append(total.get("GPU", 0.0) * math.floor(1 / gpus + 1e-9))
    return max(0, math.floor(min(limits) + 1e-9)) if limits else ANY
