"""Ray's autoscaler, where the cluster has one: asked for the machines that a pool could use, until the pool ends."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from search.run.nodes import Node

_log = logging.getLogger(__name__)
_STATUS = "__autoscaling_status"  # ray/autoscaler/_private/constants.py, DEBUG_AUTOSCALING_STATUS
_SEEN = 3
"""Looks in a row after which others are believed to hold something: Ray's figures lag behind what ends and begins."""


def brings_machines() -> bool | None:
    """Whether the joined cluster has an autoscaler that may start machines; None while it has not said so yet.

    Every head started by `ray start` runs a monitor; without a configuration it only reports, and names types of machines `node_<id>`.
    """
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        found = [*status.active_nodes, *status.idle_nodes, *status.pending_nodes, *status.pending_launches]
        return _are_types(n.ray_node_type_name for n in found)
    said = _internal_kv_get(_STATUS)
    report = json.loads(said).get("autoscaler_report") if said else None
    if report is None:
        return None
    return _are_types([*(report.get("node_type_mapping") or {}).values(), *(report.get("active_nodes") or {}), *(report.get("pending_launches") or {})])


def _are_types(names: Iterable[str]) -> bool:
    return any(name and not name.startswith("node_") for name in names)


class Demand:
    """What this process asks the autoscaler for: room for its workers, on top of what others hold.

    The autoscaler takes a request as the size that the whole cluster must have, whatever runs there, and keeps to it until the next
    one: so others' share is asked for too, and it must be taken back. A cluster has one request; the last who asks is heard.

    Args:
        workers: How many workers there should be room for.
        cpus: Of each.
        gpus: Of each.
    """

    def __init__(self, workers: int, cpus: float, gpus: float) -> None:
        self._mine = [{k: v for k, v in (("CPU", cpus), ("GPU", gpus)) if v}] * workers
        self._cpus, self._gpus = cpus, gpus
        self._seen: deque[dict[tuple[str, str], float]] = deque(maxlen=_SEEN)
        self._asked: list[dict[str, float]] = []

    @property
    def asked(self) -> bool:
        """Whether anything is asked for now."""
        return bool(self._asked)

    def ask(self, nodes: Sequence[Node], workers: Mapping[str, int]) -> None:
        """Ask, where the request differs from the last one.

        Args:
            nodes: That are up.
            workers: Of this pool, by node.
        """
        self._seen.append(
            {
                (node.id, kind): node.total.get(kind, 0.0) - node.free.get(kind, 0.0) - each * workers.get(node.id, 0)
                for node in nodes
                for kind, each in (("CPU", self._cpus), ("GPU", self._gpus))
                if each and node.free
            }
        )
        held: dict[str, dict[str, float]] = {}
        for (node_id, kind), first in self._seen[0].items():
            least = min([first, *(look.get((node_id, kind), 0.0) for look in self._seen)])
            if len(self._seen) == _SEEN and least > 1e-6:
                held.setdefault(node_id, {})[kind] = least
        bundles = [*self._mine, *held.values()]
        if bundles != self._asked:
            request_resources(bundles=bundles)
            self._asked = bundles

    def withdraw(self) -> None:
        """Take the request back: idle machines may go. Never raises: the cluster may be gone."""
        if not self._asked or not ray.is_initialized():
            return
        try:
            request_resources(bundles=[])
        except Exception as error:
            _log.warning("cannot take back what was asked of Ray's autoscaler, idle machines may stay up: %s", error)
        self._asked = []
