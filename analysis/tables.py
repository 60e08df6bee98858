"""Tables of a comparison, as Markdown, CSV and LaTeX, beside the paper's own figures, which are marked as quoted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.quoted import match, quoted, source
from search.metrics.similarity import DISTANCE, PSNR_OF_EQUAL, direction, is_similarity

TITLES = {"fid": "FID", "kid": "KID x 1000", "is": "Inception Score", "psnr": "PSNR, dB", "ssim": "SSIM", "ms-ssim": "MS-SSIM", "lpips": "LPIPS"}
DIGITS = {"kid": 3, "ssim": 3, "ms-ssim": 3, "lpips": 3, DISTANCE: 3}
"""Digits after the point, where these are not two."""
DOWN, UP = "lower is better", "higher is better"
Row = list[str]


def title(metric: str) -> str:
    """A metric's heading; of one that compares with the unaccelerated images, with which way is closer."""
    kind = metric.split(":")[0]
    if is_similarity(metric):
        return f"{TITLES.get(kind, kind)} ({direction(metric)})"
    return TITLES.get(metric, "CLIP score" if kind == "clip" else metric)


def number(value: Mapping[str, Any] | None, digits: int = 2, sign: bool = False, unit: str = "", scale: float = 1.0) -> str:
    """A value with its interval, such as "12.30 [11.90, 12.70]"; a dash where there is none."""
    if value is None or value.get("value") is None:
        return "-"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    text = form.format(value["value"] * scale) + unit
    if value.get("low") is None:
        return text
    return f"{text} [{form.format(value['low'] * scale)}, {form.format(value['high'] * scale)}]"


def comparison_table(results: Sequence[Mapping[str, Any]], quoted_key: str | None) -> tuple[Row, list[Row]]:
    """Heading and rows of a table like the paper's Tables 1, 2 and 5.

    Args:
        results: As `Result.to_dict` gives them.
        quoted_key: Which of the paper's tables stands beside it, see `quoted`; None for none.
    """
    metrics = list(dict.fromkeys(m for r in results for m in r["metrics"]))
    head = ["method", "steps"]
    for metric in metrics:
        head += [f"{title(metric)} [95 %]", *([] if is_similarity(metric) else [f"{title(metric)} less unaccelerated [95 %]"])]
    head += ["ms per image [min, max]", "speedup [95 %]"]
    with_equal = any(r["equal_latency"] for r in results)
    if with_equal:
        head.append("FID less fewer steps at equal latency [95 %]")
    theirs = [k for k in ("fid", "clip_score", "inception_score", "speedup") if quoted_key and k in quoted(quoted_key)[0]]
    head += [f"{k.replace('_', ' ').replace('fid', 'FID')}, quoted" for k in theirs]
    rows = []
    for r in results:
        row = [r["name"] + (" (timed in another run)" if r["timed_apart"] else ""), str(r["steps"])]
        if r["error"]:
            rows.append([*row, f"failed: {r['error']}", *[""] * (len(head) - 3)])
            continue
        for metric in metrics:
            digits, scale = DIGITS.get(metric.split(":")[0], 2), 1000.0 if metric == "kid" else 1.0
            row.append(number(r["metrics"].get(metric), digits, scale=scale))
            if not is_similarity(metric):
                row.append(number(r["differences"].get(metric), digits, sign=True, scale=scale))
        row += [number(r["latency"], 1), number(r["speedup"], 2, unit="x")]
        if with_equal:
            row.append(number(r["equal_latency"], sign=True))
        found = match(quoted_key, r) if quoted_key else None
        row += [f"{found[k]:.2f}" + ("x" if k == "speedup" else "") if found else "" for k in theirs]
        rows.append(row)
    return head, rows


def equal_latency_block(found: Mapping[str, Mapping[float, Mapping[str, Any] | None]]) -> str:
    """`search.evaluate.results.at_speedups` as Markdown; "" where there is nothing to compare."""
    if not any(v for row in found.values() for v in row.values()):
        return ""
    speedups = list(next(iter(found.values())))
    rows = [[kind, *(number(row[s], sign=True) if row[s] else "none" for s in speedups)] for kind, row in found.items()]
    note = "At equal latency: FID of the best strategy at least so fast, less that of each kind of rival [95 %]; negative is better, none: no such rival is so fast. The best of both are chosen on these images."
    return f"{note}\n\n{markdown(['rival', *(f'{s:g}x' for s in speedups)], rows)}"


SIMILARITY = (
    "Each image against the unaccelerated one of the same prompt and seed, as a mean over images: a paired comparison, whose 95 % interval is over the images. "
    "PSNR, SSIM and MS-SSIM are higher where the two are closer; LPIPS and the feature distance are lower. A feature distance of 0 is the same picture, of 1 one "
    "as different as two of the unaccelerated pipeline's own images of different prompts or seeds (Euclidean, on the features of the FID). "
    f"Equal images count as a PSNR of {PSNR_OF_EQUAL:.0f} dB."
)
"""What similarities mean, for whoever reads them."""


def similarity_note(metrics: Iterable[str]) -> str:
    """`SIMILARITY` where a metric is one, else ""."""
    return f"{SIMILARITY}\n" if any(map(is_similarity, metrics)) else ""


def matrix_table(corner: str, results: Sequence[Mapping[str, Any]], metric: str = "fid") -> tuple[Row, list[Row]]:
    """Heading and rows of an ablation: one row and one column for each label of the results' places, the metric in the cells."""
    rows = list(dict.fromkeys(r["row"][0] for r in results if r["row"][0]))
    columns = list(dict.fromkeys(r["row"][1] for r in results if r["row"][0]))
    cells = {tuple(r["row"]): r for r in results}

    def cell(row: str, column: str) -> str:
        found = cells.get((row, column))
        if found is None:
            return ""
        return f"failed: {found['error']}" if found["error"] else number(found["metrics"].get(metric))

    return [corner, *columns], [[row, *(cell(row, c) for c in columns)] for row in rows]


def markdown(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in row) + " |" for row in rows]) + "\n"


def as_csv(head: Row, rows: Sequence[Row]) -> str:
    """The same as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def latex(head: Row, rows: Sequence[Row], caption: str) -> str:
    """The same as a LaTeX table (booktabs)."""
    lines = [r"\begin{table}", r"\centering", r"\small", rf"\caption{{{_tex(caption)}}}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, head)) + r" \\", r"\midrule", *(" & ".join(map(_tex, row)) + r" \\" for row in rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _tex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"), ("$", r"\$")):
        text = text.replace(plain, escaped)
    return text


def quoted_block(key: str) -> str:
    """The paper's whole table as Markdown, marked as quoted."""
    rows = quoted(key)
    head = list(rows[0])
    body = [[f"{v:g}" if isinstance(v, float | int) else str(v) for v in row.values()] for row in rows]
    return f"Quoted from {source()} ({key}), measured by its authors on their hardware, not by us:\n\n{markdown(head, body)}"


def write_tables(folder: Path, name: str, head: Row, rows: Sequence[Row], caption: str, below: str = "") -> Path:
    """Write ``<name>.md``, ``.csv`` and ``.tex``; returns the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.csv").write_text(as_csv(head, rows), encoding="utf-8")
    (folder / f"{name}.tex").write_text(latex(head, rows, caption), encoding="utf-8")
    path = folder / f"{name}.md"
    path.write_text(f"{caption}\n\n{markdown(head, rows)}" + (f"\n{below}" if below else ""), encoding="utf-8")
    return path
