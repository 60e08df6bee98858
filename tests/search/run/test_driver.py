"""The whole search on a toy evaluator: no pipeline, no Ray, no MLflow."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from dato.strategy import Step, Strategy
from search.evaluate.evaluator import Protocol, Shard
from search.evaluate.shard_store import KeptShards
from search.ledger import Ledger, LedgerError, read_ledger
from search.optimize.asynchronous import SteadyNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.objectives import Objectives
from search.optimize.space import SearchSpace
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate, Measurement, SearchRecord
from search.run.driver import Driver
from search.run.pools import InProcessPool
from search.run.settings import SearchPlan, has_stalled

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


def search(
    folder: Path, evaluator: Toy, generations: int = 4, seed: int = 0, latencies: dict[tuple[str, int], float] | None = None, retry_failed: bool = False,
    **plan: Any
) -> SearchRecord:  # fmt: skip
    ledger = Ledger(folder / "ledger.jsonl", f"toy-{seed}", {"seed": seed}, {})
    chosen = SearchPlan(generations=generations, population=6, **plan)
    algorithm = SteadyNsga2 if chosen.mode == "asynchronous" else Nsga2
    try:
        return Driver(
            ledger=ledger,
            algorithm=algorithm(space=SearchSpace(steps=8), population=6, seed=seed, objectives=chosen.objectives.count),
            plan=chosen,
            protocol=Protocol(images=4, batch=4),
            pool=InProcessPool(evaluator),
            measure=lambda shards: shards[0],  # type: ignore[arg-type,return-value]
            baselines={UNACCELERATED: Strategy.full(8), "rival": Strategy.uniform(8, 3)},
            latencies=latencies,
            retry_failed=retry_failed,
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
    recorded = first.latencies
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
                time.sleep(0.02)
                raise RuntimeError("the device is gone")
            return super().run(strategies, batches)

    with pytest.raises(SearchFailed, match=r"all of the first 6 candidates failed; .*: the device is gone. Mend it, .* fresh_start=true"):
        search(tmp_path, Broken())
    failed = read_ledger(tmp_path / "ledger.jsonl").results.values()
    assert all(m.seconds >= 0.02 for m in failed), "the time that failures took is counted"
    with pytest.raises(SearchFailed, match="all of the first 6 candidates failed"):
        search(tmp_path / "steady", Broken(), mode="asynchronous")


def test_limits_end_a_search(tmp_path: Path) -> None:
    assert len(search(tmp_path / "a", Toy(), max_candidates=10).results) == 12, "no generation begins after 10 candidates"
    assert len(search(tmp_path / "b", Toy(), max_candidates=10, mode="asynchronous").results) == 10
    assert len(search(tmp_path / "c", Toy(pause=0.05), generations=500, max_minutes=0.01).results) < 60
    stalled = search(tmp_path / "d", Toy(), generations=500, patience=3)
    assert has_stalled(stalled.hypervolumes, 3)
    assert not has_stalled(stalled.hypervolumes[:-1], 3)
    assert stalled.finished


def test_candidates_beyond_a_limit_never_win(tmp_path: Path) -> None:
    record = search(tmp_path, Toy(), objectives=Objectives(max_latency_ms=4.0))
    assert all(w.searched.latency_ms <= 4.0 for w in record.winners.values())
    with pytest.raises(SearchFailed, match="no candidate keeps the limits"):
        search(tmp_path / "b", Toy(), objectives=Objectives(max_fid=1.0))


def test_a_single_score_picks_its_best(tmp_path: Path) -> None:
    scored = Objectives(latency_weight=3.0)
    record = search(tmp_path, Toy(), generations=8, objectives=scored)
    best = min(scored.values(m) for _, m in record.evaluated())
    assert scored.values(record.winners["balanced"].searched) == best


def test_a_steady_search_continues_in_the_order_of_its_ledger(tmp_path: Path) -> None:
    whole = outcome(search(tmp_path / "a", Toy(), mode="asynchronous"))

    class Stops(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if len(self.evaluated) > 12:
                raise KeyboardInterrupt
            return super().run(strategies, batches)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", Stops(), mode="asynchronous")
    assert outcome(search(tmp_path / "b", Toy(), mode="asynchronous")) == whole


class Images:
    """Gives each image one feature, the strategy's quality with some noise of the image's own."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}

    def build(self) -> Images:
        return self

    def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
        shards = []
        for s in strategies:
            indices = [i for batch in batches for i in batch]
            self.made[s.digest] = self.made.get(s.digest, 0) + len(indices)
            noise = torch.tensor([random.Random(f"{s.digest}{i}").gauss(0, 0.5) for i in indices])
            quality = 10 + sum(1 - COST[x.cache_depth] for x in s) ** 2 / 10
            time_ms = sum(COST[x.cache_depth] * (1 - 0.3 * x.prune_ratio) for x in s)
            shards.append(Shard((quality + noise)[:, None], batch_ms=[time_ms] * len(batches), seconds=len(indices) / 100, batch=4))
        return shards


