"""What a strategy was measured to be: quality and latency with their intervals, and how two measurements differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dato.files import shown

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
        parts_ms: Milliseconds per image of text_encoder, unet or transformer, and vae.
        calls_by_depth: Calls of the UNet or transformer at each cache depth.
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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values, such as a configuration, as one level: keys are joined by dots, as in "model.path"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
