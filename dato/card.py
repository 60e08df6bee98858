"""A strategy's card on disk: what it is, for which model, what it costs and gains, how to use and to reproduce it.

Everything on it comes from the strategy's own provenance, so that anybody who has a strategy can print its card.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dato.card_text import card_json, card_markdown
from dato.files import FileError, read_bytes, refuse_target
from dato.sources import MAX_BYTES
from dato.strategy import Strategy, StrategyError

__all__ = ["FILES", "card_json", "card_markdown", "write_card"]

FILES = ("strategy.json", "card.json", "card.md")


def write_card(strategy: Strategy, folder: Path, replace: bool = False) -> Path:
    """Write ``strategy.json``, ``card.json`` and ``card.md`` into `folder`, each of which `Strategy.load` reads.

    Raises:
        StrategyError: The folder holds another strategy and `replace` is false, or cannot be written.
    """
    texts = dict(zip(FILES, (strategy.to_json(), card_json(strategy), card_markdown(strategy)), strict=True))
    present = folder / FILES[0]
    if not replace and os.path.exists(present) and not _holds(present, texts[FILES[0]]):
        raise StrategyError(f"{present} exists and is another strategy; give another folder, or replace=true")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if why := refuse_target(folder / name):
                raise StrategyError(f"cannot write {folder / name}: {why}; give another folder")
            partial = folder / f".{name}.tmp"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        for name in texts:
            with suppress(OSError):
                (folder / f".{name}.tmp").unlink()
        raise StrategyError(f"cannot write into {folder}: {error.strerror}; give a folder that you may write") from None
    return folder


def _holds(path: Path, text: str) -> bool:
    try:
        return read_bytes(path, MAX_BYTES) == text.encode()
    except FileError:
        return False
