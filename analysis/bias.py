"""FID against the number of images it was taken on: few images bias it upwards, so only equal counts compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go

from analysis.page import figure_section, page, write_page
from analysis.palette import series


def bias_figure(curves: Mapping[str, Mapping[int, float]]) -> go.Figure:
    """A line for each way to run the pipeline, over the number of images."""
    figure = go.Figure()
    for (name, curve), (colour, dash) in zip(curves.items(), series(len(curves)), strict=True):
        figure.add_scatter(x=list(curve), y=list(curve.values()), name=name, mode="lines+markers", line={"color": colour, "dash": dash})
    figure.update_xaxes(type="log", title_text="images")
    figure.update_yaxes(title_text="FID (lower is better)")
    figure.update_layout(template="plotly_white", height=460, legend={"orientation": "h", "y": 1.15})
    return figure


def write_bias_page(path: Path, curves: Mapping[str, Mapping[int, float]], note: str) -> Path:
    """Write the figure as a page that loads nothing from a network."""
    title = "FID against images"
    return write_page(path, page(title, [figure_section(title, bias_figure(curves), note)]))
