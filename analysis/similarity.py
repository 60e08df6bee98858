"""Whether the strategies of a search still make the same pictures: its winners and rivals against the unaccelerated images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.page import wide_table
from analysis.tables import DIGITS, SIMILARITY, number, title
from search.measurements import Measurement
from search.metrics.similarity import DISTANCE
from search.records import UNACCELERATED, SearchRecord


def similarity_section(record: SearchRecord) -> str:
    """A table of the winners on fresh images, then of the rivals on the search's own; "" where nothing was compared."""
    measured = {f"{', '.join(aliases)}, fresh images": record.winners[aliases[0]].fresh for aliases in record.aliases.values()}
    measured |= {name: m for name, (_, m) in record.baselines.items() if m.ok and name != UNACCELERATED}
    found = {name: similarities(m) for name, m in measured.items()}
    metrics = list(dict.fromkeys(k for values in found.values() for k in values))
    if not metrics:
        return ""
    rows = [(name, *(number(values.get(k), DIGITS.get(k.partition(":")[0], 2)) for k in metrics)) for name, values in found.items()]
    return f"<h2>The same picture?</h2><p>{SIMILARITY}</p>{wide_table(('', *(f'{title(k)} [95 %]' for k in metrics)), rows)}"


def similarities(m: Measurement) -> dict[str, Mapping[str, Any]]:
    """A measurement's feature distance and image metrics, each with its interval, as `number` takes them."""
    found: dict[str, Mapping[str, Any]] = {}
    if m.feature_distance is not None:
        found[DISTANCE] = {"value": m.feature_distance, "low": m.feature_distance_low, "high": m.feature_distance_high}
    return found | {name: dict(zip(("value", "low", "high"), v, strict=True)) for name, v in m.similarity.items()}
