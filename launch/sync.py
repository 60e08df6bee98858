"""``dato sync``: complete MLflow's view of a search from its ledger, after MLflow was away."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dato.sources import without_credentials
from launch.arguments import parse, search_folder, tracking_uri
from launch.config import build
from launch.search import make_tracker
from search.ledger import read_ledger
from search.records import SearchRecord

TAKES = {"folder": "<search folder>", "uri": "<MLflow tracking URI> (the search's own, or MLFLOW_TRACKING_URI)"}


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
    given = parse("sync", arguments, TAKES, required=["folder"])
    folder, uri = search_folder(given["folder"]), tracking_uri(given)
    record = read_ledger(folder / "ledger.jsonl")
    # The ledger keeps the settings that the search began with; where it logs is no part of it, and may have changed since.
    began = record.config.get("mlflow") or {}
    settings = {**began, "enabled": True, **({"uri": uri} if uri else {})}
    if not began.get("enabled", True):
        where = settings.get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db of this folder"
        print(f"search {record.search_id} began with mlflow.enabled=false; what MLflow does not have of it is written to {without_credentials(str(where))}")
    tracker = make_tracker(build({**record.config, "mlflow": settings}))
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
