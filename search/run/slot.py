"""A place for one worker on the cluster: the actor that has it now, and what is known of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray

from search.run.ray_cluster import in_one_line


@dataclass(eq=False)
class Slot:
    """A worker's place: its actor changes when it dies."""

    number: int
    actor: Any = None
    device: str = ""
    node: str = ""
    host: str = ""
    timed: bool = True
    starts: int = 0
    died: bool = False
    """Whether its last start ended without an answer: the machine's fault or its memory's, not the model's."""
    unfit: bool = False
    """Whether it is left out, as every process there fails with everything."""
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    """The last of what went wrong."""

    def load(self, ref: Any) -> str | None:
        """Take in an actor that has loaded, or what kept it from loading."""
        try:
            about = ray.get(ref)
        except ray.exceptions.RayError as error:
            where = f" on node {self.host}" if self.host else ""
            self.died = True
            self.errors.append(in_one_line(getattr(error, "cause", None) or error) + where)
            return self.errors[-1]
        self.device, self.node, self.host, self.died = about["device"], about["node"], about["host"], False
        if about["error"]:
            fix = "; install dato-search on that node, or set cluster.code=upload" if "ModuleNotFoundError" in about["error"] else ""
            self.errors.append(f"{about['error']} (node {self.host}{fix})")
            self.device = ""
            ray.kill(self.actor)
            return self.errors[-1]
        self.starts = 0
        return None