def of_shards(shards: Sequence[Shard]) -> Measurement:
    features = torch.cat([s.features for s in shards])
    return Measurement(
        fid=float(features.mean()) + 10 / len(features), images=len(features), latency_ms=shards[0].batch_ms[0], seconds=sum(s.seconds for s in shards)
    )


def search_in_steps(folder: Path, evaluator: Images, **plan: Any) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "steps", {}, {})
    chosen = SearchPlan(generations=5, population=8, **plan)
    try:
        return Driver(
            ledger=ledger,
            algorithm=(SteadyNsga2 if chosen.mode == "asynchronous" else Nsga2)(space=SearchSpace(steps=8), population=8, seed=0),
            plan=chosen,
            protocol=Protocol(images=40, fidelities=[8, 20], batch=4),
            pool=InProcessPool(evaluator),
            measure=of_shards,
            baselines={UNACCELERATED: Strategy.full(8)},
            kept=KeptShards(folder / "kept"),
        ).run()
    finally:
        ledger.close()


@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
def test_promotion_pays_for_new_images_only_and_compares_equal_counts(tmp_path: Path, mode: str) -> None:
    evaluator = Images()
    record = search_in_steps(tmp_path, evaluator, mode=mode)
    assert len(record.results) == 40
    assert {m.images for m in record.results.values()} == {8}
    assert record.images == 40
    low, middle, high = (record.front(images) for images in (8, 20, 40))
    assert {c.number for c, _ in middle} <= {c.number for c, _ in low} == {n for n, more in record.promotions.items() if 20 in more}
    assert {n for n, more in record.promotions.items() if 40 in more} == {c.number for c, _ in middle}
    assert record.front() == high
    won = {w.candidate.strategy.digest for w in record.winners.values()}
    for n, candidate in record.candidates.items():
        wanted = max([8, *record.promotions.get(n, {})]) + (40 if candidate.strategy.digest in won else 0)
        assert evaluator.made[candidate.strategy.digest] == wanted
        if n in record.promotions:
            # In one piece or in three, the same numbers.
            whole = of_shards(Images().run([candidate.strategy], Protocol(images=40, batch=4).batches(last=20)))
            assert record.promotions[n][20].fid == whole.fid
    assert all(w.searched.images == 40 for w in record.winners.values())
    assert not (tmp_path / "kept").exists(), "nothing is left behind"


def test_lost_shards_cost_time_and_nothing_else(tmp_path: Path) -> None:
    undisturbed = search_in_steps(tmp_path / "a", Images())

    class Forgets(KeptShards):
        def get(self, number: int, images: int) -> None:
            path = self._path(number, images)
            path.write_bytes(path.read_bytes()[:40])
            assert super().get(number, images) is None

    folder = tmp_path / "b"
    ledger = Ledger(folder / "ledger.jsonl", "steps", {}, {})
    record = Driver(
        ledger=ledger,
        algorithm=Nsga2(space=SearchSpace(steps=8), population=8, seed=0),
        plan=SearchPlan(generations=5, population=8),
        protocol=Protocol(images=40, fidelities=[8, 20], batch=4),
        pool=InProcessPool(Images()),
        measure=of_shards,
        baselines={UNACCELERATED: Strategy.full(8)},
        kept=Forgets(folder / "kept"),
    ).run()
    ledger.close()
    assert outcome(record) == outcome(undisturbed)


def test_a_full_disk_for_kept_features_costs_time_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    undisturbed = search_in_steps(tmp_path / "a", Images())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "kept").write_text("in the way")  # nothing can be written into a folder of this name
    evaluator = Images()
    assert outcome(search_in_steps(tmp_path / "b", evaluator)) == outcome(undisturbed)
    assert [r.getMessage().count("features are not kept in") for r in caplog.records] == [1]
    promoted = [undisturbed.candidates[n].strategy.digest for n in undisturbed.promotions]
    assert all(evaluator.made[digest] > 20 for digest in promoted)


