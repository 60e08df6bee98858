"""Which steps and genes matter for FID and for time, drawn from the record of a search."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures import style
from analysis.page import figure_section, wide_table
from analysis.palette import GENES
from search.optimize.importance import TARGETS, WHOLE, Gene, Importance

_NAMES = {
    "depth": "cache depth", "ratio": "prune ratio", "guidance": "guidance", "order": "extrapolation", "sampler": "sampler", "steps": "number of steps",
}  # fmt: skip
"""Of the kinds of genes."""
_MOST = 10
"""Genes in the table of each objective."""


def importance_section(found: Sequence[Importance]) -> str:
    """A plot and a table of the most important genes; words in place of what is not known."""
    good = [one for one in found if one.genes]
    missing = "".join(f"<p>For {TARGETS[one.target]} there is no importance: {escape(one.why_not)}.</p>" for one in found if not one.genes)
    if not good:
        return f"<h2>What matters</h2>{missing}"
    fits = ", ".join(f"{one.r2:.2f} for {TARGETS[one.target]}" for one in good)
    relative = "Runs of fewer steps are taken on the relative time of the longest. " if any(g.kind == "steps" for one in good for g in one.genes) else ""
    note = (
        f"From the {good[0].candidates} candidates on {good[0].images} images, without new ones: by how much predictions for candidates that a model has not seen "
        f"suffer when a gene's values change places between them, as shares of all genes (the logarithms of FID and time). The model's R2 on such candidates is {fits}: "
        f"trust the shares as far as that goes. {relative}It tells what goes with what among these candidates, which are more alike the longer a search ran."
    )
    rows = [(TARGETS[one.target], _name(g), f"{g.share:.1%}", f"{g.spread:.1%}") for one in good for g in sorted(one.genes, key=lambda g: -g.share)[:_MOST]]
    table = f"<details><summary>the {_MOST} most important genes of each</summary>{wide_table(('', 'gene', 'share', 'spread over folds'), rows)}</details>"
    return figure_section("What matters", importance_figure(good), note) + table + missing


def importance_figure(found: Sequence[Importance]) -> go.Figure:
    """For each objective, the share of every step, its genes one on the other, and right of them that of the genes of the whole run."""
    titles = [f"for {TARGETS[one.target]} (R2 {one.r2:.2f})" for one in found]
    last = max(g.last for one in found for g in one.genes)
    kinds = [kind for kind in _NAMES if any(g.kind == kind for one in found for g in one.genes)]
    room = max(1.0, last / 10)  # between the last step and the genes of the whole run
    places = {kind: last + room * (i + 1.5) for i, kind in enumerate(k for k in kinds if k in WHOLE)}
    figure = make_subplots(rows=len(found), cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=titles)
    drawn = set[str]()
    for row, one in enumerate(found, 1):
        for kind in kinds:
            genes = [g for g in one.genes if g.kind == kind]
            name, colour = _NAMES[kind], GENES[kind]
            figure.add_bar(
                x=[places.get(kind, (g.first + g.last) / 2) for g in genes], y=[g.share for g in genes],
                width=[0.85 * (room if kind in places else g.last - g.first + 1) for g in genes], name=name,
                legendgroup=kind, showlegend=bool(genes) and kind not in drawn, marker_color=colour,
                text=[f"{_name(g)}: {g.share:.1%} (spread over folds {g.spread:.1%})" for g in genes], textposition="none",
                hovertemplate="%{text}<extra></extra>", row=row, col=1,
            )  # fmt: skip
            drawn |= {kind} if genes else set()
    style(figure, "", "", 130 + 190 * len(found) + (0 if len(kinds) < 3 else 55))  # names of more kinds take three rows on a phone
    figure.update_yaxes(title_text="share", tickformat=".0%", automargin=True)
    where = "sampler step of the longest run" if "steps" in kinds else "sampler step, the first executed first"
    figure.update_xaxes(title_text=where, automargin=True, row=len(found), col=1)
    if places:
        every = max(1, round(last / 10))
        ticks = list(range(1, last + 1, every))
        figure.update_xaxes(tickvals=ticks, ticktext=[str(k) for k in ticks], range=[0, max(places.values()) + room])
    figure.update_layout(barmode="stack", bargap=0.1, margin={"t": 70 if len(kinds) < 3 else 125}, legend={"y": 1.0, "yanchor": "top", "yref": "container"})
    return figure


def _name(gene: Gene) -> str:
    name = _NAMES[gene.kind]
    if gene.kind in WHOLE:
        return name
    return f"{name} of step {gene.first}" if gene.first == gene.last else f"{name} of steps {gene.first} to {gene.last}"
