"""What a search writes down: candidates, measurements, winners, and the record of a whole search."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from dato.files import shown
from dato.strategy import Strategy
from search.measurements import Measurement

SCHEMA = "dato.search/1"
UNACCELERATED = "unaccelerated"
"""Name of the baseline that every search measures."""
FAMILIES = {
    "plain": "unaccelerated", "fewer": "fewer steps", "limited": "limited guidance", "tomesd": "ToMeSD", "deepcache": "DeepCache",
    "naive": "DeepCache + ToMeSD", "first_block_cache": "FirstBlockCache", "taylorseer": "TaylorSeer", "mag_cache": "MagCache", "faster_cache": "FasterCache",
    "cache_dit": "cache-dit", "strategy": "strategies",
}  # fmt: skip
"""Ways to run the pipeline, in words."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy that the search asked for.

    Attributes:
        number: Position in the order of asking, from 0.
        generation: Generation that asked for it, from 0.
        strategy: In canonical form.
        origin: Where it comes from: "initial", "offspring", or a baseline's name.
        parents: Numbers of the candidates that it was crossed from; none for an initial one.
    """

    number: int
    generation: int
    strategy: Strategy
    origin: str = "offspring"
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A strategy chosen from the front, measured again on seeds that the search never saw.

    Attributes:
        alias: "quality", "balanced", "fastest", "at-2x" and so on.
        candidate: The candidate it was.
        searched: Its measurement during the search.
        fresh: Its measurement on fresh seeds.
        fresh_baseline: The unaccelerated pipeline's on the same prompts and seeds, timed in turn with it.
    """

    alias: str
    candidate: Candidate
    searched: Measurement
    fresh: Measurement
    fresh_baseline: Measurement

    @property
    def speedup(self) -> float:
        """Unaccelerated over accelerated latency, both measured in the same run."""
        return self.fresh_baseline.latency_ms / self.fresh.latency_ms


