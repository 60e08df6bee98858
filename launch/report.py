"""``dato report``: the HTML report of a search, finished or not, or of several in comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.compare import write_comparison
from analysis.report import write_report
from dato.files import user_path
from launch.arguments import ArgumentError, parse, search_folder
from search.ledger import read_ledger
from search.records import SearchRecord
from search.verdict import EVALUATION_SCHEMA

TAKES = {
    "folder": "<search folder>, or several with commas between",
    "evaluation": "<folder of a dato evaluate of the search's strategies beside their rivals>",
    "target": "<file> (report.html in the folder, comparison.html for several)",
}


def run(arguments: Sequence[str]) -> int:
    """Write the report; prints its path."""
    given = parse("report", arguments, TAKES, required=["folder"])
    folders = [search_folder(name) for name in given["folder"].split(",") if name]
    if len({f.resolve() for f in folders}) != len(folders):
        raise ArgumentError(f"folder is {given['folder']!r}, which names a search twice; name each once")
    target = Path(given.get("target") or (folders[0] / "report.html" if len(folders) == 1 else "comparison.html"))
    if target.is_dir() or not target.parent.is_dir():
        raise ArgumentError(f"target is {str(target)!r}, which is no file in a folder that exists; give one, such as report.html")
    records = [read_ledger(f / "ledger.jsonl") for f in folders]
    evaluation = _read_evaluation(given["evaluation"], records) if "evaluation" in given else None
    try:
        if len(folders) == 1:
            samples = {p.stem.split("-", 1)[1]: p.read_bytes() for p in sorted((folders[0] / "samples").glob("*.png"))}
            print(write_report(records[0], target, samples, evaluation))
        else:
            print(write_comparison(records, target))
    except OSError as error:
        raise ArgumentError(f"cannot write {target} ({error.strerror}); give target=<file> in a folder that you may write") from None
    return 0


def _read_evaluation(given: str, records: Sequence[SearchRecord]) -> dict[str, Any]:
    path = user_path(given) / "evaluation.json"
    if len(records) != 1:
        raise ArgumentError("evaluation goes with one search; give one folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"evaluation is {given!r}, whose evaluation.json cannot be read ({error}); give the folder that dato evaluate names") from None
    if not isinstance(found, dict) or found.get("schema") != EVALUATION_SCHEMA:
        raise ArgumentError(f"{path} is no evaluation of this version ({EVALUATION_SCHEMA}); run dato evaluate again")
    for key in ("model", "data"):
        theirs, ours = found["config"][key]["name"], records[0].config[key]["name"]
        if theirs != ours:
            raise ArgumentError(f"evaluation is of {key} {theirs!r}, the search of {ours!r}; run dato evaluate {key}={ours} 'strategy=[<search folder>]'")
    return found
