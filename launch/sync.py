"""``dato sync``: complete MLflow's view of a search from its ledger, after MLflow was away."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dato.sources import without_credentials
from launch.arguments import parse, read_search, search_folder, tracking_uri
from launch.config import build
from launch.deliver import make_tracker, to_log
from search.ledger import held
from search.publish.mlflow_runs import Tracker, TrackingError
from search.publish.registry import RegistryError, register
from search.publish.strategies import read_model_info, winner_strategies
from search.records import SearchRecord

TAKES = {"folder": "<search folder>", "uri": "<MLflow tracking URI> (the search's own, or MLFLOW_TRACKING_URI)"}


class SyncError(RuntimeError):
    """MLflow does not take the log: the message says why and what to do."""


def run(arguments: Sequence[str]) -> int:
    """Write what is missing; what MLflow has already is left as it is, so that it can be run again. Not beside the search, which writes the same."""
    given = parse("sync", arguments, TAKES, required=["folder"])
    folder, uri = search_folder(given["folder"]), tracking_uri(given)
    with held(folder / "ledger.jsonl"):
        return _sync(folder, uri, read_search(folder))


def _sync(folder: Path, uri: str | None, record: SearchRecord) -> int:
    # The ledger keeps the settings that the search began with; where it logs is no part of it, and may have changed since.
    began = record.config.get("mlflow") or {}
    settings = {**began, "enabled": True, **({"uri": uri} if uri else {})}
    if not began.get("enabled", True):
        where = settings.get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db of this folder"
        print(f"search {record.search_id} began with mlflow.enabled=false; what MLflow does not have of it is written to {without_credentials(str(where))}")
    config = build({**record.config, "mlflow": settings})
    tracker = make_tracker(config, folder)
    assert tracker is not None  # enabled above
    fix = "check that the server runs and may be written to (mlflow.uri of the search, or MLFLOW_TRACKING_URI), then run dato sync again"
    try:
        complete(tracker, record, folder)
    except TrackingError as error:
        raise SyncError(f"{error}; {fix}") from None
    versions: dict[str, str] = {}
    stayed: dict[str, str] = {}
    name = config.keys.registry.name
    if record.winners and tracker.run_id:
        try:
            made = register(name, winner_strategies(record, read_model_info(folder)), tracker.run_id, replace=config.keys.registry.replace)
            versions, stayed = made.versions, made.stayed
            tracker.registered(record, name, versions, to_log(folder))
        except RegistryError as error:
            raise SyncError(f"MLflow holds the runs of search {record.search_id}, and not its winners: {error}") from None
        except TrackingError as error:
            raise SyncError(f"{error}; {fix}") from None
    state = "finished" if record.finished else f"{len(record.results)} results so far"
    print(f"MLflow holds search {record.search_id}: {state}, {len(record.hypervolumes)} generations, run {tracker.run_id}")
    if versions:
        named = {v: ", ".join(a for a, of in versions.items() if of == v) for v in versions.values()}
        print(f"winners   models:/{name}, versions {', '.join(f'{v} ({aliases})' for v, aliases in named.items())}")
    for alias, why in stayed.items():
        print(f"          models:/{name}@{alias} stays where it was: {why}")
    return 0


def complete(tracker: Tracker, record: SearchRecord, folder: Path) -> None:
    """Log what MLflow does not have: candidates, generations, and for a finished search its end. Raises `TrackingError`."""
    tracker.complete(record, to_log(folder) if record.finished else [])
