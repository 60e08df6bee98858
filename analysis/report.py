"""One self-contained HTML file about a search, finished or not: nothing in it is loaded from a network."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis.explorer import explorer_section
from analysis.figures import front_figure, hypervolume_figure, in_short
from analysis.importance import importance_section
from analysis.page import banner, figure_section, image_rows, notes_section, page, wide_table, write_page
from analysis.rivals import rivals_section
from analysis.similarity import similarity_section
from analysis.steps import depth_figure, how_to_read, ratio_figure, statistics_figure
from dato.strategy import Strategy
from search.measurements import Measurement, difference_in_words
from search.optimize.importance import importance
from search.optimize.winners import closest_in_words, in_words, tolerance_of
from search.records import UNACCELERATED, SearchRecord, Winner, prediction_error


def write_report(
    record: SearchRecord, path: Path, samples: Mapping[str, bytes] | None = None, evaluation: Mapping[str, Any] | None = None, *, quick: bool = False
) -> Path:
    """Write the report of a search, finished or not.

    Args:
        record: From a ledger.
        path: Where to; a reader never sees half a file.
        samples: PNG files by label, rows of images of the same prompts and seeds.
        evaluation: The record of a `dato evaluate` of strategies beside their rivals.
        quick: Leave out what takes longest to find out, which genes matter: for a report beside a search that runs.

    Returns:
        The path.
    """
    return write_page(path, page(record.search_id, report_parts(record, samples, evaluation, quick=quick)))


def live_page(record: SearchRecord, samples: Mapping[str, bytes] | None = None) -> str:
    """The quick report of a search that runs, which renews itself where it is served; where the search is over, the whole one."""
    return page(record.search_id, report_parts(record, samples, quick=not record.finished), scripts=["live"])


def front_page(record: SearchRecord) -> str:
    """A page with nothing but the front, for MLflow."""
    return page(record.search_id, [figure_section(f"Front of {record.search_id}", front_figure(record), "Hover for a strategy's steps.")])


def report_parts(record: SearchRecord, samples: Mapping[str, bytes] | None = None, evaluation: Mapping[str, Any] | None = None, *, quick: bool = False) -> list[str]:
    """The report's sections as HTML; arguments as of `write_report`."""
    parts = [_head(record), _banner(record)]
    if record.winners:
        parts += [_winners_table(record), _cards(record)]
    if record.evaluated() or record.baselines:
        parts += [figure_section("Front", front_figure(record), "Each point is a strategy; hover for its steps. The line is the front; rivals are named.", "front")]
        parts += [_rivals(record), explorer_section(record, samples), similarity_section(record)]
    if evaluation:
        parts.append(rivals_section(evaluation))
    if samples:
        parts.append(_samples(samples))
    if record.front():
        parts.append(figure_section("Cache depth by step", depth_figure(record), f"The strategies of the front, the fastest on top. {how_to_read(record)}"))
        parts.append(figure_section("Prune ratio by step", ratio_figure(record), "The same strategies; blank where nothing runs that could be pruned."))
        parts.append(figure_section("Where the front computes", statistics_figure(record), "Over all strategies of the front: how many compute fully, partly or not at all at each step, and how much they prune."))
    if record.results and quick:
        parts.append("<h2>What matters</h2><p>Which steps and genes matter is found out when the search is over; <code>dato report</code> finds it out at any time.</p>")
    elif record.results:
        parts.append(importance_section(importance(record)))
    if record.hypervolumes:
        parts.append(figure_section("Progress", hypervolume_figure([record]), "After each generation, measured from twice the unaccelerated FID and its latency."))
    return [*parts, _failures(record), notes_section("What was run", record.config), notes_section("On what", record.environment)]


def _head(record: SearchRecord) -> str:
    measured = len(record.evaluated())
    images = " or ".join(str(n) for n in sorted({m.images for _, m in record.evaluated()} | {n for c in record.promotions.values() for n in c})) or "0"
    devices = ", ".join(sorted({m.device for _, m in record.evaluated() if m.device}))
    what = f"{measured} strateg{'y' if measured == 1 else 'ies'} measured, {images} images each{', on ' + escape(devices) if devices else ''}" if measured else "No strategy measured"
    return f"<h1>{escape(record.search_id)}</h1><p>{what}; {escape(record.reference_note)}.{_latencies(record)}</p>{_without(record)}"


def _without(record: SearchRecord) -> str:
    """What of the pipeline was not loaded for measuring."""
    left = record.notes.get("measured_without") or ()
    return f"<p>Measured without the model's {escape(' and '.join(left))}, which its users may have: it takes time of its own.</p>" if left else ""


def _latencies(record: SearchRecord) -> str:
    error = prediction_error(record)
    if record.costs is None or error is None:
        return ""
    return f" Latencies of candidates are predicted by the cost table of {escape(str(record.costs['device']))}, which differs from their own times by {error:.1%} (median, the common factor taken out); winners are timed."


def _banner(record: SearchRecord) -> str:
    failed = sum(not m.ok for m in record.results.values())
    if not record.finished:
        measured = f"{len(record.evaluated())} strategies measured" + (f", {failed} failed" if failed else "")
        nothing = " Nothing can be drawn before the first measurement." if not record.evaluated() and not record.baselines else ""
        return banner(
            f"This search was not finished when this page was written, {time.strftime('%Y-%m-%d %H:%M')}: {measured} by then.{nothing} While it runs, it writes the page "
            "<code>report.html</code> in its folder anew after its generations; if it was stopped, the same <code>dato search</code> command continues it, and <code>dato status</code> tells which."
        )
    if not record.winners:
        why = f"{failed} of {len(record.results)} candidates failed" if failed else "none was validated on fresh images"
        look = "see the failures below, then search" if failed else "search"
        return banner(f"This search ended without winners: {why}. There is nothing to export; {look} with another seed or space.")
    return ""


