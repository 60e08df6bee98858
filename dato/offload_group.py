"""The group of diffusers' group offloading that a module's weights belong to (`diffusers.hooks.group_offloading`, 0.42)."""

from __future__ import annotations

from typing import Any

_NAME = "group_offloading"


def group_of(module: Any) -> Any:
    """The offloading group of a block or a model, or None."""
    registry = getattr(module, "__dict__", {}).get("_diffusers_hook")
    hook = registry.get_hook(_NAME) if registry is not None else None
    return getattr(hook, "group", None)
