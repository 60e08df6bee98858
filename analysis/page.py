"""The frame of a report: one HTML page with its style and scripts inside, readable on a laptop and on a phone."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.measurements import flat

_STYLE = """
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:#1d252c;margin:0 auto;max-width:1080px;padding:16px}
h1{font-size:24px;margin:8px 0;overflow-wrap:anywhere}h2{font-size:18px;margin:32px 0 8px;border-bottom:1px solid #dde3e8;padding-bottom:4px}
table{border-collapse:collapse;font-size:14px}th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{color:#5a6570;font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}tr+tr td,tr+tr th{border-top:1px solid #eef1f4}
code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#f4f6f8;padding:10px 12px;border-radius:6px;margin:8px 0;white-space:pre-wrap;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:14px}.card{border:1px solid #dde3e8;border-radius:8px;padding:12px 14px;min-width:0}
.card b.big{font-size:26px;color:#00795a}.card .name{font-weight:600;text-transform:capitalize}.strategy{overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:110px 1fr;gap:6px 12px;align-items:center}.grid img{width:100%;image-rendering:pixelated;border-radius:4px;display:block}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}.pair>div{min-width:0}
.maps{display:grid;grid-template-columns:130px repeat(var(--columns),1fr);gap:4px;align-items:center;margin-bottom:20px;font-size:13px}.maps img{width:100%;image-rendering:pixelated;display:block}
.banner{background:#fff4d6;border:1px solid #ecd28a;border-radius:6px;padding:8px 12px}summary{cursor:pointer;color:#00598a}
button{font:12px system-ui;border:1px solid #c6ced5;background:#fff;border-radius:5px;padding:2px 8px;cursor:pointer}
@media(min-width:601px){table.wide td:first-child{white-space:nowrap}}
@media(max-width:600px){body{padding:10px}.grid{grid-template-columns:1fr}
.pair{grid-template-columns:1fr}.maps{grid-template-columns:repeat(var(--columns),1fr);font-size:11px}.maps .row{grid-column:1/-1}.maps .corner{display:none}
table.wide,.wide tbody,.wide tr,.wide td{display:block}.wide tr:first-child{display:none}.wide tr{padding:6px 0;border-top:1px solid #dde3e8}
.wide td{border:0!important;padding:1px 0;text-align:left!important}.wide td:first-child{font-weight:600}.wide td[data-h]::before{content:attr(data-h) ": ";color:#5a6570}}
"""
_SCRIPT = (
    "document.querySelectorAll('button.copy').forEach(b=>b.onclick=()=>{const t=b.nextElementSibling.innerText;"
    "const s=()=>{b.textContent='copied'};if(navigator.clipboard)navigator.clipboard.writeText(t).then(s);"
    # A page opened from a file has no clipboard in some browsers: the text is selected instead.
    "else{getSelection().selectAllChildren(b.nextElementSibling);b.textContent='selected'}})"
)


def page(title: str, parts: Sequence[str]) -> str:
    """The page with everything in it: nothing is loaded from anywhere."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        + "\n".join(p for p in parts if p)
        + f"<script>{_SCRIPT}</script></body></html>"
    )


def write_page(path: Path, html: str) -> Path:
    """Write a page so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def figure_section(title: str, figure: go.Figure, note: str) -> str:
    """A heading, a line of explanation and an interactive figure."""
    return f"<h2>{escape(title)}</h2><p>{escape(note)}</p>{figure_html(figure)}"


def figure_html(figure: go.Figure) -> str:
    """An interactive figure, as wide as what it stands in."""
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}))


def banner(html: str) -> str:
    """A line that must not be missed; `html` is escaped already."""
    return f'<p class="banner">{html}</p>'


def wide_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers with a name in its first column; on a phone each row is a list. Cells are text."""
    head = "<tr>" + "".join(f'<th class="n">{escape(h)}</th>' if i else f"<th>{escape(h)}</th>" for i, h in enumerate(heads)) + "</tr>"
    body = "".join(
        "<tr>" + "".join(f'<td class="n" data-h="{escape(h)}">{escape(c)}</td>' if i else f"<td>{escape(c)}</td>" for i, (h, c) in enumerate(zip(heads, row, strict=True))) + "</tr>"
        for row in rows
    )
    return f'<table class="wide">{head}{body}</table>'


def image_rows(rows: Mapping[str, bytes]) -> str:
    """PNG files of rows of images, each after its label."""
    cells = "".join(
        f'<div>{escape(label)}</div><img alt="images of {escape(label)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">' for label, png in rows.items()
    )
    return f'<div class="grid">{cells}</div>'


def notes_section(title: str, values: Mapping[str, Any]) -> str:
    """A heading and a folded table of nested values."""
    rows, count = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in flat(values).items()), len(flat(values))
    return f"<h2>{escape(title)}</h2><details><summary>{count} value{'' if count == 1 else 's'}</summary><table>{rows}</table></details>" if rows else ""
