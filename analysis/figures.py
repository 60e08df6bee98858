"""Interactive figures of searches: fronts with the rivals on them, and hypervolume over evaluations."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.palette import PLAIN, RIVAL, STRATEGY, WINNER, series
from dato.strategy import Strategy
from search.measurements import Measurement
from search.records import UNACCELERATED, Candidate, SearchRecord

NAMED = "named"
"""Marks a point whose name the page's scripts put where there is room."""
_MARKERS = ("diamond", "square", "cross", "triangle-up", "x")


def front_figure(record: SearchRecord) -> go.Figure:
    """Latency (ms per image) against FID of every candidate, the front as a line, rivals and winners marked and named."""
    figure = go.Figure()
    images = record.images
    baseline_ms = record.plain(images).latency_ms if UNACCELERATED in record.baselines else None
    evaluated = record.evaluated(images)
    _add_candidates(figure, evaluated, "candidates, darker is later", baseline_ms)
    fewer = record.evaluated()
    if fewer and fewer[0][1].images < images:
        # FIDs on other numbers of images do not compare with these: hidden until asked for.
        _add_candidates(figure, fewer, f"all candidates, on {fewer[0][1].images} of {images} images", baseline_ms, visible="legendonly")
    _add_front(figure, record, "front", (STRATEGY, "solid"))
    rivals = [(name, c, record.baseline(name, images)) for name, (c, m) in record.baselines.items() if m.ok]
    times = [m.latency_ms for m in [*(m for _, m in evaluated), *(m for _, _, m in rivals)]]
    for i, (name, candidate, m) in enumerate(rivals):
        figure.add_scatter(
            x=[m.latency_ms],
            y=[m.fid],
            mode="markers+text",
            name=name,
            meta=NAMED,
            customdata=[{"key": f"r{list(record.baselines).index(name)}", "name": _wrapped(name)}],
            text=[_wrapped(name)],
            # To the side where there is room: a name at the edge would be cut off.
            textposition="top left" if m.latency_ms > (min(times) + max(times)) / 2 else "top right",
            showlegend=False,
            marker={"symbol": _MARKERS[i % len(_MARKERS)], "size": 12, "color": PLAIN if name == UNACCELERATED else RIVAL, "line": {"width": 1, "color": "white"}},
            error_y={"type": "data", "array": [m.fid_high - m.fid], "thickness": 1} if m.fid_high == m.fid_high else None,
            hovertext=[f"{name}<br>{hover(candidate.strategy, m, baseline_ms)}"],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    for number, aliases in record.aliases.items():
        m = record.winners[aliases[0]].searched
        figure.add_scatter(
            x=[m.latency_ms],
            y=[m.fid],
            mode="markers+text",
            name=", ".join(aliases),
            meta=NAMED,
            customdata=[{"key": f"c{number}", "name": _wrapped(", ".join(aliases))}],
            text=[_wrapped(", ".join(aliases))],
            # Below and left of a front is nothing; at the left edge a name would be cut off.
            textposition="bottom left" if m.latency_ms > min(times) + 0.3 * (max(times) - min(times)) else "top right",
            showlegend=False,
            marker={"symbol": "star", "size": 16, "color": WINNER, "line": {"width": 1, "color": "white"}},
            hovertext=[hover(record.candidates[number].strategy, m, baseline_ms)],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    style(figure, "latency, ms per image (lower is better)", "FID (lower is better)", 480)
    _add_log_switch(figure)
    return figure


def fronts_figure(records: Sequence[SearchRecord]) -> go.Figure:
    """The fronts of several searches, each with its own unaccelerated pipeline."""
    figure = go.Figure()
    for record, look in zip(records, series(len(records)), strict=True):
        _add_front(figure, record, record.search_id, look, markers=True)
        if UNACCELERATED in record.baselines:
            m = record.plain(record.images)
            figure.add_scatter(
                x=[m.latency_ms], y=[m.fid], mode="markers", name=f"unaccelerated, {record.search_id}", showlegend=False,
                marker={"symbol": "diamond", "size": 12, "color": look[0]},
                hovertemplate=f"unaccelerated<br>{record.search_id}<br>%{{x:.0f}} ms, FID %{{y:.2f}}<extra></extra>",
            )  # fmt: skip
    style(figure, "latency, ms per image (lower is better)", "FID (lower is better)", 480)
    _add_log_switch(figure)
    return figure


def hypervolume_figure(records: Sequence[SearchRecord]) -> go.Figure:
    """Hypervolume over evaluations: the share of the box up to twice the unaccelerated FID and its latency."""
    figure = go.Figure()
    for record, (colour, dash) in zip(records, series(len(records)), strict=True):
        figure.add_scatter(
            x=evaluations(record),
            y=record.hypervolumes,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            name=record.search_id,
            showlegend=len(records) > 1,
            customdata=list(range(1, len(record.hypervolumes) + 1)),
            hovertemplate="generation %{customdata}, %{x} candidates<br>hypervolume %{y:.4f}<extra></extra>",
        )
    style(figure, "candidates evaluated", "hypervolume (higher is better)", 320)
    return figure


def evaluations(record: SearchRecord) -> list[int]:
    """How many candidates had been asked for at the end of each complete generation."""
    return [sum(c.generation <= g for c in record.candidates.values()) for g in range(len(record.hypervolumes))]


def in_short(strategy: Strategy) -> str:
    """How many steps, of which sampler where it has one, and in how many of them guidance is limited and what is reused extrapolated."""
    alone, continued = sum(s.guidance == "cond" for s in strategy), sum(s.order > 0 for s in strategy.canonical())
    parts = [f"{len(strategy)} steps" + (f" of {strategy.sampler}" if strategy.sampler else ""), f"conditional half alone in {alone}" if alone else "", f"{continued} extrapolated" if continued else ""]
    return "; ".join(p for p in parts if p)


def hover(strategy: Strategy, m: Measurement, baseline_ms: float | None) -> str:
    """What a point says: sampler and steps, latency, speedup, FID with its interval, feature distance."""
    faster = f", {baseline_ms / m.latency_ms:.2f}x" if baseline_ms else ""
    interval = f" (95 %: {m.fid_low:.1f} .. {m.fid_high:.1f})" if m.fid_low == m.fid_low else ""
    text = str(strategy)
    steps = "<br>".join(text[i : i + 50] for i in range(0, len(text), 50))
    distance = "" if m.feature_distance is None else f"<br>feature distance {m.feature_distance:.3f}"
    return f"{in_short(strategy)}<br>{steps}<br>{m.latency_ms:.0f} ms{faster}<br>FID {m.fid:.2f}{interval}{distance}"


def style(figure: go.Figure, x: str, y: str, height: int) -> None:
    """The look that all figures share; sizes are pixels."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    if x:
        figure.update_xaxes(title_text=x, automargin=True)
        figure.update_yaxes(title_text=y, automargin=True)


def _add_candidates(figure: go.Figure, measured: Sequence[tuple[Candidate, Measurement]], name: str, baseline_ms: float | None, **look: object) -> None:
    figure.add_scatter(
        x=[m.latency_ms for _, m in measured],
        y=[m.fid for _, m in measured],
        mode="markers",
        name=name,
        marker={"color": [c.generation for c, _ in measured], "colorscale": "Blues", "cmin": -2, "size": 8, "line": {"width": 0.5, "color": "#456"}},
        text=[hover(c.strategy, m, baseline_ms) for c, m in measured],
        customdata=[{"key": f"c{c.number}"} for c, _ in measured],
        hovertemplate="%{text}<extra></extra>",
        **look,
    )


def _add_front(figure: go.Figure, record: SearchRecord, name: str, look: tuple[str, str], markers: bool = False) -> None:
    front = record.front()
    baseline_ms = record.plain(record.images).latency_ms if UNACCELERATED in record.baselines else None
    figure.add_scatter(
        x=[m.latency_ms for _, m in front],
        y=[m.fid for _, m in front],
        mode="lines+markers" if markers else "lines",
        name=name,
        line={"color": look[0], "dash": look[1], "width": 2, "shape": "hv"},
        text=[hover(c.strategy, m, baseline_ms) for c, m in front],
        **({"hovertemplate": "%{text}<extra></extra>"} if markers else {"hoverinfo": "skip"}),
    )


def _wrapped(name: str) -> str:
    return "<br>".join(textwrap.wrap(name, 24))


def _add_log_switch(figure: go.Figure) -> None:
    buttons = [{"label": f"{kind} FID", "method": "relayout", "args": [{"yaxis.type": kind, "yaxis.autorange": True}]} for kind in ("linear", "log")]
    # The legend goes below, where long names of searches have room on a phone too.
    figure.update_layout(
        legend={"y": -0.2, "yanchor": "top", "maxheight": 0.9},
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom",
             "showactive": True, "font": {"size": 11}}
        ],
    )  # fmt: skip
