"""The whole search on a toy evaluator: no pipeline, no Ray, no MLflow."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dato.strategy import Strategy
from search.driver import Driver
from search.evaluate import Protocol
from search.ledger import Ledger, LedgerError, read_ledger
from search.nsga2 import Nsga2
from search.plan import SearchPlan
from search.records import UNACCELERATED, Measurement, SearchRecord
from search.space import SearchSpace
from search.winners import SearchFailed, choose_winners
from search.workers import InProcessPool

COST = {0: 0.01, 1: 0.1, 12: 1.0}


class Toy:
    """A deterministic evaluator; "fails": a candidate whose digest starts with one of these letters raises."""

    def __init__(self, fails: str = "", pause: float = 0.0) -> None:
        self.fails, self.pause, self.evaluated = fails, pause, list[str]()

    def build(self) -> Toy:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
        time.sleep(self.pause)
        found = []
        for s in strategies:
            if len(strategies) == 1 and s.digest[0] in self.fails:
                raise RuntimeError(f"no luck with {s.digest}")
            self.evaluated.append(s.digest)
            time_ms = sum(COST[x.cache_depth] * (1 - 0.3 * x.prune_ratio) for x in s)
            fid = 10 + sum(1 - COST[x.cache_depth] for x in s) ** 2 / 10 + sum(abs(x.prune_ratio - 0.5) for x in s)
            found.append(Measurement(fid=fid, fid_low=fid - 1, fid_high=fid + 1, images=4, latency_ms=time_ms))
        return found


def search(folder: Path, evaluator: Toy, generations: int = 4, seed: int = 0, latencies: dict[str, float] | None = None) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", f"toy-{seed}", {"seed": seed}, {})
    try:
        return Driver(
            ledger=ledger,
            algorithm=Nsga2(space=SearchSpace(steps=8), population=6, seed=seed),
            plan=SearchPlan(generations=generations, population=6),
            protocol=Protocol(images=4, batch=4),
            pool=InProcessPool(evaluator),
            measure=lambda shards: shards[0],  # type: ignore[arg-type,return-value]
            baselines={UNACCELERATED: Strategy.full(8), "rival": Strategy.uniform(8, 3)},
            latencies=latencies,
        ).run()
    finally:
        ledger.close()


def outcome(record: SearchRecord) -> object:
    points = [(c.strategy.digest, m.fid, m.latency_ms) for c, m in record.front()]
    return points, record.hypervolumes, {a: w.candidate.strategy.digest for a, w in record.winners.items()}


def test_a_search_ends_with_winners_from_its_front(tmp_path: Path) -> None:
    record = search(tmp_path, Toy())
    assert record.finished
    assert len(record.results) == 24
    assert set(record.winners) == {"quality", "balanced", "fastest"}
    on_front = {c.strategy.digest for c, _ in record.front()}
    assert {w.candidate.strategy.digest for w in record.winners.values()} <= on_front
    assert record.hypervolumes == sorted(record.hypervolumes)
    assert outcome(read_ledger(tmp_path / "ledger.jsonl")) == outcome(record)


def test_a_finished_search_is_not_paid_for_again(tmp_path: Path) -> None:
    first = search(tmp_path, Toy())
    idle = Toy()
    assert outcome(search(tmp_path, idle)) == outcome(first)
    assert idle.evaluated == []


def test_recorded_latencies_repeat_a_search(tmp_path: Path) -> None:
    first = search(tmp_path / "a", Toy())
    recorded = {c.strategy.digest: m.latency_ms for c, m in [*first.evaluated(), *first.baselines.values()]}
    assert outcome(search(tmp_path / "b", Toy(), latencies=recorded)) == outcome(first)
    with pytest.raises(LedgerError, match="no latency is recorded"):
        search(tmp_path / "c", Toy(), seed=1, latencies=recorded)


def test_failures_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    record = search(tmp_path, Toy(fails="01234"))
    failed = [m for m in record.results.values() if not m.ok]
    assert failed
    assert all("no luck" in (m.error or "") for m in failed)
    assert record.finished


def test_when_everything_fails_the_first_error_is_shown(tmp_path: Path) -> None:
    class Broken(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if len(strategies) == 1:
                raise RuntimeError("the device is gone")
            return super().run(strategies, batches)

    with pytest.raises(SearchFailed, match="all 6 candidates of the first generation failed; the first error: RuntimeError: the device is gone"):
        search(tmp_path, Broken())


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_driver import Toy, search
search(Path(sys.argv[1]), Toy(pause=0.02))
"""


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_front(tmp_path: Path) -> None:
    undisturbed = outcome(search(tmp_path / "calm", Toy()))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    folder, chance = tmp_path / "killed", random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
        before = _size(folder)
        deadline = time.monotonic() + 60
        while process.poll() is None and _size(folder) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
    record = search(folder, Toy())
    assert outcome(record) == undisturbed
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    results = [line for line in lines if '"event":"result"' in line]
    assert len(results) == 24


def _size(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_winners_obey_their_definitions(tmp_path: Path) -> None:
    record = search(tmp_path, Toy(), generations=6)
    _, plain = record.baselines[UNACCELERATED]
    chosen = choose_winners(record, winner_speedup=2.0)
    points = {c.number: m for c, m in record.front()}
    fastest, quality = points[chosen["fastest"].number], points[chosen["quality"].number]
    good = [m for m in points.values() if m.fid <= plain.fid_high]
    assert fastest.latency_ms == (min(m.latency_ms for m in good) if good else fastest.latency_ms)
    quick = [m for m in points.values() if plain.latency_ms / m.latency_ms >= 2.0]
    assert quality.fid == min(m.fid for m in quick)
