"""``dato report``: the HTML report of a search, finished or not, or of several in comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.compare import write_comparison
from analysis.report import write_report
from analysis.rivals import rivals_section
from dato.files import FileError, read_bytes, read_json, shown, user_path
from launch.arguments import ArgumentError, flag, parse, read_search, search_folder, target_file
from launch.live_report import watch
from search.evaluate.results import EVALUATION_SCHEMA
from search.records import SearchRecord

_MAX_SAMPLES, _MAX_EVALUATION = 1 << 26, 1 << 28

TAKES = {
    "folder": "<search folder>, or several with commas between",
    "evaluation": "<folder of a dato evaluate of the search's strategies beside their rivals>",
    "target": "<file> (report.html in the folder, comparison.html for several)",
    "watch": "true|false (false; true: serve the report of one running search to this machine, renewed until it ends)",
    "port": "<number from 1024 to 65535 to serve on> (a free one)",
}


def run(arguments: Sequence[str]) -> int:
    """Write the report and print its path; or serve that of a running search, and write it when that ends."""
    given = parse("report", arguments, TAKES, required=["folder"])
    whole = os.path.exists(user_path(given["folder"]) / "ledger.jsonl")  # a folder whose name holds a comma
    names = [given["folder"]] if whole else [name for name in given["folder"].split(",") if name]
    folders = [search_folder(name) for name in names]
    if not folders:
        raise ArgumentError(f"folder is {given['folder']!r}, which names no search; give the folder of one, such as outputs/<search id>")
    if len({f.resolve() for f in folders}) != len(folders):
        raise ArgumentError(f"folder is {given['folder']!r}, which names a search twice; name each once")
    target = Path(given.get("target") or (folders[0] / "report.html" if len(folders) == 1 else "comparison.html"))
    target_file(target)
    if not os.path.isdir(target.parent):
        raise ArgumentError(f"target is {shown(str(target))}, which is no file in a folder that exists; give one, such as report.html")
    if flag(given, "watch"):
        if len(folders) != 1 or "evaluation" in given:
            raise ArgumentError("watch=true is for one search, without an evaluation; give its folder alone")
        return watch(folders[0], target, _port(given.get("port")), _samples)
    if "port" in given:
        raise ArgumentError("port is of watch=true; give both, or leave it out")
    records = [read_search(f) for f in folders]
    evaluation = _read_evaluation(given["evaluation"], records) if "evaluation" in given else None
    try:
        if len(folders) == 1:
            samples = _samples(folders[0] / "samples")
            print(write_report(records[0], target, samples, evaluation))
        else:
            print(write_comparison(records, target))
    except OSError as error:
        raise ArgumentError(f"cannot write {target} ({error.strerror}); give target=<file> in a folder that you may write") from None
    return 0


def _port(given: str | None) -> int:
    """The port to serve on; 0 for a free one."""
    if given is not None and not (given.isascii() and given.isdigit() and 1024 <= int(given[:6]) <= 65535):
        raise ArgumentError(f"port is {shown(given)}; give a number from 1024 to 65535, or leave it out for a free one")
    return int(given or 0)


def _samples(folder: Path) -> dict[str, bytes]:
    """The rows of images that the search drew, by label."""
    try:
        return {label: read_bytes(p, _MAX_SAMPLES) for p in sorted(folder.glob("*.png")) if (label := p.stem.partition("-")[2])}
    except FileError as error:
        raise ArgumentError(f"the images in {folder} cannot be read ({error}); remove what is no image of the search") from None


def _read_evaluation(given: str, records: Sequence[SearchRecord]) -> dict[str, Any]:
    path = user_path(given) / "evaluation.json"
    if len(records) != 1:
        raise ArgumentError("evaluation goes with one search; give one folder")
    try:
        found = read_json(path, _MAX_EVALUATION)
    except FileError as error:
        raise ArgumentError(f"evaluation is {given!r}, whose evaluation.json cannot be read ({error}); give the folder that dato evaluate names") from None
    if not isinstance(found, dict) or found.get("schema") != EVALUATION_SCHEMA:
        raise ArgumentError(f"{path} is no evaluation of this version ({EVALUATION_SCHEMA}); run dato evaluate again")
    try:
        rivals_section(found)
        names = {key: (found["config"][key]["name"], (records[0].config.get(key) or {}).get("name")) for key in ("model", "data")}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArgumentError(f"{path} is damaged ({type(error).__name__}: {error}); run dato evaluate again") from None
    for key, (theirs, ours) in names.items():
        if theirs != ours:
            raise ArgumentError(f"evaluation is of {key} {theirs!r}, the search of {ours!r}; run dato evaluate {key}={ours} 'strategy=[<search folder>]'")
    return found
