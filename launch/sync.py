"""``dato sync``: complete MLflow's view of a search from its ledger, after MLflow was away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.config import ConfigError, build
from launch.search import make_tracker
from search.ledger import read_ledger
from search.records import SearchRecord


class SyncError(RuntimeError):
    """MLflow does not take the log: the message says why and what to do."""


class _Complaints(logging.Handler):
    """Keeps what the tracker warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(arguments: Sequence[str]) -> int:
    """Write what is missing; what MLflow has already is left as it is, so that it can be run again."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if set(given) != {"folder"} or len(given) != len(arguments):
        raise ConfigError(f"dato sync was given {list(arguments)}; it takes folder=<search folder>")
    folder = Path(given["folder"])
    if not (folder / "ledger.jsonl").is_file():
        raise ConfigError(f"folder is {str(folder)!r}, which holds no ledger.jsonl; give the folder of a search, such as outputs/<search id>")
    record = read_ledger(folder / "ledger.jsonl")
    tracker = make_tracker(build(record.config))
    if tracker is None:
        raise ConfigError(f"search {record.search_id} ran with mlflow.enabled=false; there is no view to complete")
    complaints = _Complaints()
    log = logging.getLogger("search.tracking")
    log.addHandler(complaints)
    try:
        complete(tracker, record, folder)
    finally:
        log.removeHandler(complaints)
    if complaints.said or tracker.run_id is None:
        why = complaints.said[0].split(";")[0] if complaints.said else "MLflow made no run"
        raise SyncError(f"{why}; check that the server runs and may be written to (mlflow.uri of the search, or MLFLOW_TRACKING_URI), then run dato sync again")
    state = "finished" if record.finished else f"{len(record.results)} results so far"
    print(f"MLflow holds search {record.search_id}: {state}, {len(record.hypervolumes)} generations, run {tracker.run_id}")
    return 0


def complete(tracker: Any, record: SearchRecord, folder: Path) -> None:
    """Log what MLflow does not have: candidates, generations, and for a finished search its end."""
    tracker.started(record)
    if tracker.run_id is None:
        return
    known = tracker.logged_generations()
    for generation in range(len(record.hypervolumes)):
        if generation not in known:
            tracker.generation_done(as_of(record, generation), generation)
    if record.finished:
        report = folder / "report.html"
        tracker.finished(record, {"": report} if report.is_file() else {})
    else:
        tracker.stopped()


def as_of(record: SearchRecord, generation: int) -> SearchRecord:
    """The record as it was when a generation was complete."""
    results = {n: m for n, m in record.results.items() if record.candidates[n].generation <= generation}
    candidates = {n: c for n, c in record.candidates.items() if c.generation <= generation}
    return replace(record, candidates=candidates, results=results, hypervolumes=record.hypervolumes[: generation + 1], winners={}, finished=False)