@dataclass(kw_only=True)
class SearchRecord:
    """A search, finished or not, as its ledger tells it.

    Attributes:
        search_id: Name and configuration digest.
        config: The resolved configuration.
        environment: Versions and hardware.
        candidates: Every candidate asked for, by number.
        results: Their measurements, by candidate number, all at the least number of images; missing where not finished.
        promotions: Measurements on more images, by candidate number and images.
        baselines: Measurements of named strategies on all images of the protocol; "unaccelerated" is always one.
        baselines_at: The same and those on fewer images, by name and images.
        events: ("ask" | "result", candidate number) in the order in which they were written.
        told: Failures that the algorithm was told of, by number, of candidates that were measured again later.
        costs: The cost table that latencies are predicted with, or None.
        hypervolumes: After each generation.
        fresh: Measurements on fresh images by candidate number, -1 for the unaccelerated pipeline, and images.
        fresh_plain_ms: Of the unaccelerated pipeline in turn with those, by candidate number and images: median, fastest and slowest batch.
        winners: By alias, once they were checked on fresh images.
        finished: Whether the search came to its end.
        notes: What the search says of itself: "reference", in words, "measured_without", what of the pipeline was not loaded,
            "pinned", the commits of what it loads from the hub, and "warnings", what whoever reads its figures should know.
    """

    search_id: str
    config: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    candidates: dict[int, Candidate] = field(default_factory=dict)
    results: dict[int, Measurement] = field(default_factory=dict)
    promotions: dict[int, dict[int, Measurement]] = field(default_factory=dict)
    baselines: dict[str, tuple[Candidate, Measurement]] = field(default_factory=dict)
    baselines_at: dict[str, dict[int, Measurement]] = field(default_factory=dict)
    events: list[tuple[str, int]] = field(default_factory=list)
    told: dict[int, Measurement] = field(default_factory=dict)
    costs: dict[str, Any] | None = None
    hypervolumes: list[float] = field(default_factory=list)
    fresh: dict[int, dict[int, Measurement]] = field(default_factory=dict)
    fresh_plain_ms: dict[tuple[int, int], tuple[float, float, float]] = field(default_factory=dict)
    winners: dict[str, Winner] = field(default_factory=dict)
    finished: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """What FIDs were measured against, in words."""
        return str(self.notes.get("reference") or f"the real images of {(self.config.get('data') or {}).get('name', 'unknown data')}")

    @property
    def reference_note(self) -> str:
        """The same as a sentence's end; against the pipeline's own images, what its own FID means."""
        floor = "; the unaccelerated pipeline's own FID is the noise floor: other seeds of the same pipeline" if self.own_reference else ""
        return f"FID against {self.reference}{floor}"

    @property
    def own_reference(self) -> bool:
        """Whether these are the unaccelerated pipeline's own images: then its own FID is the noise floor."""
        return (self.config.get("data") or {}).get("kind") == "prompts"

    @property
    def aliases(self) -> dict[int, list[str]]:
        """What each winner won, by candidate number: one may win more than once."""
        found: dict[int, list[str]] = {}
        for alias, winner in self.winners.items():
            found.setdefault(winner.candidate.number, []).append(alias)
        return found

    def baseline(self, name: str, images: int) -> Measurement:
        """A baseline on so many images; on all of them where the search never measured it on fewer. `KeyError` where it is not measured."""
        return self.baselines_at.get(name, {}).get(images) or self.baselines[name][1]

    def plain(self, images: int) -> Measurement:
        """The unaccelerated pipeline on so many images, as `baseline`."""
        return self.baseline(UNACCELERATED, images)

    def as_told(self, number: int) -> Measurement:
        """What the algorithm was told of a candidate, or is to be: its next candidates follow from that."""
        return self.told.get(number, self.results[number])

    def device_seconds(self, number: int | None = None) -> float:
        """Time that devices spent evaluating a candidate, or everything; a promotion counts its new images only."""
        if number is not None:
            return max([self.results[number].seconds, *(p.seconds for p in self.promotions.get(number, {}).values())])
        more = sum(self.device_seconds(n) - self.results[n].seconds for n in self.promotions)
        return sum(m.seconds for _, m in self.baselines.values()) + sum(m.seconds for m in self.results.values()) + more

    def evaluated(self, images: int | None = None) -> list[tuple[Candidate, Measurement]]:
        """The candidates measured without failing on so many images, in the order of asking; None for the least, which all have."""
        found = []
        for n, m in sorted(self.results.items()):
            more = m if images is None or m.images == images else self.promotions.get(n, {}).get(images)
            if more and more.ok:
                found.append((self.candidates[n], more))
        return found

    @property
    def images(self) -> int:
        """The largest number of images that candidates were measured on: what fronts and winners are compared at."""
        most = max((m.images for m in self.results.values()), default=0)
        return max((n for more in self.promotions.values() for n in more if more[n].ok), default=most)

    def _measured(self) -> Iterator[tuple[int, Measurement]]:
        for n, m in self.results.items():
            yield n, m
            yield from ((n, p) for p in self.promotions.get(n, {}).values())

    @property
    def latencies(self) -> dict[tuple[str, int], float]:
        """Milliseconds per image of everything measured, by strategy digest and number of images."""
        found = {(c.strategy.digest, n): m.latency_ms for name, (c, _) in self.baselines.items() for n, m in self.baselines_at[name].items() if m.ok}
        return found | {(self.candidates[n].strategy.digest, m.images): m.latency_ms for n, m in self._measured() if m.ok}

    def front(self, images: int | None = None) -> list[tuple[Candidate, Measurement]]:
        """The measured candidates that none beats in both FID and latency, fastest first; of equal ones the first asked.

        Args:
            images: Compare those measured on so many images; None for the most that any was.
        """
        found: list[tuple[Candidate, Measurement]] = []
        for candidate, m in sorted(self.evaluated(images or self.images), key=lambda p: (p[1].latency_ms, p[1].fid)):
            if not found or m.fid < found[-1][1].fid:
                found.append((candidate, m))
        return found


def check_notes(notes: Any) -> None:
    """Refuse what `SearchRecord.notes` cannot hold. Raises ValueError."""
    for key in ("measured_without", "warnings"):
        texts = notes.get(key, []) if isinstance(notes, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"notes is {shown(notes)}, no object with a list of texts in {key}")
    pinned, kinds = notes.get("pinned", {}), {"revision": str, "components": dict, "lora": list}
    if not isinstance(pinned, dict) or any(not isinstance(v, kinds.get(k, type(None))) for k, v in pinned.items()):
        raise ValueError(f"pinned of its notes is {shown(pinned)}, no object of a model's revision, components and lora")


def prediction_error(record: SearchRecord) -> float | None:
    """How far the cost table is from the measured times: the median relative error, the common factor (the median ratio) taken out.

    None where latencies are not predicted. The factor does not count, since all candidates share it and a machine's speed drifts.
    """
    ratios = [m.latency_ms / m.measured_ms for m in record.results.values() if m.ok and m.measured_ms]
    if not ratios:
        return None
    factor = statistics.median(ratios)
    return statistics.median(abs(r / factor - 1) for r in ratios)


class Watcher(Protocol):
    """Is told what happens: the terminal view and MLflow."""

    def started(self, record: SearchRecord) -> None:
        """The search begins or goes on."""
        ...

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """A candidate or baseline has a measurement."""
        ...

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """A generation is complete and its hypervolume recorded."""
        ...
