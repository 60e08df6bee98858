"""Figures 1 and 4 of the paper as interactive figures, and the page that holds them with Figure 2's images."""

from __future__ import annotations

import base64
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

# Okabe-Ito colours, which colour-blind people tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Feature differences between adjacent calls of one way to run the pipeline.

    Attributes:
        name: For the legend.
        edges: (bins + 1,) powers of ten.
        histogram: (calls - 1, bins) counts.
        means: Mean difference at each call after the first.
        maps: (images, h, w) by the heading of their column: where in the run.
        median: Power of ten.
        distance: Wasserstein distance to the first series, in powers of ten.
    """

    name: str
    edges: np.ndarray
    histogram: np.ndarray
    means: Sequence[float]
    maps: dict[str, np.ndarray]
    median: float
    distance: float


def distribution_figure(series: Sequence[Series]) -> go.Figure:
    """Figure 1: the distribution of tokens over their difference, and the mean difference at every call."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("distribution over tokens and calls", "mean at each call"), horizontal_spacing=0.12)
    for s, colour in zip(series, COLOURS, strict=False):
        counts = s.histogram.sum(0)
        share = 100 * counts / counts.sum()
        middle = (s.edges[:-1] + s.edges[1:]) / 2
        # The first bin holds tokens that were replayed unchanged: they would flatten everything else.
        name = f"{s.name} ({share[0]:.0f} % unchanged)" if share[0] >= 0.5 else s.name
        figure.add_scatter(x=10 ** middle[1:], y=share[1:], name=name, legendgroup=s.name, line={"color": colour}, row=1, col=1)
        figure.add_scatter(
            x=list(range(1, len(s.means) + 1)), y=s.means, name=s.name, legendgroup=s.name, showlegend=False, line={"color": colour}, row=1, col=2
        )
    figure.update_xaxes(type="log", title_text="difference between adjacent calls", row=1, col=1)
    figure.update_yaxes(title_text="tokens, %", row=1, col=1)
    figure.update_xaxes(title_text="UNet call", row=1, col=2)
    figure.update_layout(template="plotly_white", height=420, margin={"l": 10, "r": 10, "t": 70, "b": 10}, legend={"orientation": "h", "y": 1.2})
    return figure


def heatmap_figure(series: Sequence[Series], image: int = 0) -> go.Figure:
    """Figure 4: where on the image features change, a row for each way to run the pipeline, a column for each place in the run."""
    places = list(series[0].maps)
    names = [textwrap.wrap(s.name, 18) for s in series]  # as long as a row is high
    figure = make_subplots(
        rows=len(series), cols=len(places), row_titles=["<br>".join(lines) for lines in names], column_titles=places,
        horizontal_spacing=0.01, vertical_spacing=0.02,
    )
    for column, place in enumerate(places, 1):
        # One scale for a place: rows compare within a column.
        top = max(float(s.maps[place][image].max()) for s in series if place in s.maps) or 1.0
        for row, s in enumerate(series, 1):
            if place in s.maps:
                figure.add_heatmap(z=s.maps[place][image], zmin=0, zmax=top, colorscale="Inferno", showscale=False, row=row, col=column)
    figure.update_xaxes(showticklabels=False)
    figure.update_yaxes(showticklabels=False, autorange="reversed")
    figure.update_layout(template="plotly_white", height=60 + 150 * len(series), margin={"l": 10, "r": 10 + 18 * max(map(len, names)), "t": 40, "b": 10})
    return figure


def write_page(path: Path, title: str, note: str, series: Sequence[Series], grid_png: bytes) -> Path:
    """Write the page; nothing in it is loaded from a network, and a reader never sees half a file."""
    settings = {"full_html": False, "include_plotlyjs": False, "config": {"displayModeBar": False, "responsive": True}}
    first = series[0]
    rows = "".join(
        f"<tr><td>{escape(s.name)}</td><td>{10**s.median:.4g}</td><td>{float(np.mean(s.means)):.4g}</td><td>{s.distance:.3f}</td></tr>" for s in series
    )
    images = range(min((len(m) for s in series for m in s.maps.values()), default=0))
    heat = "".join(heatmap_figure(series, i).to_html(**settings) for i in images)
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>body{{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1080px;padding:16px}}"
        "td,th{padding:4px 14px 4px 0;text-align:left}img{max-width:100%}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{escape(title)}</h1><p>{escape(note)}</p>"
        f"<h2>Figure 1: feature differences between adjacent calls</h2>{distribution_figure(series).to_html(**settings)}"
        f"<table><tr><th></th><th>median</th><th>mean</th><th>distance to {escape(first.name)} (Wasserstein, powers of ten)</th></tr>{rows}</table>"
        f"<h2>Figure 2: images of the same prompts and seeds</h2><img alt='a row for each method, a column for each prompt' "
        f"src='data:image/png;base64,{base64.b64encode(grid_png).decode()}'>"
        f"<h2>Figure 4: where features change</h2><p>Brighter is more; one scale for each column.</p>{heat}</body></html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path
