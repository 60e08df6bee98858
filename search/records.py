"""What a search writes down: candidates, measurements, winners, and the record of a whole search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from dato.files import shown
from dato.strategy import Strategy

SCHEMA = "dato.search/1"
UNACCELERATED = "unaccelerated"
"""Name of the baseline that every search measures."""
FAMILIES = {
    "plain": "unaccelerated", "fewer": "fewer steps", "tomesd": "ToMeSD", "deepcache": "DeepCache", "naive": "DeepCache + ToMeSD", "strategy": "strategies"
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


_OPTIONAL = ("error", "measured_ms", "kid", "feature_distance", "feature_distance_low", "feature_distance_high")
"""Values of a measurement that may be None; null in any other stands for NaN."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one evaluation of a strategy gave. FID and latency are lower-is-better; NaN where it failed.

    Attributes:
        fid: Frechet distance of the generated images to the reference images.
        fid_low: Lower end of the 95 % interval over the choice of generated images.
        fid_high: Upper end.
        fid_left_out: FIDs without each group of images in turn, the same groups for all that is measured on as many; kept for baselines.
        difference_low: Lower end of the 95 % interval of the FID less the unaccelerated pipeline's on the same images; NaN where unknown.
        difference_high: Upper end.
        kid: Kernel distance to the reference images, or None where the reference is statistics only.
        feature_distance: How far its images are from the unaccelerated ones of the same prompts and seeds, see
            `search.metrics.similarity.feature_distance`: 0 for the same, 1 for unrelated ones; None where nobody compared them.
        feature_distance_low: Lower end of its 95 % interval over the images, or None.
        feature_distance_high: Upper end.
        similarity: Value, low and high of each image metric against the same unaccelerated images, by name; of baselines and winners.
        images: How many images it was measured on; FIDs of different counts do not compare.
        latency_ms: Milliseconds per image of the whole pipeline, median over batches; or what the cost table predicts.
        latency_low_ms: Fastest batch.
        latency_high_ms: Slowest batch.
        parts_ms: Milliseconds per image of text_encoder, unet and vae.
        calls_by_depth: UNet calls at each cache depth.
        seconds: Wall time of the evaluation.
        device: Where it ran.
        batch: Images per batch.
        measured_ms: The measured latency, where `latency_ms` is predicted; else None.
        error: Why it failed, or None.
    """

    fid: float = float("nan")
    fid_low: float = float("nan")
    fid_high: float = float("nan")
    fid_left_out: tuple[float, ...] = ()
    difference_low: float = float("nan")
    difference_high: float = float("nan")
    images: int = 0
    latency_ms: float = float("nan")
    latency_low_ms: float = float("nan")
    latency_high_ms: float = float("nan")
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    calls_by_depth: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = ""
    batch: int = 0
    measured_ms: float | None = None
    kid: float | None = None
    feature_distance: float | None = None
    feature_distance_low: float | None = None
    feature_distance_high: float | None = None
    similarity: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there are numbers."""
        return self.error is None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a failed measurement's NaNs become null."""
        return {k: None if isinstance(v, float) and v != v else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_dict`. Raises ValueError for values that no measurement has, naming the first."""
        _check_measurement(data)
        values: dict[str, Any] = {k: float("nan") if v is None and k not in _OPTIONAL else v for k, v in data.items()}
        values.pop("fid_draws", None)  # resamples of single images, in ledgers of earlier versions: they make no true interval
        similarity = {k: tuple(v) for k, v in (values.get("similarity") or {}).items()}
        return cls(**{**values, "fid_left_out": tuple(values.get("fid_left_out") or ()), "similarity": similarity})


_POSITIVE = ("latency_ms", "latency_low_ms", "latency_high_ms", "measured_ms")
_LEAST_FID = -1.0
"""A distance is never negative; what rounding makes of one is close to zero."""


def _check_measurement(data: Mapping[str, Any]) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"a measurement is {shown(data)}, which is no object")
    unknown = sorted(set(data) - {f.name for f in fields(Measurement)} - {"fid_draws"})
    if unknown:
        raise ValueError(f"a measurement has the unknown key {shown(unknown[0])}")
    defaults = {f.name: f.default for f in fields(Measurement)} | {"fid_draws": ()}
    for key, value in data.items():
        default = defaults[key]
        if key == "similarity":
            rows = value.values() if isinstance(value, Mapping) else [None]
            wrong = not all(isinstance(row, list | tuple) and len(row) == 3 and all(v is None or is_number(v) for v in row) for row in rows)
        elif key in ("parts_ms", "calls_by_depth"):
            wrong = not isinstance(value, Mapping) or not all(isinstance(k, str) and is_number(v) and v >= 0 for k, v in value.items())
        elif key in _POSITIVE:
            wrong = value is not None and not (is_number(value) and value > 0)
        elif key == "error":
            wrong = not isinstance(value, str | None)
        elif default is None or isinstance(default, float):
            least = {"fid": _LEAST_FID, "seconds": 0.0}.get(key, -math.inf)
            wrong = value is not None and not (is_number(value) and value >= least)
        elif isinstance(default, tuple):
            wrong = value is not None and not (isinstance(value, list | tuple) and all(map(is_number, value)))
        elif isinstance(default, str):
            wrong = not isinstance(value, str)
        else:  # of another kind, which whoever reads it checks
            wrong = isinstance(default, int) and not is_count(value)
        if wrong:
            raise ValueError(f"{key} is {shown(value)}, which no measurement has")


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is an integer from `least` to a million million, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 10**12


def fid_difference(fast: Measurement, plain: Measurement) -> tuple[float, float, float]:
    """FID of the accelerated less the unaccelerated pipeline, and a 95 % interval; NaN ends where an interval is missing.

    Where the two were not compared group by group (`search.evaluate.measure.paired`), the interval recovers the spreads of the two ends and adds them in
    squares (Zou and Donner, Statistics in Medicine 27, 2008, Eq. 8). That takes the two as independent; both share prompts and
    seeds, so it errs on the wide side.
    """
    value = fast.fid - plain.fid
    if not math.isnan(fast.difference_low):
        return value, fast.difference_low, fast.difference_high
    low = math.hypot(fast.fid - fast.fid_low, plain.fid_high - plain.fid)
    high = math.hypot(fast.fid_high - fast.fid, plain.fid - plain.fid_low)
    return value, value - low, value + high


def difference_in_words(fast: Measurement, plain: Measurement) -> str:
    """`fid_difference` for people: "+0.12 (-0.30 .. +0.55)"."""
    value, low, high = fid_difference(fast, plain)
    return f"{value:+.2f}" + ("" if math.isnan(low) else f" ({low:+.2f} .. {high:+.2f})")


def speedup(fast: Measurement, plain: Measurement) -> tuple[float, float, float]:
    """Unaccelerated over accelerated latency, and its range: slowest against fastest batch and the other way round."""
    return plain.latency_ms / fast.latency_ms, plain.latency_low_ms / fast.latency_high_ms, plain.latency_high_ms / fast.latency_low_ms


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
        notes: What the search says of itself: "reference", in words, and "measured_without", what of the pipeline was not loaded.
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


def prediction_error(record: SearchRecord) -> float | None:
    """How far the cost table is from the measured times: the median relative error, the common factor (the median ratio) taken out.

    None where latencies are not predicted. The factor does not count, since all candidates share it and a machine's speed drifts.
    """
    ratios = [m.latency_ms / m.measured_ms for m in record.results.values() if m.ok and m.measured_ms]
    if not ratios:
        return None
    factor = statistics.median(ratios)
    return statistics.median(abs(r / factor - 1) for r in ratios)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values, such as a configuration, as one level: keys are joined by dots, as in "model.path"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


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
