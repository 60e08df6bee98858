"""Hypervolume against the UNet MACs that searches spent: the picture of `dato bench search`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis.figures import style
from analysis.page import figure_section, page, write_page
from analysis.palette import series


def budget_figure(result: Mapping[str, Any]) -> go.Figure:
    """A line for each search, the median over seeds, with the range from the least to the most seed as a band."""
    figure = go.Figure()
    most = result["budgets"][-1]
    shares = [b / most for b in result["budgets"]]
    for (name, found), (colour, dash) in zip(result["methods"].items(), series(len(result["methods"])), strict=True):
        band = [*found["most"], *reversed(found["least"])]
        box = {"fill": "toself", "fillcolor": colour, "opacity": 0.5 / len(result["methods"]), "line": {"width": 0}}
        figure.add_scatter(x=[*shares, *reversed(shares)], y=band, hoverinfo="skip", showlegend=False, legendgroup=name, **box)
        figure.add_scatter(x=shares, y=found["median"], mode="lines", name=name, legendgroup=name, line={"color": colour, "dash": dash, "width": 2})
    style(figure, "share of the budget of UNet MACs", "hypervolume (higher is better)", 520)
    # Below a hundredth of the budget there is little but the first candidates' luck.
    values = [v for found in result["methods"].values() for v, share in zip(found["median"], shares, strict=True) if share >= 0.01]
    figure.update_yaxes(range=[0.95 * min(values), 1.05 * max(values)])
    figure.update_xaxes(type="log", range=[-2, 0], tickvals=[0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 1.0], tickformat=".0%")
    return figure


def write_budget_page(path: Path, result: Mapping[str, Any], note: str) -> Path:
    """Write the figure as a page that loads nothing from a network."""
    title = "Hypervolume at equal UNet MACs"
    return write_page(path, page(title, [figure_section(title, budget_figure(result), note)]))
