"""Interactive figures of a search: its front with the rivals on it, its hypervolume, its strategies step by step."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dato.strategy import FULL, Strategy
from search.records import Measurement, SearchRecord

UNACCELERATED = "unaccelerated"
# Okabe-Ito colours, which colour-blind people tell apart.
_BLUE, _ORANGE, _GREEN, _GREY, _RED = "#0072B2", "#E69F00", "#009E73", "#9aa3ab", "#D55E00"
_MARKERS = ("diamond", "square", "cross", "triangle-up", "x")


def front_figure(record: SearchRecord) -> go.Figure:
    """Latency (ms per image) against FID of every candidate, the front as a line, rivals and winners marked."""
    figure = go.Figure()
    plain = record.baselines.get(UNACCELERATED)
    baseline_ms = plain[1].latency_ms if plain else None
    evaluated = record.evaluated()
    figure.add_scatter(
        x=[m.latency_ms for _, m in evaluated],
        y=[m.fid for _, m in evaluated],
        mode="markers",
        name="candidates",
        marker={"color": [c.generation for c, _ in evaluated], "colorscale": "Blues", "cmin": -2, "size": 8, "line": {"width": 0.5, "color": "#456"}},
        text=[_hover(c.strategy, m, baseline_ms) for c, m in evaluated],
        hovertemplate="%{text}<extra></extra>",
    )
    front = record.front()
    figure.add_scatter(
        x=[m.latency_ms for _, m in front],
        y=[m.fid for _, m in front],
        mode="lines",
        name="front",
        line={"color": _BLUE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    for i, (name, (candidate, m)) in enumerate(record.baselines.items()):
        if m.ok:
            figure.add_scatter(
                x=[m.latency_ms],
                y=[m.fid],
                mode="markers",
                name=name,
                marker={"symbol": _MARKERS[i % len(_MARKERS)], "size": 13, "color": _RED if name == UNACCELERATED else _ORANGE},
                error_y={"type": "data", "array": [m.fid_high - m.fid], "thickness": 1} if m.fid_high == m.fid_high else None,
                text=[_hover(candidate.strategy, m, baseline_ms)],
                hovertemplate="%{text}<extra></extra>",
            )
    by_candidate: dict[int, list[str]] = {}
    for alias, winner in record.winners.items():
        by_candidate.setdefault(winner.candidate.number, []).append(alias)
    for number, aliases in by_candidate.items():
        m = record.results[number]
        figure.add_scatter(
            x=[m.latency_ms],
            y=[m.fid],
            mode="markers+text",
            name=", ".join(aliases),
            text=[", ".join(aliases)],
            textposition="bottom left",
            marker={"symbol": "star", "size": 16, "color": _GREEN, "line": {"width": 1, "color": "white"}},
            hovertext=[_hover(record.candidates[number].strategy, m, baseline_ms)],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    _style(figure, "latency, ms per image (lower is better)", "FID (lower is better)", 460)
    return figure


def hypervolume_figure(record: SearchRecord) -> go.Figure:
    """Hypervolume after each generation: the share of the box up to twice the unaccelerated FID and its latency."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(1, len(record.hypervolumes) + 1)), y=record.hypervolumes, mode="lines+markers", line={"color": _BLUE}, name="hypervolume"
    )
    figure.update_xaxes(dtick=1)
    _style(figure, "generation", "hypervolume (higher is better)", 300)
    return figure


def heatmap_figure(record: SearchRecord) -> go.Figure:
    """The front's strategies, fastest first: cache depth and prune ratio of every step."""
    front = record.front()
    steps = max((len(c.strategy) for c, _ in front), default=1)
    labels = [f"{m.latency_ms:.0f} ms, FID {m.fid:.1f}" for _, m in front]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=("cache depth", "prune ratio"))
    depths = sorted({s.cache_depth for c, _ in front for s in c.strategy}) or [FULL]
    names = {0: "replay", FULL: "full"}
    palette = [_GREY, _ORANGE, _GREEN, _RED, _BLUE]
    colours = [*palette[: max(len(depths) - 1, 0)], _BLUE] if len(depths) <= 5 else None
    scale = (
        [(edge, colour) for i, colour in enumerate(colours) for edge in (i / len(colours), (i + 1) / len(colours))] if colours else "Viridis"
    )
    figure.add_heatmap(
        z=[[depths.index(s.cache_depth) for s in c.strategy] for c, _ in front],
        x=list(range(1, steps + 1)),
        y=labels,
        colorscale=scale,
        zmin=-0.5,
        zmax=len(depths) - 0.5,
        xgap=1,
        ygap=1,
        colorbar={"tickvals": list(range(len(depths))), "ticktext": [names.get(d, f"depth {d}") for d in depths], "len": 0.42, "y": 0.79},
        hovertemplate="step %{x}<br>%{y}<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_heatmap(
        z=[[s.prune_ratio if s.cache_depth else None for s in c.strategy] for c, _ in front],
        x=list(range(1, steps + 1)),
        y=labels,
        colorscale="Purples",
        zmin=0,
        zmax=0.75,
        xgap=1,
        ygap=1,
        colorbar={"len": 0.42, "y": 0.21},
        hovertemplate="step %{x}: %{z}<br>%{y}<extra></extra>",
        row=2,
        col=1,
    )
    _style(figure, "", "", max(360, 160 + 44 * len(front)))
    figure.update_xaxes(title_text="sampler step, the first executed first", row=2, col=1)
    figure.update_yaxes(autorange="reversed")
    return figure


def _hover(strategy: Strategy, m: Measurement, baseline_ms: float | None) -> str:
    faster = f", {baseline_ms / m.latency_ms:.2f}x" if baseline_ms else ""
    interval = f" (95 %: {m.fid_low:.1f} .. {m.fid_high:.1f})" if m.fid_low == m.fid_low else ""
    return f"{strategy}<br>{m.latency_ms:.0f} ms{faster}<br>FID {m.fid:.2f}{interval}"


def _style(figure: go.Figure, x: str, y: str, height: int) -> None:
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
