"""What configuration keys were called in earlier versions: old ledgers are read by it, and what is typed is refused with the new name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {
    "restart": "fresh_start",
    "replay_latency": "latency_from",
    "data.references": "data.num_reference_images",
    "protocol.bootstrap": "protocol.interval_groups",
    "space.group": "space.steps_per_gene",
    "space.inert": "space.depths_without_pruning",
    "search.stalled": "search.patience",
    "search.score_weight": "search.latency_weight",
    "search.promoted_ranks": "search.promote_ranks",
    "evaluation.fresh": "evaluation.held_out",
    "cluster.tries": "cluster.max_attempts",
    "cluster.join_s": "cluster.wait_for_nodes_s",
    "cluster.start_s": "cluster.load_timeout_s",
    "cluster.deadline_s": "cluster.batch_timeout_s",
}
"""Old name of a key to its name now."""
VALUES = {("search.mode", "steady"): "asynchronous", ("cluster.code", "ship"): "upload"}
"""Key, by its name now, and an old value of it to that value now."""


def by_current_names(config: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """A recorded configuration with the names of this version."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = KEYS.get(section + key, section + key)
        if isinstance(value, Mapping) and not section:
            value = by_current_names(value, f"{key}.")
        elif isinstance(value, str):
            value = VALUES.get((name, value), value)
        found[name.removeprefix(section)] = value
    return found
