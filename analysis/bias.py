"""FID against the number of images it was taken on: few images bias it upwards, so only equal counts compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path

import plotly.graph_objects as go


def bias_figure(curves: Mapping[str, Mapping[int, float]]) -> go.Figure:
    """A line for each way to run the pipeline, over the number of images."""
    figure = go.Figure()
    for name, curve in curves.items():
        figure.add_scatter(x=list(curve), y=list(curve.values()), name=name, mode="lines+markers")
    figure.update_xaxes(type="log", title_text="images")
    figure.update_yaxes(title_text="FID (lower is better)")
    figure.update_layout(template="plotly_white", height=460, legend={"orientation": "h", "y": 1.15})
    return figure


def write_bias_page(path: Path, curves: Mapping[str, Mapping[int, float]], note: str) -> Path:
    """Write the figure as a page that loads nothing from a network."""
    body = bias_figure(curves).to_html(full_html=False, include_plotlyjs=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>FID against images</title><p>{escape(note)}</p>{body}</html>', encoding="utf-8")
    partial.replace(path)
    return path
