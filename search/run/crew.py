"""The workers that there are, and where more may go: follows the machines of the joined cluster as they come and go.

Every worker is bound to one machine and ends with it. A machine that joins is first looked at as those at the start were; one that
cannot run workers is left out with a message.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.run.autoscaler import Demand
from search.run.health import Health
from search.run.nodes import Node, nodes, places
from search.run.pools import WorkerError
from search.run.slot import Slot

_log = logging.getLogger(__name__)
LOOK_S = 2.0
"""Seconds between two looks at the machines; longer where a look takes long."""
SETTLE_S = 3.0
"""Seconds within which Ray's free resources may still hold what a worker took."""
PLACE_S = 120.0
"""Seconds that a worker's process may take to begin: after that another job has the room, and it is looked for elsewhere."""
ANSWER_S = 120.0
"""Seconds that a machine which has just joined may take to answer."""


class Gate(Protocol):
    """Says which machines may have workers."""

    def ask(self, node: Node) -> Any:
        """Begin to look at a machine: the reference of its answer; None where it has been looked at."""
        ...

    def refusal(self, node: Node, answer: Any) -> str:
        """Why it may have none, by its answer; empty where it may. Raises a Ray error where it did not answer."""
        ...


class Crew:
    """The workers of one pool.

    Args:
        make: The remote class of a worker and the arguments that it is made with.
        most: How many workers; None for as many as there is room for.
        cpus: Reserved for each.
        gpus: Reserved for each.
        tries: How often in a row a worker is started at one place at most.
        health: What is known of the workers, by number.
        latency_device: Part of the names of the devices whose latency counts; None for all.
        gate: Which machines may have workers; None for all.
        demand: What the autoscaler is asked for; None for nothing.
        say: Told in a line who joins and leaves.
    """

    def __init__(
        self,
        make: tuple[Any, tuple[Any, ...]],
        *,
        most: int | None,
        cpus: float,
        gpus: float,
        tries: int,
        health: Health,
        latency_device: str | None = None,
        gate: Gate | None = None,
        demand: Demand | None = None,
        say: Callable[[str], None] = _log.info,
    ) -> None:
        self._class, self._arguments = make
        self._most, self._cpus, self._gpus = most, cpus, gpus
        self._gate, self._demand, self._say = gate, demand, say
        self._tries, self._health, self._latency_device = tries, health, latency_device
        self.slots: dict[int, Slot] = {}
        self.starting: dict[Any, Slot] = {}
        """Workers that load, by the reference of their answer."""
        self.launched_at = -1e9
        """When a worker was last given a place."""
        self.begun = False
        """Whether work has begun: who comes now comes late."""
        self._numbers = itertools.count()
        self._may: dict[str, bool] = {}
        """Machines that were looked at, and whether they may have workers."""
        self._asked: dict[str, tuple[Any, float]] = {}
        self._taken: dict[str, float] = {}
        """Machines where another job took the room, until when they are left alone."""
        self._due = 0.0

    @property
    def working(self) -> int:
        """Workers that are there or starting."""
        return sum(not slot.unfit for slot in self.slots.values())

    def launch(self, slot: Slot) -> None:
        """Start a slot's worker, or its next life, on its machine."""
        options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node, soft=False)}
        slot.actor = self._class.options(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, **options).remote(*self._arguments)
        slot.device, slot.log, slot.starts = "", "", slot.starts + 1
        slot.asked_at = self.launched_at = time.monotonic()
        slot.placed_at, slot.placing = float("inf"), slot.actor.place.remote()
        self.starting[slot.actor.ready.remote()] = slot

    def started(self, ref: Any) -> tuple[Slot, str | None]:
        """Take in a worker that loaded, or what kept it from loading."""
        slot = self.starting.pop(ref)
        others = {s.device for s in self.slots.values() if s.device}
        error = slot.load(ref)
        if error is None:
            slot.timed = self._latency_device is None or self._latency_device.lower() in slot.device.lower()
            if self._latency_device is None and others and slot.device not in others and self.begun:
                _log.warning(
                    "worker %d (node %s) joins with another device, %s, so that its latencies do not compare with those of %s; set cluster.latency_device to one of them",
                    slot.number, slot.host, slot.device, " and ".join(sorted(others)),
                )  # fmt: skip
        return slot, error

    def is_gone(self, slot: Slot) -> bool:
        """Whether a slot's machine has gone, so that what happened there is its fault."""
        return all(n.id != slot.node for n in nodes())

    def try_again(self, slot: Slot) -> bool:
        """A worker did not load: once more, or never again. False where its machine has gone."""
        if self.is_gone(slot):
            self.drop(slot, "is gone")
            return False
        if slot.starts < self._tries:
            self.launch(slot)
        else:
            self._leave_out(slot, f"does not load, also after {slot.starts} starts", slot.errors[-1])
        return True

    def replace(self, slot: Slot) -> None:
        """A worker's process died or is broken: another takes its place, where that is not hopeless."""
        ray.kill(slot.actor)
        slot.device = ""
        if self._health.lives_broken(slot.number) < self._tries:
            self.launch(slot)
        else:
            self._leave_out(slot, f"fails with everything, also after {self._tries} starts", f"{slot.errors[-1]} ({slot.where})")

    def _leave_out(self, slot: Slot, why: str, error: str) -> None:
        slot.unfit = True
        _log.warning("worker %d (node %s) %s, and is left out: %s", slot.number, slot.host, why, error)

    def is_hopeless(self, alone_since: float, patience_s: float, *, idle: bool) -> bool:
        """Whether nobody is to be waited for any longer, where nobody works: machines may take a while to come, and their workers one more to load.

        Args:
            alone_since: Since when nobody works.
            patience_s: How long to wait for a machine, and for its worker.
            idle: Whether there are workers, and none of them may have what is left.
        """
        # Where latency counts on some devices, one of those may come.
        if (self.slots and not self.working) or (idle and not self.starting and not self._latency_device):
            return True
        return time.monotonic() > (max(alone_since, self.launched_at) if self.starting else alone_since) + patience_s

    def why_gone(self, waited_s: float) -> str:
        """Why no worker is left, and what to do."""
        slots = list(self.slots.values())
        if slots and all(s.unfit for s in slots):
            return (
                f"every worker fails with everything, also with what worked before and after {self._tries} starts ({slots[0].errors[-1]}, {slots[0].where}); no candidate "
                "was recorded as failed for that. Mend it, then run the same command again: the ledger holds every result"
            )
        last = next((s.errors[-1] for s in slots if s.errors), "their machines left the cluster")
        return (
            f"no worker is left and none came back within {waited_s:.0f} s ({last}); "
            "bring machines back, then run the same command again: the ledger holds every result"
        )

    def drop(self, slot: Slot, why: str) -> None:
        """A slot's machine has gone, or its room has: what of the machine to say."""
        ray.kill(slot.actor)
        for ref in [r for r, s in self.starting.items() if s is slot]:
            del self.starting[ref]
        if self.slots.pop(slot.number, None):
            self._say(f"node {slot.host} {why}: a worker less, {self.working} now")

    def require_timed(self) -> None:
        """Raise `WorkerError` where latency counts on devices of which no worker has one."""
        if self._latency_device and not any(s.timed for s in self.slots.values() if s.device):
            there = ", ".join(sorted({s.device for s in self.slots.values() if s.device}))
            raise WorkerError(f"cluster.latency_device is {self._latency_device!r}, and no worker has such a device; there are: {there}")

    def look(self) -> list[Slot]:
        """Follow the machines, where it is time to: workers are started where there is room. The slots that were dropped, as theirs went."""
        now = time.monotonic()
        if now < self._due:
            return []
        try:
            found = nodes()
            if self._demand:
                self._demand.ask(found, Counter(s.node for s in self.slots.values() if not s.unfit))
        except (ray.exceptions.RayError, RuntimeError, OSError) as error:  # a head that starts anew: who works goes on
            _log.warning("cannot ask Ray for its machines, and will again: %s", error)
            self._due = time.monotonic() + LOOK_S
            return []
        self._take_places(now)
        gone = self._gone({n.id for n in found}, now)
        for slot, why in gone:
            self.drop(slot, why)
        self._fill([n for n in found if not n.draining and self._admitted(n, now)], now)
        self._due = time.monotonic() + max(LOOK_S, 20 * (time.monotonic() - now))
        return [slot for slot, _ in gone]

    def _take_places(self, now: float) -> None:
        waiting = {s.placing: s for s in self.slots.values() if s.placing is not None}
        if waiting:
            for ref in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                waiting[ref].take_place(now)

    def _gone(self, there: set[str], now: float) -> list[tuple[Slot, str]]:
        """Slots whose machine is no more; those that load too, and those that found no room. What is running says so itself."""
        gone = []
        for slot in self.slots.values():
            if slot.node not in there:
                gone.append((slot, "is gone"))
            elif slot.placing is not None and now > slot.asked_at + PLACE_S:
                self._taken[slot.node] = now + PLACE_S
                gone.append((slot, "has no room, which another job took"))
        return gone

    def _admitted(self, node: Node, now: float) -> bool:
        """Whether a machine may have workers; asks it where nobody has."""
        if node.id in self._may or self._gate is None:
            return self._may.get(node.id, True)
        if not places(node.total, self._cpus, self._gpus):
            return False  # such as a head without GPU: nobody wants to know what it lacks
        if node.id not in self._asked:
            answer = self._gate.ask(node)
            if answer is None:
                self._may[node.id] = True
                return True
            self._asked[node.id] = (answer, now)
        answer, since = self._asked[node.id]
        if ray.wait([answer], timeout=0)[0]:
            try:
                refusal = self._gate.refusal(node, ray.get(answer))
            except ray.exceptions.RayError as error:
                refusal = f"it does not answer: {str(error).strip().splitlines()[-1]}"
        elif now > since + ANSWER_S:
            refusal = f"no answer within {ANSWER_S:.0f} s"
        else:
            return False
        del self._asked[node.id]
        self._may[node.id] = not refusal
        if refusal:
            _log.warning("node %s has joined and is left out: %s", node.name, refusal)
        return not refusal

    def _fill(self, found: list[Node], now: float) -> None:
        """Start workers where there is room, on the machines with the fewest first."""
        here = Counter(s.node for s in self.slots.values())
        unseen = Counter(s.node for s in self.slots.values() if s.unfit or s.placing is not None or now < s.placed_at + SETTLE_S)
        room = {
            n.id: places(n.total, self._cpus, self._gpus, n.free) - unseen[n.id]
            for n in found
            if now >= self._taken.get(n.id, 0.0)
        }  # fmt: skip
        names = {n.id: n.name for n in found}
        begun: Counter[str] = Counter()
        while self._most is None or self.working < self._most:
            free = [n for n, left in room.items() if left > 0]
            if not free:
                break
            node = min(free, key=lambda n: here[n])
            slot = Slot(next(self._numbers), node, names[node])
            self.slots[slot.number] = slot
            self.launch(slot)
            room[node] -= 1
            here[node] += 1
            begun[node] += 1
        if self.begun:
            for node, count in begun.items():
                self._say(f"node {names[node]} has room: {count} worker{'s' if count > 1 else ''} more, {self.working} now")

    def close(self) -> None:
        """End the workers, and take back what the autoscaler was asked for."""
        if ray.is_initialized():
            for slot in self.slots.values():
                ray.kill(slot.actor)
        if self._demand:
            self._demand.withdraw()
        self.starting.clear()
