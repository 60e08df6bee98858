"""Tables in three formats, and the paper's figures beside ours."""

from __future__ import annotations

import csv
import io

import pytest

from analysis.quoted import QuotedError, match, quoted
from analysis.tables import as_csv, comparison_table, latex, markdown, matrix_table, number, quoted_block


def row(name: str, family: str, **changes: object) -> dict:
    value = {"value": 27.0, "low": 26.0, "high": 28.0}
    base = {
        "name": name, "family": family, "row": ["", ""], "steps": 50, "metrics": {"fid": value},
        "differences": {} if family == "plain" else {"fid": {"value": -0.5, "low": None, "high": None}},
        "latency": {"value": 100.0, "low": 90.0, "high": 120.0}, "speedup": {"value": 2.0, "low": 1.9, "high": 2.1},
        "equal_latency": None, "timed_apart": False, "error": None,
    }
    return {**base, **changes}


ROWS = [
    row("unaccelerated", "plain"), row("DDIM-10", "fewer"), row("DDIM-5", "fewer"), row("DeepCache, every 10", "deepcache"),
    row("paper-b1", "strategy", equal_latency={"value": -3.0, "low": -4.0, "high": -2.0}), row("mine", "strategy", error="OutOfMemory: too large"),
]


def test_the_papers_figures_stand_beside_ours() -> None:
    head, rows = comparison_table(ROWS, "table1/imagenet/sd15")
    assert head[-2:] == ["FID, quoted", "speedup, quoted"]
    by_name = {r[0]: r for r in rows}
    assert by_name["unaccelerated"][2:6] == ["27.00 [26.00, 28.00]", "-", "100.0 [90.0, 120.0]", "2.00x [1.90, 2.10]"]
    assert by_name["unaccelerated"][-2:] == ["27.64", "1.00x"]
    assert by_name["DDIM-10"][-2:] == ["27.80", "4.34x"]
    assert by_name["DDIM-5"][-2:] == ["", ""]
    assert by_name["DeepCache, every 10"][-2:] == ["", ""]
    assert by_name["paper-b1"][-3:] == ["-3.00 [-4.00, -2.00]", "25.40", "5.75x"]
    assert by_name["mine"][2] == "failed: OutOfMemory: too large"
    assert {len(r) for r in rows} == {len(head)}


def test_without_quotations_or_rivals_there_are_no_empty_columns() -> None:
    head, _ = comparison_table(ROWS[:1], None)
    assert not [h for h in head if "quoted" in h or "equal" in h]


def test_every_format_holds_the_same_cells() -> None:
    head, rows = comparison_table(ROWS, "table1/imagenet/sd15")
    assert list(csv.reader(io.StringIO(as_csv(head, rows)))) == [head, *rows]
    lines = markdown(head, rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    tex = latex(head, rows, "50 % of a_b & c")
    assert r"50 \% of a\_b \& c" in tex
    assert tex.count(r"\\") == len(rows) + 1
    assert "[95 \\%]" in tex


def test_an_ablation_is_a_matrix() -> None:
    results = [
        row("unaccelerated", "plain"), row("a", "strategy", row=["0.3", "every 3, aligned"]),
        row("b", "strategy", row=["0.3", "every 3, unaligned"], error="no"), row("c", "strategy", row=["0.7", "every 3, aligned"]),
    ]
    head, rows = matrix_table("prune ratio", results)
    assert head == ["prune ratio", "every 3, aligned", "every 3, unaligned"]
    assert rows == [["0.3", "27.00 [26.00, 28.00]", "failed: no"], ["0.7", "27.00 [26.00, 28.00]", ""]]


def test_quotations_are_marked_and_are_the_papers() -> None:
    assert "measured by its authors" in quoted_block("table1/coco30k/sd15")
    assert len(quoted("table1/imagenet/sd15")) == 14
    assert quoted("table2")[-1] == {"method": "Ours", "fid": 23.1, "latency": 5.37, "speedup": 2.32}
    assert quoted("table3")[-1]["cache2_unaligned"] == 57.45
    known = {name: match("table1/imagenet/sd15", {"family": family, "name": name}) for name, family in (
        ("unaccelerated", "plain"), ("DDIM-10", "fewer"), ("DDIM-4", "fewer"), ("DeepCache, every 5", "deepcache"), ("paper-b1 (50 steps resampled to 20)", "strategy"),
    )}  # fmt: skip
    assert [row and row["method"] for row in known.values()] == ["Original SD", "DDIM (10 steps)", None, None, "Ours-b1"], "nothing is guessed"
    assert match("table1/imagenet/sd2", {"family": "fewer", "name": "DDIM-10"}) is None
    with pytest.raises(QuotedError, match=r"is 'table9'; allowed are 'table1/imagenet/sd15'"):
        quoted("table9")


def test_numbers() -> None:
    assert number(None) == number({"value": None}) == "-"
    assert number({"value": 1.5, "low": None}, 1, sign=True) == "+1.5"
    assert number({"value": 0.0015, "low": 0.001, "high": 0.002}, 1, scale=1000) == "1.5 [1.0, 2.0]"