@pytest.mark.parametrize("limits", [{}, {"min_speedup": 2.0}, {"max_fid": 11.0}, {"max_fid": 0.1}])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_promising_is_the_same_result_by_result_as_all_at_once(tmp_path: Path, limits: dict[str, float], ranks: int) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "steps", {}, {})
    plan = SearchPlan(generations=9, population=8, promote_ranks=ranks, objectives=Objectives(**limits))
    driver = Driver(
        ledger=ledger, algorithm=Nsga2(space=SearchSpace(steps=8), population=8, seed=0), plan=plan,
        protocol=Protocol(images=40, fidelities=[8], batch=4), pool=InProcessPool(Images()), measure=of_shards, baselines={}, kept=KeptShards(tmp_path / "kept"),
    )  # fmt: skip
    ledger.baseline(Candidate(number=-1, generation=-1, strategy=Strategy.full(8), origin=UNACCELERATED), Measurement(fid=10.0, images=8, latency_ms=8.0))
    chance, strategies = random.Random(ranks), set()
    while len(strategies) < 60:
        strategies.add(Strategy(tuple(Step(chance.choice((0, 1, 12)), 0.3) for _ in range(8))).canonical())
    for number, strategy in enumerate(sorted(strategies, key=lambda s: s.digest)):
        candidate = Candidate(number=number, generation=0, strategy=strategy)
        # Few values, so that there are ties.
        m = Measurement(fid=chance.randint(9, 14), images=8, latency_ms=chance.randint(1, 8)) if chance.random() < 0.9 else Measurement(error="unwell")
        ledger.ask(candidate)
        ledger.result(number, m)
        if m.ok:
            assert {c.number for c, _ in driver._promise(candidate, m)} == {c.number for c, _ in driver._promising(8, ranks)}
    ledger.close()


def test_children_know_their_parents(tmp_path: Path) -> None:
    for mode in ("generational", "asynchronous"):
        record = search(tmp_path / mode, Toy(), mode=mode, generations=6)
        for number, candidate in record.candidates.items():
            assert candidate.origin == ("offspring" if candidate.parents else "initial")
            assert all(0 <= parent < number for parent in candidate.parents)
            assert len(candidate.parents) <= 2
            if number < 6:
                assert candidate.origin == "initial"
        assert sum(len(c.parents) == 2 for c in record.candidates.values()) > 10
        # Most of a child's steps are one of its parents'.
        for c in record.candidates.values():
            if c.parents:
                genes = [{record.candidates[p].strategy[i] for p in c.parents} for i in range(8)]
                assert sum(c.strategy[i] in genes[i] or c.strategy[i].cache_depth == 0 for i in range(8)) >= 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generations": 0}, "search.generations is 0; give an integer of at least 1"),
        ({"mode": "async"}, "search.mode is 'async'; allowed are generational and asynchronous"),
        ({"latency": "guessed"}, "search.latency is 'guessed'; allowed are measured and predicted"),
        ({"max_candidates": 1.5}, "search.max_candidates is 1.5; give an integer of at least 1"),
        ({"max_minutes": -1}, "search.max_minutes is -1; give a number above 0"),
    ],
)
def test_bad_plans_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchPlan(**{"generations": 4, "population": 6, **wrong})


@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
def test_cut_after_any_line_it_ends_with_the_same_front(tmp_path: Path, mode: str) -> None:
    undisturbed = outcome(search(tmp_path / "calm", Toy(), generations=3, mode=mode))
    lines = (tmp_path / "calm" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:count]) + lines[count][:9])
        assert outcome(search(folder, Toy(), generations=3, mode=mode)) == undisturbed, f"cut after line {count}: {lines[count - 1]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
def test_killed_at_random_points_it_ends_with_the_same_front(tmp_path: Path, mode: str) -> None:
    """20 kills in all, over both modes, of a copy of this process: starting Python anew would take longer than the search."""
    undisturbed = outcome(search(tmp_path / "calm", Toy(), generations=8, mode=mode))
    folder, chance = tmp_path / "killed", random.Random(0)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                search(folder, Toy(pause=0.02), generations=8, mode=mode)
            finally:
                os._exit(0)
        before = _size(folder)
        deadline = time.monotonic() + 60
        while _size(folder) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not read_ledger(folder / "ledger.jsonl").finished, "the kills came too late to show anything"
    record = search(folder, Toy(), generations=8, mode=mode)
    assert outcome(record) == undisturbed
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    results = [row["number"] for row in rows if row["event"] == "result"]
    assert sorted(results) == list(range(48)), "no evaluation is recorded twice"