def _winners_table(record: SearchRecord) -> str:
    heads = ("", "speedup", "ms per image", "FID, fresh images", "95 % interval", "FID less unaccelerated", "in words", "FID in the search", "steps", "UNet calls")
    tolerance = tolerance_of(record.config)
    plain = next(iter(record.winners.values())).fresh_baseline
    searched = record.baselines[UNACCELERATED][1].fid if UNACCELERATED in record.baselines else float("nan")
    steps = str((record.config.get("model") or {}).get("steps", ""))
    rows = [_winner_row("unaccelerated", 1.0, plain, "", "", searched, steps)]
    for aliases in record.aliases.values():
        w = record.winners[aliases[0]]
        rows.append(_winner_row(", ".join(aliases), w.speedup, w.fresh, difference_in_words(w.fresh, w.fresh_baseline), in_words(w, tolerance), w.searched.fid, _steps(w.candidate.strategy)))
    missing = "" if "fastest" in record.winners else f"<p><b>There is no fastest</b>: nothing was shown to be within {tolerance:g} FID points of the unaccelerated pipeline on the search's images and on fresh ones{f'; {near}' if (near := closest_in_words(record)) else ''}.</p>"
    note = f"<p>fastest is no worse than the unaccelerated pipeline by more than {tolerance:g} FID points, by the upper end of the difference's 95 % interval, on the search's images and on fresh ones. "
    note += "Winners are measured again on seeds that the search never saw, and prompts from elsewhere in the list; the gap to the FID in the search is the winner's curse.</p>"
    return f"<h2>Winners</h2>{missing}{wide_table(heads, rows)}{note}"


def _steps(strategy: Strategy) -> str:
    return in_short(strategy).replace(" steps", "", 1)


def _winner_row(name: str, speedup: float, m: Measurement, difference: str, words: str, searched: float, steps: str) -> tuple[str, ...]:
    calls = ", ".join(f"{n} {'full' if d == '12' else 'replayed' if d == '0' else 'depth ' + d}" for d, n in m.calls_by_depth.items())
    return (name, f"{speedup:.2f}x", f"{m.latency_ms:.0f}", f"{m.fid:.2f}", _interval(m), difference, words, f"{searched:.2f}", steps, calls)


def _rivals(record: SearchRecord) -> str:
    plain = record.baselines.get(UNACCELERATED)
    if not plain:
        return ""
    rows = []
    for name, (_, m) in record.baselines.items():
        numbers = (f"{plain[1].latency_ms / m.latency_ms:.2f}x", f"{m.latency_ms:.0f}", f"{m.fid:.2f}", _interval(m)) if m.ok else ("failed", m.error or "", "", "")
        rows.append((name, *numbers))
    return wide_table(("rival", "speedup", "ms per image", "FID", "95 % interval"), rows)


def _interval(m: Measurement) -> str:
    return f"{m.fid_low:.2f} .. {m.fid_high:.2f}" if m.fid_low == m.fid_low else "-"


def _cards(record: SearchRecord) -> str:
    return '<h2>Use one</h2><div class="cards">' + "".join(_card(record, aliases, record.winners[aliases[0]]) for aliases in record.aliases.values()) + "</div>"


def _card(record: SearchRecord, aliases: Sequence[str], winner: Winner) -> str:
    name = (record.config.get("registry") or {}).get("name")
    alias = "fastest" if "fastest" in aliases else aliases[0]
    source = f"winners/{alias}.json"
    registered = bool(name) and (record.config.get("mlflow") or {}).get("enabled", True)
    # An alias stays where it was if a better strategy has it: the file is this one for certain.
    elsewhere = f"  # in the search's folder; models:/{name}@{alias} too, where the alias was moved to it" if registered else "  # in the search's folder"
    code = (
        f'import dato\nstrategy = dato.Strategy.load({json.dumps(source)}){elsewhere}\nwith dato.accelerate(pipe, strategy):\n'
        f"    images = pipe(prompt, num_inference_steps={len(winner.candidate.strategy)}).images"
    )
    return (
        f'<div class="card"><div class="name">{escape(", ".join(aliases))}</div><b class="big">{winner.speedup:.2f}x</b> FID difference {difference_in_words(winner.fresh, winner.fresh_baseline)}'
        f'<div class="strategy">{escape(in_short(winner.candidate.strategy))}<br><code>{escape(str(winner.candidate.strategy))}</code></div><button class="copy">copy</button><pre>{escape(code)}</pre></div>'
    )


def _samples(samples: Mapping[str, bytes]) -> str:
    return f"<h2>Samples</h2><p>Each column has the same prompt and seed.</p>{image_rows(samples)}"


def _failures(record: SearchRecord) -> str:
    failed = [m for m in record.results.values() if not m.ok]
    if not failed:
        return ""
    return f"<h2>Failures</h2><p>Failed candidates: {len(failed)}; the first error: <code>{escape(failed[0].error or '')}</code></p>"
