"""A place for one worker on a machine of the cluster: the actor that has it now, and what is known of it."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray

from search.run.ray_cluster import in_one_line


@dataclass(eq=False)
class Slot:
    """A worker's place on one machine: its actor changes when it dies, and it ends with its machine."""

    number: int
    node: str
    """Ray's name of the machine."""
    host: str
    """The machine for people."""
    actor: Any = None
    device: str = ""
    timed: bool = True
    starts: int = 0
    died: bool = False
    """Whether its last start ended without an answer: the machine's fault or its memory's, not the model's."""
    unfit: bool = False
    """Whether it is left out, as every process there fails with everything."""
    asked_at: float = math.inf
    """When its actor was asked for, on the monotonic clock."""
    placing: Any = None
    """The answer that its process gives as soon as it runs, before it loads; None once it is taken in."""
    placed_at: float = math.inf
    log: str = ""
    """Where its process writes what it prints and the tracebacks of its errors."""
    idle_since: float = 0.0
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    """The last of what went wrong."""

    @property
    def where(self) -> str:
        """Its machine, and its log there."""
        return f"node {self.host}" + (f", log {self.log}" if self.log else "")

    def take_place(self, now: float) -> None:
        """Take in where its process runs, which it has said; nothing where it did not get so far."""
        placing, self.placing = self.placing, None
        try:
            self.log = ray.get(placing)["log"]
        except ray.exceptions.RayError:
            return
        self.placed_at = now

    def load(self, ref: Any) -> str | None:
        """Take in an actor that has loaded, or what kept it from loading."""
        if self.placing is not None and ray.wait([self.placing], timeout=0)[0]:
            self.take_place(time.monotonic())
        try:
            about = ray.get(ref)
        except ray.exceptions.RayError as error:
            self.died = True
            self.errors.append(f"{in_one_line(getattr(error, 'cause', None) or error)} ({self.where})")
            return self.errors[-1]
        self.device, self.died = about["device"], False
        if about["error"]:
            fix = "; install dato-search on that node, or set cluster.code=upload" if "ModuleNotFoundError" in about["error"] else ""
            self.errors.append(f"{about['error']} ({self.where}{fix})")
            self.device = ""
            ray.kill(self.actor)
            return self.errors[-1]
        self.starts = 0
        return None
