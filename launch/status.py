"""``dato status``: how a search stands, read from its ledger while it runs, from any shell that sees the folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from analysis.progress import in_use, progress, read_clock
from launch.arguments import ArgumentError, parse, read_search, search_folder

TAKES = {"folder": "<search folder>", "every": "<seconds>: print again until it is finished or stopped"}


def run(arguments: Sequence[str]) -> int:
    """Print the state of a search once, or again and again."""
    given = parse("status", arguments, TAKES, required=["folder"])
    path = search_folder(given["folder"]) / "ledger.jsonl"
    try:
        every = float(given.get("every", 0))
    except ValueError:
        every = -1.0
    if not 0 <= every < 86400 or (every == 0 and "every" in given):
        raise ArgumentError(f"every is {given['every']!r}; give seconds, such as every=10")
    print(describe(path))
    while every and in_use(path) is not False:
        time.sleep(every)
        print("\n" + describe(path))
    return 0


def describe(path: Path) -> str:
    """A few lines about the search of a ledger."""
    running = in_use(path)
    record = read_search(path.parent)
    found = progress(record, read_clock(path), time.time() if running else None, running=running)
    if record.finished:
        state = "finished" if record.winners else "finished, without winners"
    elif running is None:
        state = "not finished (whether somebody is at work on it cannot be seen on this system)"
    else:
        state = "running" if running else "not running on this machine; the same dato search command continues it"
    return "\n".join([f"search {record.search_id}: {state}", *(f"  {line}" for line in [*found.lines(), record.reference_note])])
