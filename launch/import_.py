"""``dato import``: a strategy that somebody handed over, into a folder, a file, or an MLflow registry of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dato.card import write_card
from dato.sources import ACCEPTED
from dato.strategy import Strategy
from launch.arguments import ArgumentError, choice, flag, parse, tracking_uri
from launch.export import save_file
from search.publish.strategies import check_names

TAKES = {
    "source": f"<{ACCEPTED}>",
    "to": "folder|file|registry (folder)",
    "name": "<name of the folder, file or registered model>",
    "alias": "<alias in the registry> (the strategy's own)",
    "uri": "<MLflow tracking URI> (MLFLOW_TRACKING_URI)",
    "replace": "true|false (false: nothing is overwritten)",
}


def run(arguments: Sequence[str]) -> int:
    """Check a strategy's JSON and keep it; nothing of it is executed."""
    given = parse("import", arguments, TAKES, required=["source", "name"])
    to, replace, name = choice(given, "to", ("folder", "file", "registry")), flag(given, "replace"), given["name"]
    uri = tracking_uri(given)
    strategy = Strategy.load(given["source"])
    if to == "folder":
        print(write_card(strategy, Path(name), replace))
    elif to == "file":
        save_file(strategy, Path(name), replace)
    else:
        from search.publish.registry import register, run_of_search  # MLflow takes seconds to import

        alias = given.get("alias") or str(strategy.provenance.get("alias") or "imported")
        check_names(name, alias)
        search_id = str(strategy.provenance.get("search_id") or f"imported-{strategy.digest}")
        if "'" in search_id:
            raise ArgumentError(f"the strategy's search_id is {search_id!r}, which cannot be a search's name; to=folder takes it")
        run_id = run_of_search(search_id, f"dato/imported/{name}", uri, kind="import")
        made = register(name, {alias: strategy}, run_id, uri=uri, replace=replace)
        version, why = made.versions[alias], made.stayed.get(alias)
        print(f"models:/{name}/{version}  (no alias was moved: {why})" if why else f"models:/{name}@{alias}  (version {version})")
    return 0
