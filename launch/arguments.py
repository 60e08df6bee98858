"""``key=value`` arguments of the commands that need no configuration, and so no Hydra."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dato.files import refuse_target, shown, user_path
from dato.mlflow_store import StoreError, check_address
from search.fields import wrong_kind
from search.ledger import read_ledger
from search.records import SearchRecord


class ArgumentError(ValueError):
    """Arguments that a command does not take: the message says what was given, what is allowed and what to do."""


def parse(command: str, arguments: Sequence[str], takes: Mapping[str, str], required: Sequence[str] = ()) -> dict[str, str]:
    """The arguments by key.

    Args:
        command: For messages.
        arguments: ``key=value`` words.
        takes: Allowed keys, each with what it means.
        required: Keys that must be there.

    Raises:
        ArgumentError: Another word, an unknown, repeated or missing key.
    """
    usage = "it takes " + ", ".join(f"{k}={v}" for k, v in takes.items())
    found: dict[str, str] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        key = key.removeprefix("--")
        if not equals or key not in takes:
            raise ArgumentError(f"dato {command} was given {shown(word)}; {usage}")
        if "\0" in value:
            raise ArgumentError(f"{key} is {shown(value)}; give a text without NUL characters, which no file and no name can have")
        if key in found:
            raise ArgumentError(f"dato {command} was given {key} twice ({shown(found[key])} and {shown(value)}); give it once")
        found[key] = value
    missing = [k for k in required if not found.get(k)]
    if missing:
        raise ArgumentError(f"dato {command} needs {' and '.join(f'{k}=...' for k in missing)}, but was given {shown(list(arguments))}; {usage}")
    return found


def flag(found: Mapping[str, str], key: str) -> bool:
    """A key that is true or false, false where it is not given."""
    value = found.get(key, "false").lower()
    if value not in ("true", "false"):
        raise ArgumentError(f"{key} is {shown(found[key])}; allowed are true and false")
    return value == "true"


def choice(found: Mapping[str, str], key: str, allowed: Sequence[str]) -> str:
    """A key with a few values, the first where it is not given."""
    value = found.get(key, allowed[0])
    if value not in allowed:
        raise ArgumentError(f"{key} is {shown(value)}; allowed are {', '.join(allowed)}")
    return value


def search_folder(given: str) -> Path:
    """The folder of a search. Raises `ArgumentError` where it holds no ledger."""
    folder = user_path(given)
    if not os.path.exists(folder / "ledger.jsonl"):
        raise ArgumentError(f"folder is {shown(given)}, which holds no ledger.jsonl; give the folder of a search, such as outputs/<search id>")
    return folder


def target_file(given: Path, key: str = "target") -> Path:
    """A file to write. Raises `ArgumentError` where something that is no file is in its place: a device would be replaced by a file."""
    if why := refuse_target(given):
        raise ArgumentError(f"{key} is {shown(str(given))}: {why}; give a file in a folder that exists")
    return given


def tracking_uri(found: Mapping[str, str]) -> str | None:
    """The key ``uri``, None where it is not given. Raises `ArgumentError` where MLflow knows no such address."""
    uri = found.get("uri")
    if uri is not None:
        try:
            check_address(uri, "uri")
        except StoreError as error:
            raise ArgumentError(str(error)) from None
    return uri


def read_search(folder: Path) -> SearchRecord:
    """The record of the search in a folder.

    Raises:
        LedgerError: Its ledger cannot be read.
        ArgumentError: Its configuration holds a value of the wrong kind.
    """
    from launch.schema import SearchKeys, groups_of  # Hydra's, which dato import does without

    path = folder / "ledger.jsonl"
    record = read_ledger(path)
    groups = {"": SearchKeys, **groups_of(SearchKeys)}
    for section, group in groups.items():
        if wrong := wrong_kind(group, (record.config.get(section) or {}) if section else record.config, section):
            raise ArgumentError(f"{path}, line 1: {wrong}; restore the file, or give another search")
    return record
