from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dato.strategy import Strategy
from search.evaluate.shards import Shard
from search.records import UNACCELERATED
from search.run.in_turn import run_in_turn
from search.run.pools import InProcessPool

PLAIN, FAST, SICK = Strategy.full(4), Strategy.uniform(4, 2), Strategy.uniform(4, 3)
BATCHES = [[0, 1], [2, 3], [4]]


@dataclass
class Namer:
    """Its shards tell the strategy's digest as their device; some strategies fail: beside others, with an error in their shard."""

    sick: tuple[Strategy, ...] = ()
    ran: list[tuple[Strategy, ...]] = field(default_factory=list)

    def build(self) -> Namer:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        self.ran.append(tuple(strategies))
        if strategies[0] in self.sick and len(strategies) == 1:
            raise RuntimeError("no luck")
        indices = [i for batch in batches for i in batch]
        return [Shard(torch.empty(0, 0), indices=indices, device=s.digest, error="no luck" if s in self.sick else None) for s in strategies]


def made(shards: Sequence[Shard]) -> list[tuple[str, list[int]]]:
    return [(shard.device, shard.indices) for shard in shards]


class TwoWorkers(InProcessPool):
    size = 2


def test_strategies_share_each_workers_batches_and_keep_their_order() -> None:
    evaluator = Namer()
    shards, errors = run_in_turn(TwoWorkers(evaluator), {"unaccelerated": PLAIN, "fast": FAST}, BATCHES)
    assert errors == {}
    assert {name: made(found) for name, found in shards.items()} == {
        "unaccelerated": [(PLAIN.digest, [0, 1, 4]), (PLAIN.digest, [2, 3])],
        "fast": [(FAST.digest, [0, 1, 4]), (FAST.digest, [2, 3])],
    }
    assert evaluator.ran == [(PLAIN, FAST)] * 2


def test_one_that_fails_has_an_error_and_the_others_their_shards() -> None:
    evaluator = Namer(sick=(SICK,))
    shards, errors = run_in_turn(InProcessPool(evaluator), {"sick": SICK, UNACCELERATED: PLAIN, "fast": FAST}, BATCHES)
    assert shards.keys() == {UNACCELERATED, "fast"}
    assert evaluator.ran == [(SICK, PLAIN, FAST), (SICK,)], "the others are not made again"
    assert errors.keys() == {"sick"}
    assert "no luck" in errors["sick"]


def test_nothing_more_runs_when_the_unaccelerated_pipeline_fails() -> None:
    evaluator = Namer(sick=(PLAIN, SICK))
    shards, errors = run_in_turn(InProcessPool(evaluator), {"fast": FAST, UNACCELERATED: PLAIN, "sick": SICK}, BATCHES)
    assert errors.keys() == {UNACCELERATED}
    assert UNACCELERATED not in shards
    assert evaluator.ran == [(FAST, PLAIN, SICK), (PLAIN,)]
