"""Strategies beside the other ways to be fast, from a record of ``dato evaluate``: all on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from analysis.figures import style
from analysis.page import figure_section, wide_table
from analysis.palette import CACHES, SAMPLERS, WAYS, sampler_colour
from analysis.tables import comparison_table, number
from search.records import FAMILIES

_MARKS = {"strategy": "circle", "plain": "diamond", "deepcache": "square", "tomesd": "cross", "naive": "triangle-up"}
_MARKS |= {"cache_dit": "square", "taylorseer": "cross", "mag_cache": "triangle-up", "first_block_cache": "triangle-down", "faster_cache": "pentagon"}
_KINDS = {"fewer": "x", "limited": "star"}
"""Families that have a line for each sampler, with its mark."""


def rivals_section(evaluation: Mapping[str, Any]) -> str:
    """A figure and a table of an evaluation, as ``evaluation.json`` holds it."""
    results: list[Mapping[str, Any]] = evaluation["results"]
    good = [r for r in results if not r["error"] and r["metrics"].get("fid")]
    note = (
        f"Measured by dato evaluate on {good[0]['images'] if good else 0} images of the same prompts and seeds, which no search has used; "
        "bars are 95 % intervals, of the difference to the unaccelerated FID and of the speedup. FIDs of different numbers of images do not compare: these stand beside each other, and not beside those of the front above."
    )
    note += f" FID against {evaluation['reference']}." if evaluation.get("reference") else ""
    heads, rows = comparison_table(results, None)
    table = f"<details><summary>{len(rows)} rows, from {escape(str(evaluation['name']))}</summary>{wide_table(heads, rows)}</details>"
    return figure_section("Rivals", rivals_figure(good), note) + table


def rivals_figure(results: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Speedup against FID, a line for each way to be fast.

    Args:
        results: As `Result.to_dict` gives them, without those that failed.
    """
    figure = go.Figure()
    ways: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in results:
        ways.setdefault((r["family"], r["name"].rpartition("-")[0] if r["family"] in _KINDS else ""), []).append(r)
    others = list(dict.fromkeys(sampler for _, sampler in ways if sampler and sampler not in SAMPLERS))
    # The strategies last, so that they are drawn on top.
    for (way, sampler), found in sorted(ways.items(), key=lambda p: p[0][0] == "strategy"):
        if way in _KINDS:
            name, colour, symbol = f"{sampler}, {FAMILIES[way]}", sampler_colour(sampler, others), _KINDS[way]
        else:
            name, colour, symbol = FAMILIES[way], (WAYS | CACHES)[way], _MARKS[way]
        found = sorted(found, key=lambda r: r["speedup"]["value"])
        figure.add_scatter(
            x=[r["speedup"]["value"] for r in found],
            y=[r["metrics"]["fid"]["value"] for r in found],
            mode="markers" if way == "plain" else "lines+markers",
            name=name,
            line={"color": colour, "width": 1, "dash": "solid" if way == "strategy" else "dot"},
            marker={"color": colour, "symbol": symbol, "size": 9},
            # The interval of the difference: the unaccelerated pipeline's own spread is in none of the others.
            error_y=_ends([r["differences"].get("fid") for r in found]),
            error_x=_ends([r["speedup"] for r in found]),
            text=[
                f"{r['name']}<br>{number(r['speedup'], 2, unit='x')}, {number(r['latency'], 0)} ms<br>FID {number(r['metrics']['fid'])}"
                f"<br>less unaccelerated {number(r['differences'].get('fid'), sign=True)}"
                for r in found
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    style(figure, "speedup (higher is better)", "FID (lower is better)", 480)
    figure.update_layout(legend={"y": -0.2, "yanchor": "top", "maxheight": 0.9})
    return figure


def _ends(values: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Error bars of values with intervals; none where there is no interval."""
    up = [v["high"] - v["value"] if v and v.get("high") is not None else 0 for v in values]
    down = [v["value"] - v["low"] if v and v.get("low") is not None else 0 for v in values]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 0}
