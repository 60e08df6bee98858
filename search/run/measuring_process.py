"""What a measuring process does, and keeps from one result to the next; `search.run.ray_measuring` hands results to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import ray
import torch

from search.run.jobs import Measure, put_together

SHARED = 8
"""Of what results are measured with, so many of the last are kept for the next one, in the cluster and in each process."""
_loaded: OrderedDict[str, Any] = OrderedDict()
"""What this process measures with, by its reference."""


def measure_here(function: bytes, shared: Sequence[Any], parts: Sequence[Any]) -> Any:
    """In an actor: the value of the result that consists of `parts`, with what is loaded of `shared`."""
    torch.set_num_threads(1)  # beside the workers of the node; and the same sums on every node
    for ref in shared:
        if ref.hex() not in _loaded:
            _loaded[ref.hex()] = ray.get(ref)
        _loaded.move_to_end(ref.hex())
    join, *known = (_loaded[ref.hex()] for ref in shared)
    while len(_loaded) > SHARED:
        _loaded.popitem(last=False)
    call, beside = ray.cloudpickle.loads(function)
    return Measure(call, tuple(known))(put_together(ray.get(list(parts)), join), *beside)
