"""What workers are given to do: a task for some strategies on some batches of images, and the pieces that it is cut into."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

WORKER_DIED = "the worker died"
"""How the error of a try begins that ended its worker's process."""


class Task(Enum):
    """What an evaluator is asked to do; the value is its method, which takes strategies and batches."""

    EVALUATE = "run"
    """Draw and measure images."""
    REFERENCE = "reference"
    """Draw and measure images whose latency is not compared."""
    SAMPLES = "samples"
    """Draw images for people to look at."""
    COSTS = "costs"
    """Time the calls of a run."""
    REAL_MOMENTS = "real_moments"
    """Extract the features of the real images, and give their moments."""
    REAL_FEATURES = "real_features"
    """Extract the features of the real images."""
    MODEL_INFO = "model_info"
    """Tell what the pipeline is."""

    @property
    def is_timed(self) -> bool:
        """Whether it must run where latency counts: a cost table is of the device whose latency counts, but images may be drawn anywhere."""
        return self in (Task.EVALUATE, Task.COSTS)

    @property
    def proves(self) -> bool:
        """Whether its success proves a worker and its failure tells against one: samples, costs and model info prove nothing."""
        return self in (Task.EVALUATE, Task.REFERENCE)

    @property
    def is_divisible(self) -> bool:
        """Whether its batches may run on several workers."""
        return self is Task.EVALUATE


@dataclass(frozen=True, eq=False)
class Measure:
    """What a result is worth: a function that is called away from the driver, where results are or near them.

    Attributes:
        function: Called with `shared`, the result, and what its job has `beside`. The driver's own errors are what it raises.
        shared: What is the same for many results, such as a reference: sent to each machine once, for as long as it is the same object.
    """

    function: Callable[..., Any]
    shared: tuple[Any, ...] = ()

    def __call__(self, result: Any, *beside: Any) -> Any:
        """Its value, computed here."""
        return self.function(*self.shared, result, *beside)


@dataclass(frozen=True)
class Measured:
    """A result that was measured away from the driver.

    Attributes:
        value: What its `Measure` gave.
        fetch: Brings the result itself here, which costs as much as it is large; None where the machine that had it is gone.
    """

    value: Any
    fetch: Callable[[], Any]


def put_together(parts: Sequence[Any], join: Callable[[Sequence[Any]], Any] | None) -> Any:
    """A job's result from those of its pieces, in their order."""
    return parts[0] if len(parts) == 1 or join is None else join(parts)


@dataclass
class Job:
    """Strategies to run on batches of images.

    Attributes:
        key: The caller's name for it.
        strategies: What to run, as the evaluator takes it: strategies, or the variants of a comparison.
        batches: Image indices by batch.
        task: What is asked of the evaluator.
        measure: What is wanted of the result; None for the result itself. With it, a `Measured` is handed back.
        beside: What `measure` is given beside the result.
        tries: How often its unluckiest batch was started, machines that vanished not counted; never more than it may fail.
        errors: What each failed try said.
        blamed: What those said that count against it: on workers that succeed with other jobs.
        failed_s: Seconds that its failed tries took of their workers.
        vanished: How often its results were lost, with the machines that had them, before they were measured.
        where: The machine and the log of the process that it failed in last.
    """

    key: Any
    strategies: Sequence[Any]
    batches: Sequence[Any]
    task: Task = Task.EVALUATE
    measure: Measure | None = None
    beside: tuple[Any, ...] = ()
    tries: int = 0
    errors: list[str] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    failed_s: float = 0.0
    vanished: int = 0
    where: str = ""

    @property
    def reason(self) -> str:
        """Why it was given up: each different error once, whether it is quarantined because it ends workers, and where to read more."""
        killed = sum(error.startswith(WORKER_DIED) for error in self.blamed)
        errors = "; then ".join(dict.fromkeys(self.blamed or self.errors))
        why = f"quarantined, it killed {killed} workers: {errors}" if killed > 2 else errors
        return f"{why} ({self.where})" if self.where else why


@dataclass(eq=False)
class Piece:
    """Some batches of one job, for one worker.

    Attributes:
        job: Whose.
        batches: Positions in the job's batches.
        timed: Whether it must run where latency counts.
        worker: Who has it, or had it last.
        check: It shows whether its worker is sound, and its result is nobody's.
        failures: How often it failed where that counts against its job.
        unjudged: How often it failed where that counts against nothing.
        losses: How often its machine vanished.
        avoid: The workers that it failed on.
        result: Where its result is, where that is not brought here.
    """

    job: Job
    batches: Sequence[int]
    timed: bool = False
    worker: Hashable = None
    check: bool = False
    failures: int = 0
    unjudged: int = 0
    losses: int = 0
    avoid: set[Hashable] = field(default_factory=set)
    result: Any = None
    alone: bool = False
    """Whether it was given to a worker of which nothing is known, as there was no other."""

    @property
    def doubtful(self) -> bool:
        """Whether it failed before, so that only a proven worker may judge it."""
        return bool(self.failures or self.unjudged)
