"""What a strategy changed against the unaccelerated pipeline, with an interval from those of the two measurements."""

from __future__ import annotations

import math

from search.records import Measurement


def fid_difference(fast: Measurement, plain: Measurement) -> tuple[float, float, float]:
    """FID of the accelerated less the unaccelerated pipeline, and a 95 % interval; NaN ends where an interval is missing.

    The interval recovers the spreads of the two ends and adds them in squares (Zou and Donner, Statistics in Medicine 27,
    2008, Eq. 8). That takes the two as independent; both share prompts and seeds, so it errs on the wide side.
    """
    value = fast.fid - plain.fid
    low = math.hypot(fast.fid - fast.fid_low, plain.fid_high - plain.fid)
    high = math.hypot(fast.fid_high - fast.fid, plain.fid - plain.fid_low)
    return value, value - low, value + high


def speedup(fast: Measurement, plain: Measurement) -> tuple[float, float, float]:
    """Unaccelerated over accelerated latency, and its range: slowest against fastest batch and the other way round."""
    return plain.latency_ms / fast.latency_ms, plain.latency_low_ms / fast.latency_high_ms, plain.latency_high_ms / fast.latency_low_ms
