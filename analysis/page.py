"""The frame of a report: one HTML page with its style and scripts inside, readable on a laptop and on a phone."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.measurements import flat

_SCRIPTS = Path(__file__).parent / "scripts"


@cache
def _style() -> str:
    return (_SCRIPTS / "page.css").read_text(encoding="utf-8")


@cache
def script(name: str) -> str:
    """A script of `scripts/`, as it is put into a page."""
    return (_SCRIPTS / f"{name}.js").read_text(encoding="utf-8")



def page(title: str, parts: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """The page with everything in it, and further scripts by name: nothing is loaded from anywhere."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style><script>{get_plotlyjs()}</script></head><body><main>"
        + "\n".join(p for p in parts if p)
        + f"</main><script>{''.join(map(script, ('page', 'explorer', 'parallel', *scripts)))}dato.start()</script></body></html>"
    )


def write_page(path: Path, html: str) -> Path:
    """Write a page so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def figure_section(title: str, figure: go.Figure, note: str, name: str | None = None) -> str:
    """A heading, a line of explanation and an interactive figure, which scripts find by its name."""
    return f"<h2>{escape(title)}</h2><p>{escape(note)}</p>{figure_html(figure, name)}"


def figure_html(figure: go.Figure, name: str | None = None) -> str:
    """An interactive figure, as wide as what it stands in; scripts find it by its name."""
    return str(figure.to_html(div_id=name, full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}))


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


def data_script(name: str, data: Any) -> str:
    """Data for the page's scripts, which find it by its name; no text in it can end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def image_rows(rows: Mapping[str, bytes]) -> str:
    """PNG files of rows of images, each after its label."""
    cells = "".join(
        f'<div>{escape(label)}</div><img alt="images of {escape(label)}" src="data:image/png;base64,{base64.b64encode(png).decode()}" data-label="{escape(label)}">' for label, png in rows.items()
    )
    return f'<div class="grid">{cells}</div>'


def notes_section(title: str, values: Mapping[str, Any]) -> str:
    """A heading and a folded table of nested values."""
    rows, count = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in flat(values).items()), len(flat(values))
    return f"<h2>{escape(title)}</h2><details><summary>{count} value{'' if count == 1 else 's'}</summary><table>{rows}</table></details>" if rows else ""
