"""Whose fault a failure is: which workers are proven, which are broken. Pure: no Ray, no clock.

A worker is proven while the last that it ran succeeded. What fails on a proven worker counts against the job; what fails on any
other counts against nothing, and is tried again on a proven one. A worker that fails twice in a row waits: when another succeeds
meanwhile it is broken, as it is at once after an error of its device that outlives the call. A broken worker is exchanged. Running out of
memory is the job's fault on a proven worker, which has tried it twice already (`search.evaluate.memory`), and hardly ever the worker's.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from search.evaluate.memory import tells_of_memory

IN_A_ROW = 2
"""Failures in a row after which a worker gets nothing until it is known whether others succeed."""
OUT_OF_MEMORY_IN_A_ROW = 8
"""The same where the last one ran out of memory: that is said of what did not fit, unless it goes on for so long that memory leaks."""

# A context that has seen one of these fails every later call: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html,
# "cudaErrorAssert: ... The process must be terminated and relaunched".
_DEVICE = re.compile(
    r"\b(CUDA|HIP) (driver |kernel |unknown )?error|device-side assert|\bcudaError|\bCudaError\b|\bAcceleratorError\b"
    r"|\bcublas|CUBLAS_STATUS|\bcudnn\b|CUDNN_STATUS|\bcusolver|\bcufft|illegal memory access|unspecified launch failure|uncorrectable (ECC|NVLink)",
    re.IGNORECASE,
)


def poisons(error: str) -> bool:
    """Whether after this error the worker's process cannot compute any more, whatever it is given. Running out of memory is none: the next call may fit."""
    return bool(_DEVICE.search(error)) and not tells_of_memory(error)


@dataclass
class _Life:
    """What is known of a worker since it was started."""

    proven: bool = False
    in_a_row: int = 0
    since: int = 0
    """When the failures in a row began."""
    broken: int = 0
    """Lives in a row that ended broken; a success ends the row."""


class Health:
    """Follows the workers of one pool, over all that it maps."""

    def __init__(self) -> None:
        self.good: Any = None
        """A job that is known to work, to check workers with; None while nothing has succeeded."""
        self._lives: dict[Hashable, _Life] = {}
        self._suspects: set[Hashable] = set()
        self._broken: set[Hashable] = set()
        self._now = 0
        self._last: tuple[int, Hashable] = (-1, None)
        """The last success and whose it was."""
        self._before: tuple[int, Hashable] = (-1, None)
        """The last success of any other worker than that one."""

    def _life(self, worker: Hashable) -> _Life:
        return self._lives.setdefault(worker, _Life())

    def proven(self, worker: Hashable) -> bool:
        """Whether what fails there is the job's fault."""
        return self._life(worker).proven

    def suspect(self, worker: Hashable) -> bool:
        """Whether it failed so often in a row that it gets nothing for now."""
        return worker in self._suspects

    def lives_broken(self, worker: Hashable) -> int:
        """How often in a row it was exchanged, or died, without a success."""
        return self._life(worker).broken

    def begins(self, worker: Hashable) -> None:
        """It was given something after all: how that ends says what it is."""
        self._suspects.discard(worker)

    def succeeded(self, worker: Hashable) -> None:
        """It finished something: suspects that failed meanwhile are broken."""
        self._now += 1
        if self._last[1] != worker:
            self._before = self._last
        self._last = (self._now, worker)
        self._lives[worker] = _Life(proven=True)
        self._suspects.discard(worker)
        for other in list(self._suspects):
            self._break(other)

    def failed(self, worker: Hashable, error: str, *, known: bool, gone: bool) -> bool:
        """Note a failure; whether it counts against the job.

        Args:
            worker: Where.
            error: What it said.
            known: The job has failed on a proven worker before, so that this says little about the worker.
            gone: The worker's process ended: its next life begins.
        """
        self._now += 1
        life = self._life(worker)
        counts, life.proven = life.proven, False
        if gone:
            self.renewed(worker, broken=not counts)
        elif poisons(error):
            self._break(worker)
        elif not (known and counts):
            life.since = life.since if life.in_a_row else self._now
            life.in_a_row += 1
            if life.in_a_row >= (OUT_OF_MEMORY_IN_A_ROW if tells_of_memory(error) else IN_A_ROW):
                self._suspects.add(worker)
                others = max((at for at, who in (self._last, self._before) if who != worker), default=-1)
                if others > life.since:
                    self._break(worker)
        return counts

    def unfit(self, worker: Hashable, *, gone: bool = False) -> None:
        """It failed with what is known to work; `gone`: its process ended by that."""
        self._now += 1
        self._life(worker).proven = False
        if gone:
            self.renewed(worker, broken=True)
        else:
            self._break(worker)

    def _break(self, worker: Hashable) -> None:
        self._suspects.discard(worker)
        self._broken.add(worker)

    def take_broken(self) -> list[Any]:
        """The workers found broken since this was last asked: they are to be exchanged, and are new from now on."""
        found = list(self._broken)
        self._broken.clear()
        for worker in found:
            self.renewed(worker, broken=True)
        return found

    def forget(self, worker: Hashable) -> None:
        """It has left for good: nobody will come back under its name."""
        self._suspects.discard(worker)
        self._broken.discard(worker)
        self._lives.pop(worker, None)

    def is_broken(self, worker: Hashable) -> bool:
        """Whether it waits to be exchanged."""
        return worker in self._broken

    def renewed(self, worker: Hashable, *, broken: bool = False) -> None:
        """A new process takes its place; `broken` where the last one never succeeded."""
        self._suspects.discard(worker)
        self._broken.discard(worker)
        self._lives[worker] = _Life(broken=self._life(worker).broken + broken)
