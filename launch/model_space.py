"""What is searched on a model that no configuration of ours is for: where it has a transformer, the space of transformers, at depths that fit its blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from dato.files import user_path
from dato.strategy import FULL

_SAYS_ITSELF = ("model", "space", "experiment")
"""Groups of which each choice says what is searched."""
_BLOCKS = ("num_layers", "num_single_layers")
"""How many blocks each list has, in the configuration of diffusers' transformers."""


def space_of_model(words: Sequence[str]) -> list[str]:
    """Overrides to go before the given ones, where these set model.path to a folder with a transformer and leave what is searched open; else [].

    A model on the hub is not looked at: `model=flux` and the like are for these, and `space=transformer` for others.

    Args:
        words: ``key=value``, as they come from the shell.
    """
    given = dict(word.removeprefix("--").lstrip("+").partition("=")[::2] for word in words)
    path = given.get("model.path", "").strip("'\"")
    if not path or any(group in given for group in _SAYS_ITSELF):
        return []
    try:
        folder = user_path(path)
        if not (json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("transformer") or [None])[0]:
            return []
        blocks = _blocks(folder / "transformer" / "config.json")
    except (OSError, ValueError, AttributeError, TypeError):
        return []  # no model, which is said where it is loaded
    depths = f"space.depths=[{','.join(map(str, fitting_depths(blocks)))}]"
    return ["space=transformer", *([depths] if blocks > 1 else [])]


def fitting_depths(blocks: int) -> tuple[int, ...]:
    """Cache depths for a transformer of so many blocks: 0, 1, a twelfth to two thirds of them, and all."""
    found = {0, 1, *(math.ceil(blocks * share) for share in (1 / 12, 1 / 6, 1 / 3, 1 / 2, 2 / 3))}
    return (*sorted(d if d != FULL else d - 1 for d in found if d < blocks), FULL)


def _blocks(config: Path) -> int:
    settings = json.loads(config.read_text(encoding="utf-8"))
    return sum(n for n in (settings.get(name, 0) for name in _BLOCKS) if isinstance(n, int))
