"""Strategies by name, for a search to begin with or an evaluation: presets, files, registry names, lists, fronts of searches."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from dato.files import FileError, read_json, shown, user_path
from dato.sources import HANDED_OVER, parse_document
from dato.strategy import Strategy, StrategyError
from search.ledger import read_ledger

_MAX_BYTES = 1 << 28
"""Of a list of strategies; each is a few kilobytes."""


def read_given(sources: Sequence[str], most: int) -> list[Strategy]:
    """What a search begins with.

    Args:
        sources: As for `read_sources`.
        most: No more than so many: what is left over is thinned evenly, so that a front keeps both its ends.

    Raises:
        StrategyError: A source that is none of these.
    """
    found = [strategy for _, strategy in read_sources(sources, "search.warm_start")]
    if len(found) <= most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]


def read_sources(sources: Sequence[str], key: str) -> list[tuple[str, Strategy]]:
    """Strategies of each source in turn, with names.

    Args:
        sources: Preset names, strategy JSON files, JSON lists of strategies, ``models:/name@alias``, folders of strategies
            handed over, or folders of searches, whose fronts are taken; of any number of steps and any model.
        key: Of the configuration, for messages.

    Raises:
        StrategyError: A source that is none of these.
    """
    if isinstance(sources, str) or not all(isinstance(s, str) for s in sources):
        raise StrategyError(f"{key} is {shown(sources)}; give a list of presets, files or search folders, such as [paper-b1]")
    return [named for source in sources for named in _read(source, key)]


def _read(source: str, key: str) -> list[tuple[str, Strategy]]:
    path = user_path(source)
    if os.path.isdir(path) and not any((path / name).is_file() for name in HANDED_OVER):
        if not (path / "ledger.jsonl").exists():
            raise StrategyError(f"{key} names the folder {source!r}, which holds neither a search's ledger.jsonl nor a strategy; give the folder of one of these")
        front = [(f"{path.resolve().name}, candidate {c.number}", c.strategy) for c, _ in read_ledger(path / "ledger.jsonl").front()]
        if not front:
            raise StrategyError(f"{key} names the search {source!r}, which measured nothing yet; leave it out")
        return front
    if path.suffix == ".json" and os.path.isfile(path):
        try:
            document = read_json(path, _MAX_BYTES)
        except FileError as error:
            raise StrategyError(f"{source} cannot be read as JSON ({error}); give a strategy file or a list of strategies") from None
        if isinstance(document, list):
            return [(f"{source}, entry {i}", Strategy.from_document(parse_document(one, f"{source}, entry {i}"), f"{source}, entry {i}")) for i, one in enumerate(document)]
    return [(source, Strategy.load(source))]
