"""What the front does at each sampler step: heat maps of its strategies, and their statistics."""

from __future__ import annotations

import statistics

import plotly.graph_objects as go

from analysis.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, style
from dato.strategy import FULL
from search.records import SearchRecord

_NAMES = {0: "replayed", FULL: "full"}
_PALETTE = (GREY, ORANGE, GREEN, RED, PINK)
_ROW = 22  # pixels, at most


def depth_figure(record: SearchRecord) -> go.Figure:
    """The front's strategies, fastest first: the cache depth of every step."""
    depths = _depths(record)
    scale = [(edge, _colour(d, i)) for i, d in enumerate(depths) for edge in (i / len(depths), (i + 1) / len(depths))]
    values = [[depths.index(s.cache_depth) for s in c.strategy] for c, _ in record.front()]
    bar = {"tickvals": list(range(len(depths))), "ticktext": [_name(d) for d in depths]}
    return _heatmap(record, values, bar, colorscale=scale, zmin=-0.5, zmax=len(depths) - 0.5)


def ratio_figure(record: SearchRecord) -> go.Figure:
    """The front's strategies, fastest first: the prune ratio of every step; blank where nothing runs that could be pruned."""
    values = [[s.prune_ratio if s.cache_depth else None for s in c.strategy] for c, _ in record.front()]
    return _heatmap(record, values, {"tickformat": ".1f"}, colorscale="Purples", zmin=0, zmax=0.75)


def statistics_figure(record: SearchRecord) -> go.Figure:
    """Over the strategies of the front: the share that has each cache depth at a step, and the mean prune ratio there."""
    strategies = [c.strategy for c, _ in record.front()]
    steps = list(range(max((len(s) for s in strategies), default=0)))
    figure = go.Figure()
    for i, depth in reversed(list(enumerate(_depths(record)))):
        shares = [statistics.mean(float(s[k].cache_depth == depth) for s in strategies if k < len(s)) for k in steps]
        figure.add_bar(
            x=[k + 1 for k in steps], y=shares, name=_name(depth), marker_color=_colour(depth, i), opacity=0.85,
            hovertemplate=f"step %{{x}}: %{{y:.0%}} {_name(depth)}<extra></extra>",
        )  # fmt: skip
    ratios = [[s[k].prune_ratio for s in strategies if k < len(s) and s[k].cache_depth] for k in steps]
    figure.add_scatter(
        x=[k + 1 for k in steps], y=[statistics.mean(r) if r else None for r in ratios], mode="lines+markers", name="mean prune ratio",
        line={"color": "#222", "width": 2}, marker={"size": 5}, hovertemplate="step %{x}: mean prune ratio %{y:.2f}<extra></extra>",
    )  # fmt: skip
    style(figure, "sampler step, the first executed first", "share of the front", 340)
    figure.update_layout(barmode="stack", bargap=0.1, margin={"t": 60})
    figure.update_yaxes(range=[0, 1])
    return figure


def _heatmap(record: SearchRecord, values: list[list[float | None]] | list[list[int]], bar: dict[str, object], **colours: object) -> go.Figure:
    front = record.front()
    steps = max((len(c.strategy) for c, _ in front), default=1)
    rows, height = list(range(len(front))), max(9, min(_ROW, 800 // max(len(front), 1)))
    named = rows[:: 1 if height > 13 else 2]
    notes = [
        [f"{_name(s.cache_depth)}, prune ratio {s.prune_ratio:g}" if s.cache_depth else _name(0) for s in c.strategy]
        + [""] * (steps - len(c.strategy))
        for c, _ in front
    ]
    labels = [[f"{m.latency_ms:.0f} ms, FID {m.fid:.1f}"] * steps for _, m in front]
    figure = go.Figure()
    figure.add_heatmap(
        z=values,
        x=list(range(1, steps + 1)),
        y=rows,
        xgap=1,
        ygap=1,
        customdata=[[list(pair) for pair in zip(*row, strict=True)] for row in zip(notes, labels, strict=True)],
        hovertemplate="step %{x}: %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        # Above the map and not beside it, where it would take half of a phone's width.
        colorbar={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left", "len": 0.6, "lenmode": "fraction", "thickness": 10, **bar},
        **colours,
    )
    style(figure, "sampler step, the first executed first", "", 130 + height * max(len(front), 3))
    # Two strategies may have one label: rows go by number.
    figure.update_yaxes(tickvals=named, ticktext=[f"{front[i][1].latency_ms:.0f} ms" for i in named], autorange="reversed", automargin=True)
    figure.update_layout(margin={"t": 50})
    return figure


def _depths(record: SearchRecord) -> list[int]:
    return sorted({s.cache_depth for c, _ in record.front() for s in c.strategy}) or [FULL]


def _name(depth: int) -> str:
    return _NAMES.get(depth, f"depth {depth}")


def _colour(depth: int, index: int) -> str:
    return BLUE if depth == FULL else _PALETTE[index % len(_PALETTE)]
