"""``dato export``: the validated winners of a search, with their cards, to a folder, a file or an MLflow registry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dato.card import write_card
from dato.files import FileError, read_bytes, shown
from dato.sources import MAX_BYTES
from dato.strategy import Strategy, StrategyError
from launch.arguments import ArgumentError, choice, flag, parse, read_search, search_folder, target_file, tracking_uri
from search.publish.aliases import Standing, why_not
from search.publish.strategies import check_names, read_model_info, winner_strategies
from search.records import SearchRecord

TAKES = {
    "folder": "<search folder>",
    "to": "folder|file|registry (folder)",
    "alias": "quality|balanced|fastest|at-2x|... (all)",
    "target": "<folder or file> (<search folder>/export)",
    "name": "<registered model> (the search's own)",
    "uri": "<MLflow tracking URI> (MLFLOW_TRACKING_URI)",
    "replace": "true|false (false: nothing with as much evidence or a better value is overwritten)",
}


def run(arguments: Sequence[str]) -> int:
    """Export the winners of a search; prints where they are."""
    given = parse("export", arguments, TAKES, required=["folder"])
    to, folder, replace = choice(given, "to", ("folder", "file", "registry")), search_folder(given["folder"]), flag(given, "replace")
    uri = tracking_uri(given)
    record = read_search(folder)
    try:
        found = winner_strategies(record, read_model_info(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArgumentError(
            f"the winners of {given['folder']!r} cannot be told apart from another version's: its ledger or model.json lacks or spoils {error}; restore the folder, "
            "or export with the version that made it"
        ) from None
    strategies = _chosen(record, found, given.get("alias"))
    if to == "folder":
        target = Path(given.get("target") or folder / "export")
        refused = []
        for alias, strategy in strategies.items():
            try:
                print(write_card(strategy, target / alias, replace or better(alias, strategy, target / alias / "strategy.json")))
            except ArgumentError as error:  # the others are written, as the registry takes them
                refused.append(str(error))
        if refused:
            raise ArgumentError("; ".join(refused))
    elif to == "file":
        _to_file(strategies, given.get("target"), replace)
    else:
        _to_registry(record, strategies, given.get("name"), uri, replace)
    return 0


def better(alias: str, strategy: Strategy, path: Path) -> bool:
    """Whether a strategy may take the place of another one's file. Raises `ArgumentError` saying what stands there and why it stays."""
    if not os.path.isfile(path) or _holds(path, strategy):
        return False
    try:
        there = Strategy.load(path)
    except StrategyError:
        return False  # something else: never overwritten without replace=true
    known = there.provenance.get("alias", alias)
    why = f"it holds the winner {known}, not {alias}" if known != alias else why_not(alias, Standing.of(strategy), Standing.of(there))
    if why:
        raise ArgumentError(f"{path} stays as it is: {why}. Give another target, or replace=true")
    return True


def save_file(strategy: Strategy, path: Path, replace: bool) -> None:
    """Write one strategy's JSON. Raises `ArgumentError` where another strategy is in its place."""
    if os.path.isdir(path):
        raise ArgumentError(f"{path} is a folder; give a file, such as {path / 'strategy.json'}, or to=folder")
    target_file(path)
    if os.path.exists(path) and not replace and not _holds(path, strategy):
        raise ArgumentError(f"{path} exists and is something else; give another target, or replace=true")
    strategy.save(path)
    print(path)


def _holds(path: Path, strategy: Strategy) -> bool:
    try:
        return read_bytes(path, MAX_BYTES) == strategy.to_json().encode()
    except FileError:
        return False


def _chosen(record: SearchRecord, strategies: dict[str, Strategy], alias: str | None) -> dict[str, Strategy]:
    if not strategies:
        state = "ended without winners" if record.finished else f"is not finished ({len(record.evaluated())} strategies measured)"
        what = "search with another seed or space" if record.finished else "run the same dato search command to its end"
        raise ArgumentError(f"search {record.search_id} {state}, so there is nothing validated to export; {what}")
    if alias is None:
        return strategies
    if alias not in strategies:
        raise ArgumentError(f"alias is {shown(alias)}; search {record.search_id} has {', '.join(strategies)}")
    return {alias: strategies[alias]}


def _to_file(strategies: dict[str, Strategy], target: str | None, replace: bool) -> None:
    if len(strategies) != 1:
        raise ArgumentError(f"to=file takes one winner; give alias={'|'.join(strategies)}, or to=folder for all")
    ((alias, strategy),) = strategies.items()
    path = Path(target or f"{alias}.json")
    save_file(strategy, path, replace or better(alias, strategy, path))


def _to_registry(record: SearchRecord, strategies: dict[str, Strategy], name: str | None, uri: str | None, replace: bool) -> None:
    from search.publish.registry import register, run_of_search  # MLflow takes seconds to import

    config = record.config
    name = name or (config.get("registry") or {}).get("name") or f"dato-{config['model']['name']}"
    check_names(name)
    settings = config.get("mlflow") or {}
    uri = uri or settings.get("uri")
    if uri:
        tracking_uri({"uri": str(uri)})
    run_id = run_of_search(record.search_id, settings.get("experiment") or f"dato/{config['model']['name']}", uri)
    made = register(name, strategies, run_id, uri=uri, replace=replace)
    for alias, version in made.versions.items():
        why = made.stayed.get(alias)
        print(f"models:/{name}/{version}  (@{alias} stays where it was: {why}; replace=true moves it)" if why else f"models:/{name}@{alias}  (version {version})")