def _size(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_one_generation_without_growth_is_no_stall() -> None:
    assert not has_stalled([0.1, 0.2, 0.2, 0.3], 1) and has_stalled([0.1, 0.2, 0.2], 1)
    assert not has_stalled([0.1, 0.2, 0.2, 0.3], 2), "the means grew"
    assert has_stalled([0.2, 0.2, 0.2, 0.2], 2)
    assert not has_stalled([0.2, 0.2, 0.2], 2), "too few to tell"
    assert not has_stalled([0.2] * 50, None)


@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
def test_failed_candidates_are_tried_again_and_a_replay_stays_exact(tmp_path: Path, mode: Literal["generational", "asynchronous"]) -> None:
    class Stops(Toy):
        def __init__(self, calls: int, fails: str = "") -> None:
            super().__init__(fails)
            self.left = calls

        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().run(strategies, batches)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stops(18, fails="0123456"), mode=mode)
    before = read_ledger(tmp_path / "ledger.jsonl")
    failed = {n for n, m in before.results.items() if not m.ok}
    assert len(failed) >= 3
    # Without being asked to, it goes on as it was; another interruption changes nothing.
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stops(2), mode=mode)
    assert {n for n, m in read_ledger(tmp_path / "ledger.jsonl").results.items() if not m.ok} == failed
    with pytest.raises(KeyboardInterrupt):  # those that the algorithm knows as failed come first, and some of them are done
        search(tmp_path, Stops(2), mode=mode, retry_failed=True)
    record = search(tmp_path, Toy(), mode=mode, retry_failed=True)
    assert record.finished
    assert all(m.ok for m in record.results.values())
    assert set(record.told) <= failed
    assert record.told
    assert all(not record.as_told(n).ok for n in record.told)
    asked = [c.strategy.digest for c in before.candidates.values()]
    assert [record.candidates[n].strategy.digest for n in before.candidates] == asked
    again = read_ledger(tmp_path / "ledger.jsonl")
    assert (again.told.keys(), outcome(again)) == (record.told.keys(), outcome(record))
    idle = Toy()  # a replay of the whole, which asks for the same candidates or is refused
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_text("".join(x for x in lines if '"event":"finished"' not in x))
    search(tmp_path, idle, mode=mode)
    assert not set(asked) & set(idle.evaluated)


def test_a_failure_in_a_generation_that_still_runs_is_replaced_for_the_algorithm_too(tmp_path: Path) -> None:
    whole = outcome(search(tmp_path / "a", Toy()))

    class Stops(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if len(self.evaluated) > 4:
                raise KeyboardInterrupt
            return super().run(strategies, batches)

    first = read_ledger(tmp_path / "a" / "ledger.jsonl").candidates[0].strategy.digest
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", Stops(fails=first[0]))
    assert not all(m.ok for m in read_ledger(tmp_path / "b" / "ledger.jsonl").results.values())
    record = search(tmp_path / "b", Toy(), retry_failed=True)
    assert outcome(record) == whole
    assert not record.told


def test_baseline_images_that_were_made_are_not_made_again(tmp_path: Path) -> None:
    class Stops(Images):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
            if sum(map(len, batches)) + self.made.get(strategies[0].digest, 0) >= 20:
                raise KeyboardInterrupt  # while the second number of images is measured
            return super().run(strategies, batches)

    with pytest.raises(KeyboardInterrupt):
        search_in_steps(tmp_path, Stops())
    again = Images()
    record = search_in_steps(tmp_path, again)
    assert set(record.baselines_at[UNACCELERATED]) == {8, 20, 40}
    calm = Images()
    whole = search_in_steps(tmp_path / "calm", calm)
    full = Strategy.full(8).digest
    assert again.made[full] == calm.made[full] - 8
    assert {i: m.fid for i, m in record.baselines_at[UNACCELERATED].items()} == {i: m.fid for i, m in whole.baselines_at[UNACCELERATED].items()}
    assert not (tmp_path / "kept-baselines").exists()


def test_a_baseline_that_failed_is_tried_again_only_when_asked_for(tmp_path: Path) -> None:
    class Stops(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if len(self.evaluated) > 4:
                raise KeyboardInterrupt
            return super().run(strategies, batches)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stops())
    ledger = tmp_path / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    (rival,) = [i for i, x in enumerate(lines) if '"event":"baseline"' in x and '"origin":"rival"' in x]
    row = json.loads(lines[rival])
    lines[rival] = json.dumps({**row, "measurement": Measurement(error="no luck").to_dict()}, separators=(",", ":")) + "\n"
    ledger.write_text("".join(lines))
    for retry in (False, True):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, Stops(), retry_failed=retry)
        tries = sum('"event":"baseline"' in x and '"origin":"rival"' in x for x in ledger.read_text().splitlines())
        assert tries == 1 + retry


def test_a_rival_that_fails_is_a_row_and_the_search_goes_on(tmp_path: Path) -> None:
    class Sick(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if Strategy.uniform(8, 3) in strategies:
                raise RuntimeError("no luck with the rival")
            return super().run(strategies, batches)

    record = search(tmp_path, Sick())
    assert record.finished
    assert "no luck with the rival" in (record.baselines["rival"][1].error or "")
    assert record.baselines[UNACCELERATED][1].ok
