"""Workers that share a GPU wait for each other, and what they time is not a candidate's alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def shared_gpu_warning(gpus: float, workers: Iterable[tuple[str, bool]], latency: str | None) -> str | None:
    """What to say where several workers compute on one GPU while latency is measured; None where each has its own, or none has one.

    Args:
        gpus: `cluster.gpus`: a worker's share; 0 leaves every GPU of its node visible to it, of which it takes the first.
        workers: Of each worker, its node, and whether it computes on a GPU.
        latency: `search.latency`; None for a command that measures each latency.
    """
    most = max(Counter(node for node, on_gpu in workers if on_gpu).values(), default=0)
    together = min(most, int(1 / gpus + 1e-9)) if 0 < gpus < 1 else most if gpus == 0 else 1
    if together < 2:
        return None
    said = f"{together} workers share a GPU (cluster.gpus={gpus:g})"
    if latency == "predicted":
        return (
            f"{said}: candidates are priced by a cost table that one worker measures while the others wait, but winners are timed beside their "
            "neighbours' work, in turn with the unaccelerated pipeline; for their latency alone set cluster.gpus=1"
        )
    other = ", or search.latency=predicted, whose cost table one worker measures while the others wait" if latency else ""
    return f"{said}: measured latencies include the neighbours' work, not the same for each candidate; set cluster.gpus=1{other}"
