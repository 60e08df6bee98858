"""What a search runs, what it is after, and when it ends; and the machines it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from search.data.datasets import FRESH_OFFSET
from search.fields import check, limited
from search.optimize.objectives import Objectives
from search.optimize.winners import tolerance_for


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a search goes on, and what it chooses at its end. It ends at the first of its limits."""

    generations: int = limited(least=1, most=1_000_000)
    """Generations; in an asynchronous search, populations of candidates."""
    population: int = limited(least=4, most=100_000)
    """Candidates per generation."""
    mode: str = limited("generational", among=("generational", "asynchronous"))
    """Asynchronous: no worker waits for a generation's end, and which candidates come depends on who finishes first."""
    latency: str = limited("measured", among=("measured", "predicted"))
    """Predicted: from the cost table of the first device, measured once at the start, so that a busy moment changes no candidate's
    place; winners are timed. Measured: each candidate's own images."""
    max_candidates: int | None = limited(None, least=1)
    """No new candidates after so many."""
    max_minutes: float | None = limited(None, above=0)
    """No new candidates after so many minutes of this run of the command; the winners' validation comes on top."""
    max_device_hours: float | None = limited(None, above=0)
    """No new candidates after so many hours that devices spent evaluating, those before an interruption included."""
    patience: int | None = limited(None, least=1)
    """Generations whose mean hypervolume is compared with that of as many before: the search ends where it grew by less than a thousandth."""
    promote_ranks: int = limited(1, least=1, most=100_000)
    """Non-dominated ranks that are measured on more images, where the protocol has fidelities."""
    winner_speedup: float = limited(3.0, above=0)
    """The winner `quality` is the best FID at this speedup or more."""
    winner_speedups: tuple[float, ...] = ()
    """Further winners, named at-2x and so on: the lowest FID at each of these speedups or more."""
    max_fresh_images: int | None = limited(None, least=2, most=FRESH_OFFSET)
    """Fresh images at most that a candidate for `fastest` is checked on; null for four times protocol.images."""

    def __post_init__(self) -> None:
        check(self, "search")
        if any(not s > 1 for s in self.winner_speedups):
            raise ValueError(f"search.winner_speedups is {list(self.winner_speedups)!r}; give numbers above 1, such as [2, 4, 8], or [] for none")


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Course):
    """What a driver is told of a search."""

    objectives: Objectives = field(default_factory=Objectives)
    """What candidates are compared by."""
    tolerance: float = limited(0.1, least=0)
    """By how many FID points `fastest` may be worse than the unaccelerated pipeline, by the upper end of the difference's 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Course, Objectives):
    """The keys of `search`."""

    operators: str = limited("stepwise", among=("stepwise", "paper"))
    """Stepwise (section 3.3.2 of the paper) or paper (its supplement)."""
    engine: str = limited("ray", among=("ray", "tune"))
    """Ray: our own dispatch; tune: a Ray Tune experiment, always asynchronous, latency of any device."""
    warm_start: tuple[str, ...] = ()
    """What to begin with: presets, strategy files, JSON lists of them, folders of searches (their fronts)."""
    surrogate: bool = True
    """A model learnt from the results picks among many offspring those that promise the most hypervolume; false for none."""
    tolerance: float | None = limited(None, least=0)
    """FID points that `fastest` may be worse by, by the upper end of its 95 % interval; null for 0.1 with embedded features, 0.5 with
    Inception's."""
    retry_failed: bool = False
    """With the same command: measure the candidates recorded as failed once more; where one succeeds, that result replaces the failure
    (the search's next candidates follow from it only where its generation was still running; a finished search retries nothing)."""
    deepcache_interval: int = limited(3, least=1, most=1000)
    """A full call every so many steps in the DeepCache-like schedule drawn as a rival."""

    def plan(self, features: str) -> SearchPlan:
        """What a driver needs to know, where the FID is of these features."""
        course = {f.name: getattr(self, f.name) for f in fields(Course)}
        objectives = Objectives(**{f.name: getattr(self, f.name) for f in fields(Objectives)})
        return SearchPlan(objectives=objectives, tolerance=tolerance_for(features, self.tolerance), **course)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """The keys of `cluster`: the machines, and how patient a command is with them."""

    address: str | None = None
    """Null starts Ray on this machine; "auto" on a node of a running cluster, or host:6379 of its head."""
    workers: int | None = limited(2, least=0, most=100_000)
    """Evaluators, each with the pipeline loaded; null for as many as the cluster has room for, more or fewer as machines come and go;
    0 (not for a search): this process alone, without Ray."""
    min_workers: int | None = limited(None, least=1, most=100_000)
    """Begin when so many are loaded, others join as machines do; null for all of them, or with workers=null for all that there is room for at the start."""
    max_workers: int | None = limited(None, least=1, most=100_000)
    """With workers=null: never more than so many. Where Ray's autoscaler starts machines, room for so many is asked of it until the search
    ends. Null: all the room there is, and of an autoscaler room for as many as a generation has candidates, which all can be busy."""
    cpus: float = limited(1, least=0, most=100_000)
    """CPUs reserved for each."""
    gpus: float = limited(0, least=0, most=10_000)
    """GPUs reserved for each, may be a fraction."""
    threads: int | None = limited(1, least=1, most=10_000)
    """Torch threads of each; null for as many as there are CPUs."""
    code: str = limited("installed", among=("installed", "upload"))
    """Installed: workers import what their machine has; upload: this machine's packages are sent to them."""
    latency_device: str | None = None
    """Part of the names of the devices whose latency counts, such as H100; null for any."""
    wait_for_nodes_s: float | None = limited(None, least=0)
    """Seconds to wait for machines to join, or for other jobs to leave them, before too few are an error; null for load_timeout_s where
    Ray's autoscaler starts machines, 0 where it does not."""
    max_attempts: int = limited(3, least=1, most=100_000)
    """How often a failing candidate is started at most."""
    batch_timeout_s: float = limited(3600, above=0)
    """Seconds after which a batch's worker is replaced."""
    load_timeout_s: float = limited(600, above=0)
    """Seconds that the workers may take to load, and that a search waits for machines when all are gone."""

    def __post_init__(self) -> None:
        check(self, "cluster")
        if self.workers is None and self.address is None:
            raise ValueError("cluster.workers is null, which only a running cluster allows (cluster.address); give at least 1")
        if self.workers is None and not (self.cpus or self.gpus):
            raise ValueError("cluster.workers is null and cluster.cpus and cluster.gpus are 0, which there is room for without end; give one of the three")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"cluster.gpus is {self.gpus!r}; give a part of one GPU, such as 0.5, or whole ones")
        if self.max_workers is not None and self.workers is not None:
            raise ValueError(f"cluster.max_workers is {self.max_workers!r} and cluster.workers {self.workers!r}; a bound is for cluster.workers=null, which follows the cluster")
        most = self.workers or self.max_workers
        if self.min_workers is not None and self.min_workers > (most or self.min_workers):
            bound = "cluster.workers" if self.workers else "cluster.max_workers"
            raise ValueError(f"cluster.min_workers is {self.min_workers!r}; give 1 to {most} ({bound}), or null for all workers")
