from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dato.strategy import Strategy
from search.records import UNACCELERATED
from search.run.in_turn import run_in_turn
from search.run.pools import InProcessPool

PLAIN, FAST, SICK = Strategy.full(4), Strategy.uniform(4, 2), Strategy.uniform(4, 3)
BATCHES = [[0, 1], [2, 3], [4]]


@dataclass
class Namer:
    """Its shards are the strategy's digest and the images; some strategies raise."""

    sick: tuple[Strategy, ...] = ()
    ran: list[tuple[Strategy, ...]] = field(default_factory=list)

    def build(self) -> Namer:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[object]:
        self.ran.append(tuple(strategies))
        if any(s in self.sick for s in strategies):
            raise RuntimeError("no luck")
        return [(s.digest, [i for batch in batches for i in batch]) for s in strategies]


class TwoWorkers(InProcessPool):
    size = 2


def test_strategies_share_each_workers_batches_and_keep_their_order() -> None:
    evaluator = Namer()
    shards, errors = run_in_turn(TwoWorkers(evaluator), {"unaccelerated": PLAIN, "fast": FAST}, BATCHES)
    assert errors == {}
    assert shards == {
        "unaccelerated": [(PLAIN.digest, [0, 1, 4]), (PLAIN.digest, [2, 3])],
        "fast": [(FAST.digest, [0, 1, 4]), (FAST.digest, [2, 3])],
    }
    assert evaluator.ran == [(PLAIN, FAST)] * 2


def test_one_that_fails_has_an_error_and_the_others_their_shards() -> None:
    shards, errors = run_in_turn(InProcessPool(Namer(sick=(SICK,))), {"sick": SICK, UNACCELERATED: PLAIN, "fast": FAST}, BATCHES)
    assert shards.keys() == {UNACCELERATED, "fast"}
    assert errors.keys() == {"sick"}
    assert "no luck" in errors["sick"]


def test_nothing_more_runs_when_the_unaccelerated_pipeline_fails() -> None:
    evaluator = Namer(sick=(PLAIN,))
    shards, errors = run_in_turn(InProcessPool(evaluator), {"fast": FAST, UNACCELERATED: PLAIN}, BATCHES)
    assert (shards, errors.keys()) == ({}, {UNACCELERATED})
    assert evaluator.ran == [(FAST, PLAIN), (PLAIN,)]
