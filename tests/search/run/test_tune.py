"""The search as a Ray Tune experiment: for those who run Tune themselves, and as the engine of `dato search`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from dato.strategy import Strategy
from search.evaluate.protocol import EvaluationProtocol
from search.ledger import Ledger, LedgerError, read_ledger
from search.optimize.space import SearchSpace
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Measurement, SearchRecord
from search.run.driver import Driver
from search.run.limits import has_stalled
from search.run.pools import InProcessPool
from search.run.recorder import Recorder
from search.run.settings import SearchPlan
from search.run.simulate import toy_measurement
from search.run.tune import STRATEGY, NSGA2Search, StrategyTrainable
from search.run.tune_loop import TuneLoop

SPACE = SearchSpace(steps=8)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@dataclass
class Toy:
    """Measures by formula, after a pause; raises for strategies whose digest begins with one of `fails`."""

    fails: str = ""
    pause: float = 0.0

    def build(self) -> Toy:
        return self

    def measure(self, strategy: Strategy) -> Measurement:
        time.sleep(self.pause)
        if strategy.digest[0] in self.fails:
            raise RuntimeError(f"no luck with {strategy.digest}")
        return toy_measurement(strategy)

    def run(self, strategies: list[Strategy], batches: list[Any]) -> list[Measurement]:
        return [toy_measurement(s) for s in strategies]


@dataclass
class Sick(Toy):
    """The first process to begin a measurement fails everything from then on."""

    folder: str = ""

    def measure(self, strategy: Strategy) -> Measurement:
        marker = Path(self.folder) / "sick"
        try:
            with marker.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            pass
        with (Path(self.folder) / "calls").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if marker.read_text() == str(os.getpid()):
            raise RuntimeError("a cable is loose")
        return super().measure(strategy)


def test_a_searcher_continues_from_its_file_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def play(searcher: NSGA2Search, first: int, last: int) -> list[Any]:
        asked = []
        for n in range(first, last):
            config = searcher.suggest(f"trial-{n}")
            m = toy_measurement(Strategy.from_json(config[STRATEGY]))
            searcher.on_trial_complete(f"trial-{n}", {"fid": m.fid, "latency_ms": m.latency_ms})
            asked.append(config[STRATEGY])
        return asked

    whole = play(NSGA2Search(SPACE, population=6), 0, 40)
    assert len(set(whole)) == 40
    stopped = NSGA2Search(SPACE, population=6)
    assert play(stopped, 0, 20) == whole[:20]
    stopped.save(str(tmp_path / "searcher.json"))
    again = NSGA2Search(SPACE, population=6)
    again.restore(str(tmp_path / "searcher.json"))
    assert play(again, 20, 40) == whole[20:]


def test_failed_and_nan_trials_are_infeasible() -> None:
    searcher = NSGA2Search(SPACE, population=6)
    for n in range(30):
        assert STRATEGY in searcher.suggest(f"t{n}")
        if n % 3 == 0:
            searcher.on_trial_complete(f"t{n}", error=True)
        elif n % 3 == 1:
            searcher.on_trial_complete(f"t{n}", {"fid": float("nan"), "latency_ms": 1.0})
        else:
            searcher.on_trial_complete(f"t{n}", {"fid": 1.0 + n, "latency_ms": 1.0})


@pytest.mark.slow
def test_in_a_tuner_of_ones_own(local_ray: None, tmp_path: Path) -> None:
    trainable = tune.with_resources(tune.with_parameters(StrategyTrainable, factory=Toy()), {"cpu": 1})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=NSGA2Search(SPACE, population=6), num_samples=16, max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(name="own", storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert len(results) == 16
    asked = [Strategy.from_json(r.config[STRATEGY]) for r in results]
    assert len({s.digest for s in asked}) == 16
    for strategy, result in zip(asked, results, strict=True):
        assert result.metrics["fid"] == toy_measurement(strategy).fid


def drive(
    folder: Path, generations: int, fails: str = "", pause: float = 0.0, deadline_s: float | None = None, tries: int = 1, factory: Toy | None = None, **plan: Any
) -> SearchRecord:
    ledger = Ledger(folder / "ledger.jsonl", "tune", {}, {})
    try:
        recorder = Recorder(ledger, SearchPlan(generations=generations, population=6, mode="asynchronous", **plan), lambda shards: shards[0])  # type: ignore[arg-type,return-value]
        loop = TuneLoop(
            NSGA2Search(SPACE, population=6, seed=0),
            lambda plain: factory or Toy(fails, pause),
            workers=2,
            resources={"cpu": 1},
            storage=folder / "tune",
            tries=tries,
            deadline_s=deadline_s,
        )
        return Driver(recorder, EvaluationProtocol(images=4, batch=4), loop, {UNACCELERATED: Strategy.full(8)}).run(InProcessPool(Toy()))
    finally:
        ledger.close()


@pytest.mark.slow
def test_as_the_engine_of_a_search_that_is_killed_and_continues(local_ray: None, tmp_path: Path) -> None:
    drive(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    # What a kill after seven results leaves: whole lines up to there, and a torn one.
    lines = path.read_bytes().split(b"\n")
    seventh = [i for i, line in enumerate(lines) if b'"event":"result"' in line][6]
    path.write_bytes(b"\n".join(lines[: seventh + 1]) + b"\n" + lines[seventh + 1][:9])
    before = read_ledger(path).results
    assert len(before) == 7
    record = drive(tmp_path, 3)
    assert record.finished
    assert len(record.results) == 18
    assert {n: record.results[n].to_dict() for n in before} == {n: m.to_dict() for n, m in before.items()}
    assert len({c.strategy.digest for c in record.candidates.values()}) == 18
    assert set(record.winners) == {"quality", "balanced", "fastest"}


@pytest.mark.slow
def test_a_failing_trial_is_recorded_with_its_error(local_ray: None, tmp_path: Path) -> None:
    record = drive(tmp_path, 3, fails="01")
    failed = [m.error for m in record.results.values() if not m.ok]
    assert failed
    assert all("no luck with" in (e or "") for e in failed), failed
    assert record.finished


@pytest.mark.slow
def test_a_broken_process_takes_no_candidate_along(local_ray: None, tmp_path: Path) -> None:
    record = drive(tmp_path, 2, tries=3, factory=Sick(folder=str(tmp_path)))
    assert len(record.results) == 12
    assert all(m.ok for m in record.results.values())
    calls, sick = (tmp_path / "calls").read_text().split(), (tmp_path / "sick").read_text()
    assert calls.count(sick) == 2, "it is ended after what is known to work failed there too"


@pytest.mark.slow
def test_limits_end_it(local_ray: None, tmp_path: Path) -> None:
    began = time.monotonic()
    record = drive(tmp_path / "a", 500, pause=0.5, max_minutes=0.05)
    assert record.finished
    assert 1 <= len(record.results) < 100
    assert time.monotonic() - began < 100
    assert all(n in record.results for n in record.candidates), "what had begun ended"
    record = drive(tmp_path / "b", 500, patience=3)
    assert has_stalled(record.hypervolumes, 3)
    assert record.finished


@pytest.mark.slow
def test_it_stops_when_the_first_candidates_all_fail(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(SearchFailed, match="all of the first 6 candidates failed; the first error:"):
        drive(tmp_path, 20, fails="0123456789abcdef")
    assert len(read_ledger(tmp_path / "ledger.jsonl").results) <= 8


@pytest.mark.slow
def test_a_trial_past_its_deadline_is_ended(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(SearchFailed, match=r"passed cluster.batch_timeout_s"):
        drive(tmp_path, 1, pause=60.0, deadline_s=0.5)


INTERRUPTED = """
import sys
from pathlib import Path
import ray
from tests.search.run.test_tune import drive

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
try:
    drive(Path(sys.argv[1]), 500, pause=0.3)
except KeyboardInterrupt:
    print("interrupted")
ray.shutdown()
"""


@pytest.mark.slow
def test_ctrl_c_interrupts_it(local_ray: None, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True) as process:
        ledger = tmp_path / "ledger.jsonl"
        end = time.monotonic() + 120
        while not (ledger.exists() and len(read_ledger(ledger).results) >= 3):
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert "interrupted" in said
    record = read_ledger(ledger)
    assert not record.finished
    assert not record.winners


def test_a_ledger_of_another_engine_is_refused() -> None:
    searcher = NSGA2Search(SPACE, population=6)
    with pytest.raises(LedgerError, match="another engine"):
        searcher.recall(Strategy.full(8))
