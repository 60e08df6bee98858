"""One self-contained HTML file about a search: nothing in it is loaded from a network."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.figures import UNACCELERATED, front_figure, heatmap_figure, hypervolume_figure
from search.records import Measurement, SearchRecord, Winner

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d252c;margin:0 auto;max-width:1080px;padding:16px}
h1{font-size:24px;margin:8px 0}h2{font-size:18px;margin:32px 0 8px;border-bottom:1px solid #dde3e8;padding-bottom:4px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px}th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top}
th{color:#5a6570;font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr+tr td{border-top:1px solid #eef1f4}
code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#f4f6f8;padding:10px 12px;border-radius:6px;overflow-x:auto;margin:8px 0;white-space:pre-wrap;word-break:break-word}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:14px}.card{border:1px solid #dde3e8;border-radius:8px;padding:12px 14px;min-width:0}
.card b.big{font-size:26px;color:#00795a}.card .name{font-weight:600;text-transform:capitalize}.grid img{width:100%;image-rendering:pixelated;border-radius:4px;display:block}
.grid{display:grid;grid-template-columns:110px 1fr;gap:6px 12px;align-items:center}.banner{background:#fff4d6;border:1px solid #ecd28a;border-radius:6px;padding:8px 12px}
button{font:12px system-ui;border:1px solid #c6ced5;background:#fff;border-radius:5px;padding:2px 8px;cursor:pointer}.strategy{word-break:break-all}
@media(max-width:600px){.grid{grid-template-columns:1fr}body{padding:10px}}
"""


def write_report(record: SearchRecord, path: Path, samples: Mapping[str, bytes] | None = None) -> Path:
    """Write the report of a search, finished or not.

    Args:
        record: From a ledger.
        path: Where to; a reader never sees half a file.
        samples: PNG files by label, rows of images of the same prompts and seeds.

    Returns:
        The path.
    """
    parts = [_head(record), _banner(record)]
    if record.winners:
        parts += [_winners_table(record), _cards(record)]
    if record.results or record.baselines:
        parts += [_figure("Front", front_figure(record), "Each point is a strategy; hover for its steps. The line is the front.")]
    if samples:
        parts.append(_samples(samples))
    if record.evaluated():
        parts.append(_figure("Strategies on the front", heatmap_figure(record), "One row a strategy, the fastest on top."))
    if record.hypervolumes:
        parts.append(_figure("Progress", hypervolume_figure(record), "Measured from twice the unaccelerated FID and its latency."))
    parts += [_failures(record), _section("What was run", _table_of(record.config)), _section("On what", _table_of(record.environment))]
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(record.search_id)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        + "\n".join(parts)
        + "<script>document.querySelectorAll('button').forEach(b=>b.onclick=()=>{navigator.clipboard.writeText(b.nextElementSibling.innerText);b.textContent='copied'})</script>"
        "</body></html>"
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _head(record: SearchRecord) -> str:
    measured = len(record.evaluated())
    images = next((m.images for _, m in record.evaluated()), 0)
    devices = ", ".join(sorted({m.device for _, m in record.evaluated() if m.device}))
    return f"<h1>{escape(record.search_id)}</h1><p>{measured} strategies measured, {images} images each{', on ' + escape(devices) if devices else ''}.</p>"


def _banner(record: SearchRecord) -> str:
    if record.finished:
        return ""
    return f'<p class="banner">This search is not finished: {len(record.evaluated())} strategies measured so far. The same <code>dato search</code> command continues it.</p>'


def _winners_table(record: SearchRecord) -> str:
    heads = ("", "speedup", "ms per image", "FID, fresh images", "95 % interval", "FID less unaccelerated", "FID in the search", "UNet calls")
    rows = ["<tr>" + "".join(f'<th class="n">{h}</th>' if h else "<th></th>" for h in heads) + "</tr>"]
    plain = next(iter(record.winners.values())).fresh_baseline
    searched = record.baselines[UNACCELERATED][1].fid if UNACCELERATED in record.baselines else float("nan")
    rows.append(_winner_row("unaccelerated", 1.0, plain, 0.0, searched))
    rows += [_winner_row(alias, w.speedup, w.fresh, w.fid_difference, w.searched.fid) for alias, w in record.winners.items()]
    note = "<p>Winners are measured again on prompts and seeds that the search never saw; the gap to the FID in the search is the winner's curse.</p>"
    return f'<h2>Winners</h2><div class="scroll"><table>{"".join(rows)}</table></div>{note}'


def _winner_row(name: str, speedup: float, m: Measurement, difference: float, searched: float) -> str:
    calls = ", ".join(f"{n} {'full' if d == '12' else 'replayed' if d == '0' else 'depth ' + d}" for d, n in m.calls_by_depth.items())
    cells = (f"{speedup:.2f}x", f"{m.latency_ms:.0f}", f"{m.fid:.2f}", _interval(m), f"{difference:+.2f}", f"{searched:.2f}", escape(calls))
    return f"<tr><td>{escape(name)}</td>" + "".join(f'<td class="n">{c}</td>' for c in cells) + "</tr>"


def _interval(m: Measurement) -> str:
    return f"{m.fid_low:.2f} .. {m.fid_high:.2f}" if m.fid_low == m.fid_low else "-"


def _cards(record: SearchRecord) -> str:
    return '<h2>Use one</h2><div class="cards">' + "".join(_card(record, alias, w) for alias, w in record.winners.items()) + "</div>"


def _card(record: SearchRecord, alias: str, winner: Winner) -> str:
    name = (record.config.get("registry") or {}).get("name")
    source = f"models:/{name}@{alias}" if name and (record.config.get("mlflow") or {}).get("enabled", True) else f"winners/{alias}.json"
    code = (
        f'import dato\nstrategy = dato.Strategy.load({json.dumps(source)})\nwith dato.accelerate(pipe, strategy):\n'
        f"    images = pipe(prompt, num_inference_steps={len(winner.candidate.strategy)}).images"
    )
    return (
        f'<div class="card"><div class="name">{escape(alias)}</div><b class="big">{winner.speedup:.2f}x</b> at FID {winner.fid_difference:+.2f}'
        f'<div class="strategy"><code>{escape(str(winner.candidate.strategy))}</code></div><button>copy</button><pre>{escape(code)}</pre></div>'
    )


def _figure(title: str, figure: go.Figure, note: str) -> str:
    body = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    return f"<h2>{escape(title)}</h2><p>{escape(note)}</p>{body}"


def _samples(samples: Mapping[str, bytes]) -> str:
    rows = "".join(
        f'<div>{escape(label)}</div><img alt="images of {escape(label)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for label, png in samples.items()
    )
    return f'<h2>Samples</h2><p>Each column has the same prompt and seed.</p><div class="grid">{rows}</div>'


def _failures(record: SearchRecord) -> str:
    failed = [m for m in record.results.values() if not m.ok]
    if not failed:
        return ""
    return _section("Failures", f"<p>Failed candidates: {len(failed)}; the first error: <code>{escape(failed[0].error or '')}</code></p>")


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def _table_of(values: Mapping[str, Any], prefix: str = "") -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in _flatten(values, prefix))
    return f'<div class="scroll"><table>{rows}</table></div>'


def _flatten(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
