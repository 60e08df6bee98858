"""Several searches in one self-contained HTML file: their fronts together, their progress, their winners."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from analysis.figures import fronts_figure, hypervolume_figure
from analysis.page import banner, figure_section, notes_section, page, wide_table, write_page
from analysis.progress import best_speedup
from search.measurements import difference_in_words, flat
from search.records import UNACCELERATED, SearchRecord

_ALIKE = ("model", "data", "protocol")


def write_comparison(records: Sequence[SearchRecord], path: Path) -> Path:
    """Write the comparison of searches, finished or not; says which of their settings make FIDs or latencies incomparable."""
    title = f"Comparison of {len(records)} searches"
    parts = [f"<h1>{title}</h1>", _banner(records), _table(records)]
    if any(r.evaluated() for r in records):
        parts.append(figure_section("Fronts", fronts_figure(records), "Each line is the front of a search, each diamond its unaccelerated pipeline; hover for the steps."))
    if any(r.hypervolumes for r in records):
        parts.append(figure_section("Progress", hypervolume_figure(records), "Hypervolume after each generation, by candidates evaluated; each search is measured from its own unaccelerated pipeline."))
    parts += [notes_section("What differs in their configurations", differences(records))]
    return write_page(path, page(title, parts))


def differences(records: Sequence[SearchRecord]) -> dict[str, str]:
    """Configuration keys whose values differ, with each search's value."""
    configs = [flat(r.config) for r in records]
    keys = sorted({k for c in configs for k in c})
    return {k: " | ".join(str(c.get(k, "-")) for c in configs) for k in keys if len({str(c.get(k)) for c in configs}) > 1}


def _banner(records: Sequence[SearchRecord]) -> str:
    notes = []
    different = sorted({k for k in differences(records) if k.split(".")[0] in _ALIKE})
    if different:
        notes.append(f"These searches differ in {escape(', '.join(different))}: their FIDs or latencies do not compare, only their speedups against their own unaccelerated pipeline.")
    devices = [sorted({m.device for _, m in r.evaluated()}) for r in records]
    if any(d != devices[0] for d in devices if d):
        notes.append(f"They ran on different devices ({escape('; '.join(', '.join(d) or 'none' for d in devices))}): their latencies do not compare.")
    unfinished = [r.search_id for r in records if not r.finished]
    if unfinished:
        notes.append(f"Not finished: {escape(', '.join(unfinished))}.")
    return "".join(map(banner, notes))


def _table(records: Sequence[SearchRecord]) -> str:
    heads = ("search", "candidates", "failures", "front", "hypervolume", "speedup at no worse FID", "unaccelerated", "FID against", "winners, fresh images")
    rows = []
    for r in records:
        best, plain = best_speedup(r), r.plain(r.images) if UNACCELERATED in r.baselines else None
        winners = "; ".join(f"{', '.join(a)} {w.speedup:.2f}x, FID {difference_in_words(w.fresh, w.fresh_baseline)}" for a in r.aliases.values() for w in (r.winners[a[0]],))
        rows.append(
            (
                r.search_id,
                str(len(r.results)),
                str(sum(not m.ok for m in r.results.values())),
                str(len(r.front())),
                f"{r.hypervolumes[-1]:.4f}" if r.hypervolumes else "-",
                f"{best:.2f}x" if best else "-",
                f"FID {plain.fid:.2f}, {plain.latency_ms:.0f} ms" if plain else "-",
                r.reference,
                winners or "-",
            )
        )
    return wide_table(heads, rows)
