"""Any strategy of a search in full: its schedule drawn, its samples, its figures with their intervals and the line that uses it.

Beside it the genes of all candidates as parallel coordinates. What is drawn is made here, as data; `scripts/` draws it in the browser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.figures import in_short
from analysis.page import data_script
from analysis.palette import INK, PLAIN, RIVAL, STRATEGY, WINNER, depth_colour
from analysis.steps import step_in_words, strategy_as_run
from dato.strategy import FULL, Step, extent
from search.measurements import Measurement, difference_in_words
from search.optimize.description import describe
from search.optimize.winners import in_words, tolerance_of
from search.records import UNACCELERATED, Candidate, SearchRecord

MOST = 2000
"""Candidates that a page holds, those of the front, winners and rivals first: a browser is to stay quick."""
MOST_JSON = 300
"""Of these, how many have their JSON in the page."""
_AXES = (
    ("sampler", "sampler"), ("steps", "steps"), ("guided_share", "steps with both halves of guidance"), ("cached_share", "steps that reuse"), ("mean_depth", "mean depth of these"),
    ("mean_order", "mean order of these"), ("mean_ratio", "mean prune ratio"), ("speedup", "speedup"), ("fid", "FID"),
)  # fmt: skip
"""Of the parallel coordinates: what `describe` says of a strategy and what was measured, each with its title."""
_SHARES = ("guided_share", "cached_share")
_GROUPS = {"winner": ("winners", WINNER), "front": ("front, the fastest first", STRATEGY), "rival": ("rivals", RIVAL), "other": ("other candidates", "#b8c2ca")}
"""In the order of the list, with their colour as lines; more candidates come later."""


def explorer_section(record: SearchRecord, samples: Mapping[str, bytes] | None = None) -> str:
    """The explorer and the parallel coordinates, after the figure with the name `front`; "" where nothing was measured.

    Args:
        record: From a ledger.
        samples: The images that the page holds, by label.
    """
    rows = explorer_rows(record, samples or {})
    if not rows:
        return ""
    given = len(record.evaluated())
    shown = sum(r["group"] != "rival" for r in rows)
    some = f" {shown} of {given} candidates: those of the front, the winners, and of the others every so many." if shown < given else ""
    options = "".join(
        f'<optgroup label="{name}">' + "".join(f'<option value="{r["key"]}"></option>' for r in rows if r["group"] == group) + "</optgroup>"
        for group, (name, _) in _GROUPS.items()
        if any(r["group"] == group for r in rows)
    )
    return (
        '<section class="explorer" id="explorer"><h2>A strategy in full</h2>'
        f"<p>Point at a strategy in the figure above to see it, click to keep it, or choose one here.{some}</p>"
        '<div class="choose"><button type="button" class="step" data-by="-1">previous</button>'
        f'<select aria-label="strategy">{options}</select><button type="button" class="step" data-by="1">next</button></div>'
        '<div class="shown" aria-live="polite"></div></section>'
        '<section class="parallel" id="parallel"><h2>The genes of all candidates</h2>'
        "<p>Each line is a candidate. Drag along an axis to keep those between two values, or move its two handles by the arrow keys; a click on an axis frees it, one on a line shows the strategy. "
        "Of the figure above the same candidates are kept.</p>"
        '<p class="kept"><span aria-live="polite"></span> <button type="button" class="free" hidden>free all axes</button></p><div class="axes"></div></section>'
        + data_script("explorer-data", {"rows": rows, **_steps(rows), "axes": _axes(rows), "groups": {g: c for g, (_, c) in _GROUPS.items()}, "chosen": INK, "plain": PLAIN})
    )


def explorer_rows(record: SearchRecord, samples: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Every strategy of the page, as the scripts take them: winners, front, rivals, others."""
    aliases = record.aliases
    front = [c.number for c, _ in record.front()]
    first = list(dict.fromkeys([*aliases, *front]))
    measured = {c.number: m for c, m in record.evaluated()}
    for number in measured:
        measured[number] = max([measured[number], *(m for m in record.promotions.get(number, {}).values() if m.ok)], key=lambda m: m.images)
    others = [n for n in measured if n not in first]
    room = max(0, MOST - len(first))
    if len(others) > room:
        others = [others[i * len(others) // room] for i in range(room)] if room else []
    rows = [
        _row(record, record.candidates[n], measured[n], "winner" if n in aliases else "front", samples, aliases.get(n, ())) for n in first if n in measured
    ]
    rows += [_row(record, replace(c, origin=name), record.baseline(name, record.images or m.images), "rival", samples) for name, (c, m) in record.baselines.items() if m.ok]
    rows += [_row(record, record.candidates[n], measured[n], "other", samples) for n in others]
    for row in rows[MOST_JSON:]:
        del row["json"]
        row["code"] = [
            "import dato", "from pathlib import Path", "from search.ledger import read_ledger",
            f'strategy = read_ledger(Path("ledger.jsonl")).candidates[{row["key"][1:]}].strategy  # in the search\'s folder', *row["code"][2:],
        ]  # fmt: skip
    return rows


def _row(record: SearchRecord, c: Candidate, m: Measurement, group: str, samples: Mapping[str, bytes], aliases: Sequence[str] = ()) -> dict[str, Any]:
    strategy, plain = c.strategy, record.baseline(UNACCELERATED, m.images) if UNACCELERATED in record.baselines else None
    name = c.origin if group == "rival" else f"candidate {c.number}"
    label = f"{', '.join(aliases)} ({name})" if aliases else name
    speedup = plain.latency_ms / m.latency_ms if plain else None
    file = f"winners/{aliases[0]}.json" if aliases and record.finished else f"{'rival' if group == 'rival' else f'candidate-{c.number}'}.json"
    place = "  # in the search's folder" if aliases and record.finished else "  # saved from here"
    told = describe(strategy)
    row: dict[str, Any] = {
        "key": f"r{list(record.baselines).index(c.origin)}" if group == "rival" else f"c{c.number}",
        "group": group,
        "label": f"{label}: {f'{speedup:.2f}x, ' if speedup else ''}FID {m.fid:.2f}",
        "what": in_short(strategy),
        "run": list(strategy_as_run(strategy).steps),
        "figures": _figures(record, c, m, plain, aliases),
        "json": strategy.to_json(),
        "file": file.rpartition("/")[2],
        "code": ["import dato", f"strategy = dato.Strategy.load({json.dumps(file)}){place}", "with dato.accelerate(pipe, strategy):", f"    images = pipe(prompt, num_inference_steps={len(strategy)}).images"],
        "at": [_finite(m.latency_ms), _finite(m.fid)],
        "values": [_finite({"speedup": speedup, "fid": m.fid}.get(key, getattr(told, key, None))) for key, _ in _AXES],
    }
    names = [*aliases, UNACCELERATED] if group == "rival" and c.origin == UNACCELERATED else [*aliases, f"candidate-{c.number}"]
    drawn = next((name for name in names if name in samples), None)
    return row | ({"images": drawn} if drawn else {"no_images": _no_images(record, bool(aliases), samples, file)})


def _finite(value: Any) -> Any:
    """A value as JSON has it; what was not measured is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_images(record: SearchRecord, wins: bool, samples: Mapping[str, bytes], file: str) -> str:
    if not record.finished:
        return "No images of it: a search draws some of its winners when they are chosen."
    if wins and not samples:
        return "No images of it: the folder of the search holds none."
    return f"No images of it: a search draws some of its winners and of the unaccelerated pipeline. dato evaluate 'strategy=[{file}]' draws its."


def _figures(record: SearchRecord, c: Candidate, m: Measurement, plain: Measurement | None, aliases: Sequence[str]) -> list[tuple[str, str]]:
    """What was measured of a strategy, each with its name."""
    timed = f", predicted by the cost table; timed at {m.measured_ms:.0f} ms" if m.measured_ms else _range(m.latency_low_ms, m.latency_high_ms, 0, "batches")
    found = [
        ("speedup", f"{plain.latency_ms / m.latency_ms:.2f}x" if plain else ""),
        ("latency", f"{m.latency_ms:.0f} ms per image{timed}"),
        ("FID", f"{m.fid:.2f}{_range(m.fid_low, m.fid_high, 2)}, {m.images} images"),
        ("FID less unaccelerated", difference_in_words(m, plain) if plain and c.origin != UNACCELERATED else ""),
        ("feature distance", "" if m.feature_distance is None else f"{m.feature_distance:.3f}{_range(m.feature_distance_low, m.feature_distance_high, 3)}"),
    ]
    if aliases:
        winner = record.winners[aliases[0]]
        fresh = f"{winner.speedup:.2f}x, FID {winner.fresh.fid:.2f}{_range(winner.fresh.fid_low, winner.fresh.fid_high, 2)}, less unaccelerated {difference_in_words(winner.fresh, winner.fresh_baseline)}"
        found.append((f"on {winner.fresh.images} fresh images", f"{fresh}: {in_words(winner, tolerance_of(record.config))}"))
    calls = ", ".join(f"{n} {'full' if int(d) == FULL else 'replayed' if int(d) == 0 else f'depth {d}'}" for d, n in m.calls_by_depth.items())
    parents = f" of {' and '.join(map(str, c.parents))}" if c.parents else ""
    return [f for f in [*found, ("UNet calls", calls), ("asked for", f"in generation {c.generation + 1}, {c.origin}{parents}" if c.number >= 0 else ""), ("digest", c.strategy.digest)] if f[1]]


def _range(low: float | None, high: float | None, digits: int, what: str = "95 %") -> str:
    return "" if low is None or high is None or low != low or high != high else f" ({what}: {low:.{digits}f} .. {high:.{digits}f})"


def _steps(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The different steps of all rows, which then name them by number, and the depths that occur, in words and colours."""
    known: dict[Step, int] = {}
    for row in rows:
        row["run"] = [known.setdefault(step, len(known)) for step in row["run"]]
    steps = [
        {"words": step_in_words(s), "depth": s.cache_depth, "alone": s.guidance == "cond", "order": s.order, "ratio": s.prune_ratio if s.cache_depth else 0.0} for s in known
    ]
    depths = sorted({s.cache_depth for s in known}, key=extent)
    return {"steps": steps, "depths": {d: {"name": step_in_words(Step(d)).partition(",")[0], "colour": depth_colour(d)} for d in depths}}


def _axes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the parallel coordinates: what they are of, and how their values are written."""
    found = []
    for place, (key, title) in enumerate(_AXES):
        values = {row["values"][place] for row in rows}
        axis: dict[str, Any] = {"title": title, "place": place}
        if key == "sampler":
            axis["names"] = sorted(values)
        elif key in ("fid", "speedup"):
            real = [v for v in values if v]
            axis |= {"log": bool(real) and max(real) > 8 * max(min(real), 1e-9), "digits": 2, "unit": "x" if key == "speedup" else ""}
        else:
            axis |= {"percent": key in _SHARES, "digits": 0 if key in ("steps", *_SHARES) else 2}
        found.append(axis)
    return found
