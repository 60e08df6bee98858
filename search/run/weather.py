"""What happens to simulated machines: failures, preemptions, machines that join late, and a pool that grows and shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What happens to simulated machines. Seconds; infinite or zero for never."""

    fail_s: float = math.inf
    """Mean time between failures of one worker (exponential). It comes back after `reload_s`."""
    reload_s: float = 60.0
    """Until a worker that failed, or joined, has loaded its model."""
    preempt_s: float = math.inf
    """Mean time between the preemptions of one worker."""
    away_s: float = 600.0
    """Until a preempted worker's replacement joins."""
    per_machine: int = 1
    """Workers that share a machine: it is preempted with all of them."""
    sizes: tuple[tuple[float, int], ...] = ()
    """From when on how many workers there are, such as ((0, 1), (600, 8)): an autoscaler's machines come, and go for good. Empty for all, always."""
    late: float = 0.0
    """Share of the workers that join late, spread over the first `away_s`."""
    poison_s: float = math.inf
    """Mean time until a worker's process fails whatever it is given, in some hundredths of a second. A new process is well again."""
    broken: float = 0.0
    """Share of the workers that fail whatever they are given, and so does every process that takes their place."""
