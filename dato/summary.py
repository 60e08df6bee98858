"""A strategy and what a run of it did, in the few lines that a person reads, and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dato.report import RunReport
    from dato.strategy import Strategy

_FULL = 12  # dato.strategy's, which imports this file


def strategy_line(strategy: Strategy) -> str:
    """Length, steps in short, prune ratios, digest and origin, within a line or two."""
    code = str(strategy)
    code = code if len(code) <= 120 else f"{code[:100]}... and so on"
    made = strategy.provenance.get("source") or strategy.provenance.get("search_id")
    return f"{len(strategy)} steps {code}, {_pruning(strategy)}, digest {strategy.digest}" + (f", from {str(made)[:100]}" if made else "")


def strategy_table(strategy: Strategy) -> str:
    """A row for each stretch of equal steps: which steps, cache depth, prune ratio; and how many calls each depth has."""
    rows = [("steps", "cache depth", "prune ratio")]
    position = 0
    for (depth, ratio), same in groupby(strategy, key=lambda s: (s.cache_depth, s.prune_ratio if s.cache_depth else 0.0)):
        count = len(list(same))
        places = str(position) if count == 1 else f"{position}-{position + count - 1}"
        rows.append((places, _depth(depth), f"{ratio:g}" if depth else "-"))
        position += count
    calls = ", ".join(f"{n} {_depth(d)}" for d, n in strategy.calls_by_depth.items())
    return f"{len(strategy)} steps: {calls}; digest {strategy.digest}\n{_table(rows)}"


def report_lines(report: RunReport) -> str:
    """Which strategy, how far the run came, and what it skipped."""
    calls = ", ".join(f"{n} {_depth(d)}" for d, n in sorted(report.calls_by_depth.items(), reverse=True))
    state = "enabled, and not run yet" if not report.calls else f"{'finished' if report.finished else 'not finished'}: {report.calls} UNet calls, {calls}"
    lines = [f"strategy  {strategy_line(report.strategy)}", f"run       {state}"]
    tokens = sum(report.tokens_pruned.values())
    if report.layers:
        skipped = f"{tokens:,} tokens in " if report.calls else ""
        lines.append(f"pruning   {skipped}{len(report.layers)} self-attention layer{'s' if len(report.layers) > 1 else ''}")
    if report.controls_skipped:
        lines.append(f"skipped   {report.controls_skipped} ControlNet calls")
    return "\n".join(lines)


def report_table(report: RunReport) -> str:
    """`report_lines`, UNet calls by depth, and tokens pruned by layer."""
    calls = [("cache depth", "UNet calls"), *((_depth(d), str(n)) for d, n in sorted(report.calls_by_depth.items(), reverse=True))]
    layers = [("self-attention layer", "tokens pruned"), *((name, f"{report.tokens_pruned[name]:,}") for name in report.layers)]
    return "\n\n".join([report_lines(report), _table(calls), *([_table(layers)] if report.layers else []), strategy_table(report.strategy)])


def _depth(depth: int) -> str:
    return {_FULL: "full", 0: "replayed"}.get(depth, f"depth {depth}")


def _pruning(strategy: Strategy) -> str:
    ratios = [s.prune_ratio for s in strategy if s.cache_depth and s.prune_ratio]
    if not ratios:
        return "no pruning"
    spread = f"{ratios[0]:g}" if len(set(ratios)) == 1 else f"{min(ratios):g} to {max(ratios):g}"
    return f"pruning {spread} in {len(ratios)} of them"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)
