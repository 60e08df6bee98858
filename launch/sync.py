"""``dato sync``: complete MLflow's view of a search from its ledger, after MLflow was away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.config import ConfigError, build
from launch.search import make_tracker
from search.handover import read_facts, winner_strategies
from search.ledger import read_ledger
from search.records import SearchRecord
from search.registry import RegistryError, register
from search.tracking import Tracker, TrackingError


class SyncError(RuntimeError):
    """MLflow does not take the log: the message says why and what to do."""


def run(arguments: Sequence[str]) -> int:
    """Write what is missing; what MLflow has already is left as it is, so that it can be run again."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if set(given) != {"folder"} or len(given) != len(arguments):
        raise ConfigError(f"dato sync was given {list(arguments)}; it takes folder=<search folder>")
    folder = Path(given["folder"])
    if not (folder / "ledger.jsonl").is_file():
        raise ConfigError(f"folder is {str(folder)!r}, which holds no ledger.jsonl; give the folder of a search, such as outputs/<search id>")
    record = read_ledger(folder / "ledger.jsonl")
    config = build(record.config)
    tracker = make_tracker(config)
    if tracker is None:
        raise ConfigError(f"search {record.search_id} ran with mlflow.enabled=false; there is no view to complete")
    fix = "check that the server runs and may be written to (mlflow.uri of the search, or MLFLOW_TRACKING_URI), then run dato sync again"
    try:
        complete(tracker, record, folder)
    except TrackingError as error:
        raise SyncError(f"{error}; {fix}") from None
    versions: dict[str, str] = {}
    name = config.raw["registry"]["name"]
    if record.winners and tracker.run_id:
        try:
            versions = register(name, winner_strategies(record, read_facts(folder)), tracker.run_id).versions
        except RegistryError as error:
            raise SyncError(f"MLflow holds the runs of search {record.search_id}, and not its winners: {error}") from None
    state = "finished" if record.finished else f"{len(record.results)} results so far"
    print(f"MLflow holds search {record.search_id}: {state}, {len(record.hypervolumes)} generations, run {tracker.run_id}")
    if versions:
        print(f"winners   models:/{name}, versions {', '.join(f'{v} ({alias})' for alias, v in versions.items())}")
    return 0


def complete(tracker: Tracker, record: SearchRecord, folder: Path) -> None:
    """Log what MLflow does not have: candidates, generations, and for a finished search its end. Raises `TrackingError`."""
    report = folder / "report.html"
    tracker.complete(record, {"": report} if record.finished and report.is_file() else {})
