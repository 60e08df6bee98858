"""One strategy's steps as a small PNG, for MLflow: the heat maps of `analysis.steps`, without the megabytes of a page that one can hover over."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from plotly.colors import get_colorscale

from analysis.steps import depth_figure, how_to_read, ratio_figure
from search.records import Candidate, SearchRecord


class DrawingError(ValueError):
    """A figure with something in it that is not drawn here."""


def schedule_picture(record: SearchRecord, candidate: Candidate) -> bytes:
    """The cache depth and the prune ratio of each step of a candidate, as a PNG."""
    number = candidate.number
    alone = replace(record, candidates={number: candidate}, results={number: record.results[number]}, promotions={n: p for n, p in record.promotions.items() if n == number})
    figure = Figure(figsize=(9, 2.9), dpi=100)
    FigureCanvasAgg(figure)
    for axes, drawn, title in zip(figure.subplots(2, 1), (depth_figure(alone), ratio_figure(alone)), ("cache depth", "prune ratio"), strict=True):
        _draw(axes, drawn, title, last=title == "prune ratio")
    figure.text(0.01, 0.985, how_to_read(alone), fontsize=8, va="top", color="#555")
    figure.subplots_adjust(left=0.1, right=0.98, top=0.86, bottom=0.17, hspace=0.55)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, drawn: go.Figure, title: str, last: bool) -> None:
    """Heat maps with edges in x and y and one colour axis, and marks on them."""
    colours = drawn.layout.coloraxis
    scale = get_colorscale(colours.colorscale) if isinstance(colours.colorscale, str) else [list(stop) for stop in colours.colorscale]
    edges = [(at, _hex(colour)) for at, colour in scale]
    palette = LinearSegmentedColormap.from_list(title, edges, N=1024)
    shown = None
    for trace in drawn.data:
        if trace.type == "heatmap":
            cells = [[float("nan") if v is None else float(v) for v in row] for row in trace.z]
            shown = axes.pcolormesh(list(trace.x), list(trace.y), cells, cmap=palette, vmin=colours.cmin, vmax=colours.cmax, edgecolors="white", linewidth=0.8)
            axes.set_xlim(trace.x[0], trace.x[-1])
        elif trace.type == "scatter":
            axes.scatter(list(trace.x), list(trace.y), marker="+", color="black", s=40)
        else:
            raise DrawingError(f"{title} holds a {trace.type}; drawn are heat maps and scatters of marks")
    axes.set_ylim(0.5, -0.5)
    axes.set_yticks([])
    axes.set_ylabel(title.replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last:
        axes.set_xlabel(drawn.layout.xaxis.title.text, fontsize=8)
    if shown is not None:
        bar = axes.figure.colorbar(shown, ax=axes, fraction=0.12, pad=0.02)
        ticks = colours.colorbar.tickvals
        if ticks:
            bar.set_ticks(list(ticks), labels=list(colours.colorbar.ticktext))
        bar.ax.tick_params(labelsize=8)


def _hex(colour: str) -> str:
    """A colour of plotly's, "#rrggbb" or "rgb(r, g, b)", as matplotlib takes it."""
    if colour.startswith("rgb("):
        return str(to_hex([int(part) / 255 for part in colour[4:-1].split(",")]))
    return colour
