"""``dato report``: the HTML report of a search, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.report import write_report
from launch.config import ConfigError
from search.ledger import read_ledger


def run(arguments: Sequence[str]) -> int:
    """Write ``report.html`` into the folder of a search."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if set(given) != {"folder"} or len(given) != len(arguments):
        raise ConfigError(f"dato report was given {list(arguments)}; it takes folder=<search folder>")
    folder = Path(given["folder"])
    if not (folder / "ledger.jsonl").is_file():
        raise ConfigError(f"folder is {str(folder)!r}, which holds no ledger.jsonl; give the folder of a search, such as outputs/<search id>")
    samples = {p.stem.split("-", 1)[1]: p.read_bytes() for p in sorted((folder / "samples").glob("*.png"))}
    print(write_report(read_ledger(folder / "ledger.jsonl"), folder / "report.html", samples))
    return 0
