"""Figures 1 and 4 of the paper, drawn from recorded feature differences, and the page that holds them with Figure 2's images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.colors import sample_colorscale

from analysis import page
from analysis.figures import style
from analysis.palette import WAYS

_SCALE = [int(v) for colour in sample_colorscale("Inferno", 256) for v in colour[4:-1].split(",")]
"""Red, green and blue of the 256 steps of a heat map's colours."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Feature differences between adjacent calls of one way to run the pipeline.

    Attributes:
        name: For the legend.
        family: One of `search.records.FAMILIES`, which its colour is of.
        edges: (bins + 1,) powers of ten.
        histogram: (calls - 1, bins) counts.
        means: Mean difference at each call after the first.
        maps: (images, h, w) by the heading of their column: where in the run.
        median: Power of ten.
        distance: Wasserstein distance to the first series, in powers of ten.
    """

    name: str
    family: str
    edges: np.ndarray
    histogram: np.ndarray
    means: Sequence[float]
    maps: dict[str, np.ndarray]
    median: float
    distance: float


_DASHES = {"plain": "solid", "deepcache": "dash"}
"""Ways that lie on each other, as caching does with and without pruning, are seen through each other."""


def distribution_figure(series: Sequence[Series]) -> go.Figure:
    """Figure 1, left: the distribution of tokens over their difference between adjacent calls."""
    figure = go.Figure()
    for s in series:
        counts = s.histogram.sum(0)
        share = 100 * counts / counts.sum()
        middle = (s.edges[:-1] + s.edges[1:]) / 2
        # The first bin holds tokens that were replayed unchanged: they would flatten everything else.
        name = f"{s.name} ({share[0]:.0f} % unchanged)" if share[0] >= 0.5 else s.name
        figure.add_scatter(x=10 ** middle[1:], y=share[1:], name=name, mode="lines", line=_line(s))
    style(figure, "difference between adjacent calls", "tokens, %", 380)
    figure.update_xaxes(type="log")
    return figure


def means_figure(series: Sequence[Series]) -> go.Figure:
    """Figure 1, right: the mean difference at every call."""
    figure = go.Figure()
    for s in series:
        figure.add_scatter(x=list(range(1, len(s.means) + 1)), y=s.means, name=s.name, mode="lines", line=_line(s))
    style(figure, "UNet call", "mean difference", 380)
    return figure


def _line(s: Series) -> dict[str, object]:
    return {"color": WAYS[s.family], "dash": _DASHES.get(s.family, "dot"), "width": 2 if s.family == "plain" else 2.5}


def heat_maps(series: Sequence[Series], image: int = 0) -> str:
    """Figure 4 as HTML: where on the image features change, a row for each way to run the pipeline, a column for each place in the run."""
    places = list(series[0].maps)
    # One scale for a place: rows compare within a column.
    tops = {place: max(float(s.maps[place][image].max()) for s in series if place in s.maps) or 1.0 for place in places}
    cells = "".join(f"<div><b>{escape(place)}</b><br>up to {tops[place]:.2g}</div>" for place in places)
    for s in series:
        cells += f'<div class="row">{escape(s.name)}</div>'
        for place in places:
            cells += _picture(s.maps[place][image], tops[place], f"{s.name}, {place}") if place in s.maps else "<div></div>"
    return f'<div class="maps" style="--columns:{len(places)}"><div class="corner"></div>{cells}</div>'


def _picture(values: np.ndarray, top: float, name: str) -> str:
    """(h, w) values as an image with a pixel for each, which the page enlarges: its cells are square."""
    picture = Image.fromarray((255 * np.clip(values / top, 0, 1)).round().astype(np.uint8), mode="P")
    picture.putpalette(_SCALE)
    png = io.BytesIO()
    picture.save(png, format="PNG")
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def write_page(path: Path, title: str, note: str, series: Sequence[Series], rows: Mapping[str, bytes]) -> Path:
    """Write the page; nothing in it is loaded from a network, and a reader never sees half a file.

    Args:
        path: Where to.
        title: Its heading.
        note: What was measured on what, in words.
        series: Of Figures 1 and 4, the first the one that the others are compared with.
        rows: PNG files of Figure 2 by label, rows of images of the same prompts and seeds.

    Returns:
        The path.
    """
    heads = ("", "median", "mean", f"distance to {series[0].name} (Wasserstein, powers of ten)")
    numbers = [(s.name, f"{10**s.median:.4g}", f"{float(np.mean(s.means)):.4g}", f"{s.distance:.3f}") for s in series]
    images = range(min((len(m) for s in series for m in s.maps.values()), default=0))
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(note)}</p><h2>Figure 1: feature differences between adjacent calls</h2>",
        f'<div class="pair"><div>{page.figure_html(distribution_figure(series))}</div><div>{page.figure_html(means_figure(series))}</div></div>',
        page.wide_table(heads, numbers),
        f"<h2>Figure 2: images of the same prompts and seeds</h2>{page.image_rows(rows)}",
        "<h2>Figure 4: where features change</h2><p>Brighter is more, black is none; one scale for each column, up to the largest difference in it.</p>",
        *(heat_maps(series, i) for i in images),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    return page.write_page(path, page.page(title, parts))
