"""What the front does at each sampler step: heat maps of its strategies, and their statistics.

Strategies of one length stand on their steps, of several on relative time: each row is a whole run from left to right.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import plotly.graph_objects as go

from analysis.figures import in_short, style
from analysis.palette import GENES, INK, RATIOS, depth_colour
from dato.call_plan import plan_calls
from dato.strategy import FULL, Step, Strategy, extent
from search.records import SearchRecord

_NAMES = {0: "replayed", FULL: "full"}
_ROW = 22  # pixels, at most
_MORE: tuple[tuple[str, Callable[[Step], bool], str], ...] = (
    ("conditional half alone", lambda s: s.guidance == "cond", GENES["guidance"]), ("extrapolated", lambda s: s.order > 0, GENES["order"])
)  # fmt: skip
"""What a step may do besides its depth and ratio: name, whether it does, colour."""


def depth_figure(record: SearchRecord) -> go.Figure:
    """The front's strategies, fastest first: the cache depth of every step, a cross where what is reused is extrapolated."""
    depths = _depths(_strategies(record))
    scale = [(edge, depth_colour(d)) for i, d in enumerate(depths) for edge in (i / len(depths), (i + 1) / len(depths))]
    bar = {"tickvals": list(range(len(depths))), "ticktext": [_name(d) for d in depths]}
    figure = _heatmap(record, lambda s: depths.index(s.cache_depth), bar, colorscale=scale, cmin=-0.5, cmax=len(depths) - 0.5)
    strategies = _strategies(record)
    crosses = [((e[k] + e[k + 1]) / 2, row - (0.25 if step.guidance == "cond" else 0)) for row, s in enumerate(strategies) for e in (_edges(s, strategies),) for k, step in enumerate(s) if step.order]
    if crosses:
        x, y = zip(*crosses, strict=True)
        marker = {"symbol": "cross-thin-open", "size": min(7, _row_height(strategies) // 2 - 1), "color": "black", "line": {"width": 1.5, "color": "black"}}
        figure.add_scatter(x=x, y=y, mode="markers", name="extrapolated", hoverinfo="skip", showlegend=False, marker=marker)
    return figure


def ratio_figure(record: SearchRecord) -> go.Figure:
    """The front's strategies, fastest first: the prune ratio of every step; blank where nothing runs that could be pruned."""
    return _heatmap(record, lambda s: s.prune_ratio if s.cache_depth else None, {"tickformat": ".1f"}, colorscale=RATIOS, cmin=0, cmax=0.75)


def how_to_read(record: SearchRecord) -> str:
    """What is to be known of `depth_figure` beyond its colours, as sentences."""
    strategies = _strategies(record)
    steps = [s for strategy in strategies for s in strategy]
    said = [
        "Each row is a whole run: of fewer steps, wider ones." if _relative(strategies) else "",
        "Where a cell has half its height, the conditional half of guidance is computed alone." if any(s.guidance == "cond" for s in steps) else "",
        "A cross: what is reused is extrapolated." if any(s.order for s in steps) else "",
    ]
    return " ".join(filter(None, said))


def statistics_figure(record: SearchRecord) -> go.Figure:
    """Over the strategies of the front: the share that has each cache depth at a step or place of the run, what else they do there, and the mean prune ratio."""
    given = _strategies(record)
    grid, relative = max(map(len, given), default=0), _relative(given)
    strategies = [s.resample(grid) for s in given]
    places = [100 * (k + 0.5) / grid if relative else k + 1 for k in range(grid)]
    where = "at %{x:.0f} % of the run" if relative else "step %{x}"
    figure = go.Figure()

    def share(has: Callable[[Step], bool]) -> list[float]:
        return [statistics.mean(float(has(s[k])) for s in strategies) for k in range(grid)]

    for depth in reversed(_depths(given)):
        figure.add_bar(
            x=places, y=share(lambda s, depth=depth: s.cache_depth == depth), name=_name(depth), marker_color=depth_colour(depth), opacity=0.85,  # type: ignore[misc]
            hovertemplate=f"{where}: %{{y:.0%}} {_name(depth)}<extra></extra>",
        )  # fmt: skip
    for name, there, colour in _MORE:
        if any(shares := share(there)):
            figure.add_scatter(
                x=places, y=shares, mode="lines+markers", name=name, cliponaxis=False, line={"color": "white", "width": 2, "dash": "dot"}, marker={"size": 7, "color": colour, "line": {"width": 1, "color": INK}},
                hovertemplate=f"{where}: %{{y:.0%}} {name}<extra></extra>",
            )  # fmt: skip
    ratios = [[s[k].prune_ratio for s in strategies if s[k].cache_depth] for k in range(grid)]
    figure.add_scatter(
        x=places, y=[statistics.mean(r) if r else None for r in ratios], mode="lines+markers", name="mean prune ratio",
        line={"color": GENES["ratio"], "width": 2}, marker={"size": 5}, hovertemplate=f"{where}: mean prune ratio %{{y:.2f}}<extra></extra>",
    )  # fmt: skip
    style(figure, _x_title(given), "share of the front", 340)
    figure.update_layout(barmode="stack", bargap=0.1, margin={"t": 60})
    figure.update_yaxes(range=[0, 1])
    return figure


def _heatmap(record: SearchRecord, value: Callable[[Step], float | None], bar: dict[str, object], **colours: object) -> go.Figure:
    strategies, measured = _strategies(record), [m for _, m in record.front()]
    height = _row_height(strategies)
    figure = go.Figure()
    for row, (strategy, m) in enumerate(zip(strategies, measured, strict=True)):
        label = f"{m.latency_ms:.0f} ms, FID {m.fid:.1f}; {in_short(strategy)}"
        notes = [[step_in_words(s), label, k + 1] for k, s in enumerate(strategy)]
        gap = 0.5 / height
        figure.add_heatmap(
            z=[[value(s) for s in strategy], [None if s.guidance == "cond" else value(s) for s in strategy]],  # a half of guidance each
            x=_edges(strategy, strategies),
            y=[row - 0.5 + gap, row, row + 0.5 - gap],
            xgap=1,
            coloraxis="coloraxis",
            customdata=[notes, notes],
            hovertemplate="step %{customdata[2]}: %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    style(figure, _x_title(strategies), "", 130 + height * max(len(strategies), 3))
    # Two strategies may have one label: rows go by number.
    named = list(range(len(strategies)))[:: 1 if height > 13 else 2]
    what = _labels(strategies)
    figure.update_yaxes(
        tickvals=named, ticktext=[f"{what[i]}{measured[i].latency_ms:.0f} ms" for i in named], range=[max(len(strategies), 1) - 0.5, -0.5], automargin=True,
        showgrid=False, zeroline=False, title=None, tickfont={"size": 10 if any(what) else 13},
    )  # fmt: skip
    ends = [_edges(s, strategies) for s in strategies[:1]]
    whole = {} if _relative(strategies) else {"tick0": 1, "dtick": max(1, len(strategies[0]) // 10) if strategies else 1}  # there is no step 1.5
    figure.update_xaxes(showgrid=False, zeroline=False, **whole, **({"range": [ends[0][0], ends[0][-1]]} if ends else {}))
    # Above the map and not beside it, where it would take half of a phone's width.
    look = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left", "len": 0.8, "lenmode": "fraction", "thickness": 10, **bar}
    figure.update_layout(margin={"t": 50, "r": 20}, coloraxis={"colorbar": look, **colours})
    return figure


def _row_height(strategies: Sequence[Strategy]) -> int:
    """In pixels."""
    return max(9, min(_ROW, 800 // max(len(strategies), 1)))


def _edges(strategy: Strategy, among: Sequence[Strategy]) -> list[float]:
    """Where a strategy's steps begin and end: in % of the run beside strategies of other lengths, else by number."""
    return [100 * k / len(strategy) if _relative(among) else k + 0.5 for k in range(len(strategy) + 1)]


def _labels(strategies: Sequence[Strategy]) -> list[str]:
    """Each one's sampler and number of steps, where they differ."""
    samplers = [str(s.sampler or "own") for s in strategies]
    parts = [([name] if len(set(samplers)) > 1 else []) + ([str(len(s))] if _relative(strategies) else []) for name, s in zip(samplers, strategies, strict=True)]
    return [f"{' '.join(found)}, " if found else "" for found in parts]


def step_in_words(step: Step) -> str:
    """What a step does."""
    ratio = f"prune ratio {step.prune_ratio:g}" if step.cache_depth else ""
    return ", ".join(filter(None, [_name(step.cache_depth), ratio, *(name for name, there, _ in _MORE if there(step))]))


def _x_title(strategies: Sequence[Strategy]) -> str:
    counts = [len(s) for s in strategies]
    return f"% of the run ({min(counts)} to {max(counts)} steps)" if _relative(strategies) else "sampler step, the first executed first"


def _relative(strategies: Sequence[Strategy]) -> bool:
    """Whether they have different lengths."""
    return len({len(s) for s in strategies}) > 1


def _strategies(record: SearchRecord) -> list[Strategy]:
    """Those of the front as they run."""
    return [strategy_as_run(c.strategy) for c, _ in record.front()]


def strategy_as_run(strategy: Strategy) -> Strategy:
    """A strategy with what its steps really do: what has nothing to start from yet is computed in full."""
    return replace(strategy, steps=tuple(call.step for call in plan_calls(strategy, len(strategy))))


def _depths(strategies: Sequence[Strategy]) -> list[int]:
    return sorted({s.cache_depth for strategy in strategies for s in strategy}, key=extent) or [FULL]


def _name(depth: int) -> str:
    return _NAMES.get(depth, f"depth {depth}")
