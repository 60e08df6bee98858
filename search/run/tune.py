"""The search for those who run Ray Tune themselves: a `Searcher` and a `Trainable`; `search.run.tune_loop` runs them for `dato search`.

Asynchronous: a suggestion never waits for a generation, and `reuse_actors=True` keeps a loaded pipeline from trial to trial.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from dato.strategy import Strategy
from search.ledger import LedgerError
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.evolution import Screen, Settings
from search.optimize.operators import Operators
from search.optimize.space import SearchSpace
from search.records import Measurement
from search.run.health import poisons
from search.run.measurer import Measurer

STRATEGY = "strategy"
"""The key of a trial's config that holds its strategy as JSON."""
BROKEN = "the process is broken, not the strategy:"
"""How the error begins that a trial's process ends with."""


class NSGA2Search(Searcher):
    """Suggests strategies by asynchronous NSGA-II on two metrics, both lower is better.

    A trial's config is ``{"strategy": <strategy JSON>}``. Give it to ``tune.TuneConfig(search_alg=..., max_concurrent_trials=...,
    reuse_actors=True)``. Its state is the list of what it suggested and was told, which `restore` goes through again.

    Args:
        space: What a step may be.
        population: Strategies that a new one has its parents among.
        seed: Of the search.
        operators: "stepwise" or "paper".
        given: Strategies to begin with.
        objectives: How many values `judge` gives.
        screen: Makes what picks among offspring, as for `search.optimize.nsga2.Nsga2`; picklable.
        metrics: Names of the two metrics in a trial's last result.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population: int = 20,
        seed: int = 0,
        operators: Operators = "stepwise",
        given: Sequence[Strategy] = (),
        objectives: int = 2,
        screen: Callable[[], Screen] | None = None,
        metrics: tuple[str, str] = ("fid", "latency_ms"),
    ) -> None:
        super().__init__(metric=list(metrics), mode=["min", "min"])
        self.metrics = metrics
        self._settings = Settings(
            space=space, population=population, seed=seed, operators=operators, given=list(given), objectives=objectives, screen=screen
        )
        self._algorithm = AsynchronousNsga2(**self._settings)
        self._events: list[tuple[str, Any]] = []
        self._strategies: dict[str, Strategy] = {}
        self.judge: Callable[[Strategy, Mapping[str, Any]], tuple[tuple[float, ...] | None, float]] | None = None
        """A strategy and its trial's last result to objectives, None for a failure, and constraint violation; without it, the two metrics count."""
        self.pending: list[Strategy] = []
        """Asked for before, without a result: suggested again first."""
        self.asked: Callable[[Strategy, str], None] | None = None
        """Told of every suggestion, with its trial, before the trial exists."""
        self.ended: Callable[[], bool] | None = None
        """Whether nothing new is to be suggested."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Objectives beyond which nothing is gained, for the screen; set before anything is suggested."""
        return self._algorithm.bounds

    @bounds.setter
    def bounds(self, value: tuple[float, float] | None) -> None:
        self._algorithm.bounds = value

    def suggest(self, trial_id: str) -> Any:
        """A config, or FINISHED when every strategy of the space has been asked for, or `ended` says so."""
        again = bool(self.pending)
        if not again and self.ended and self.ended():
            return Searcher.FINISHED
        strategy = self.pending.pop(0) if again else self._algorithm.ask_one()
        if strategy is None:
            return Searcher.FINISHED
        self._events.append(("again" if again else "ask", [trial_id, strategy.to_json()]))
        self._strategies[trial_id] = strategy
        if self.asked:
            self.asked(strategy, trial_id)
        return {STRATEGY: strategy.to_json()}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """A result without finite metrics counts as failed, as does an error."""
        strategy = self._strategies.pop(trial_id, None)
        if strategy is None:
            return
        values = [float((result or {}).get(m, math.nan)) for m in self.metrics]
        objectives: tuple[float, ...] | None = None
        violation = 0.0
        if result and not error and all(map(math.isfinite, values)):
            objectives, violation = self.judge(strategy, result) if self.judge else ((values[0], values[1]), 0.0)
        self.tell(strategy, objectives, violation, trial_id)

    def parents(self, strategy: Strategy) -> tuple[str, ...]:
        """Digests of the strategies that the last suggestion was crossed from."""
        return self._algorithm.parents(strategy)

    def tell(self, strategy: Strategy, objectives: tuple[float, ...] | None, violation: float = 0.0, trial_id: str = "") -> None:
        """Take in a result."""
        self._events.append(("tell", [trial_id, strategy.to_json(), objectives, violation]))
        self._algorithm.tell_one(strategy, objectives, violation)

    def recall(self, strategy: Strategy) -> None:
        """Go through an earlier ask again: it must be what the algorithm asks for now. It is pending until it is told."""
        now = self._algorithm.ask_one()
        if now != strategy:
            raise LedgerError(
                f"strategy {strategy.digest} was asked for before and is now {now.digest if now else 'none'}; "
                "the record was made by another version of dato or its libraries, or another engine: start a search of its own"
            )
        self._events.append(("ask", ["", strategy.to_json()]))
        self.pending.append(strategy)

    def recall_result(self, strategy: Strategy, objectives: tuple[float, ...] | None, violation: float = 0.0) -> None:
        """Go through an earlier result again."""
        self.pending.remove(strategy)
        self.tell(strategy, objectives, violation)

    def save(self, checkpoint_path: str) -> None:
        """Write what was suggested and told, as JSON."""
        Path(checkpoint_path).write_text(json.dumps({"schema": "dato.nsga2search/1", "events": self._events, "bounds": self.bounds}), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Go through a saved search again, on a searcher made with the same arguments."""
        saved = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self.bounds = tuple(saved["bounds"]) if saved.get("bounds") else None
        self._replay(saved["events"])

    def _replay(self, events: Sequence[tuple[str, Any]]) -> None:
        bounds = self.bounds
        self._algorithm, self._events, self._strategies, self.pending = AsynchronousNsga2(**self._settings), [], {}, []
        self.bounds = bounds
        for kind, (trial_id, text, *told) in events:
            strategy = Strategy.from_json(text)
            if kind == "ask":
                self.recall(strategy)
                self._events[-1] = ("ask", [trial_id, text])
            if kind in ("ask", "again") and trial_id:
                self._strategies[trial_id] = strategy
                self.pending.remove(strategy)
                if kind == "again":
                    self._events.append(("again", [trial_id, text]))
            if kind == "tell":
                self._strategies.pop(trial_id, None)
                if strategy in self.pending:
                    self.pending.remove(strategy)
                self.tell(strategy, tuple(told[0]) if told[0] else None, told[1], trial_id)

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self._settings, "metrics": self.metrics, "events": self._events, "bounds": self.bounds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        NSGA2Search.__init__(self, metrics=state["metrics"], **state["settings"])
        self.bounds = state["bounds"]
        self._replay(state["events"])


class StrategyTrainable(tune.Trainable):
    """Measures one strategy in one step, and keeps what it loaded for the next trial (`reset_config`).

    ``tune.with_parameters(StrategyTrainable, factory=..., deadline_s=...)``; a result holds `fid`, `latency_ms` and the whole
    `measurement`. Past the deadline, in seconds, the trial's process ends itself, and Tune counts that as a failure of the trial.

    A failure is only a result where this process then succeeds with what is `known` to work, or with what it succeeded with last. Else
    the process is broken, and raises: Tune ends it and starts the trial in a new one, on whatever machine Tune gives it; a machine that
    stays broken cannot be avoided here, as `search.engine=ray` does.
    """

    def setup(self, config: dict[str, Any], factory: Measurer, deadline_s: float | None = None, known: str | None = None) -> None:
        """Load once; `known` is a strategy as JSON."""
        self._measurer, self._deadline = factory.build(), deadline_s
        self._good = Strategy.from_json(known) if known else None
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        """Measure. A strategy that fails is a result without numbers, and its actor goes on with the next."""
        began = time.monotonic()
        watch = threading.Timer(self._deadline, os._exit, [1]) if self._deadline else None
        if watch:
            watch.start()
        try:
            measurement = self._measurer.measure(self._strategy)
            self._good = self._strategy if measurement.ok else self._good
        except Exception as error:  # a failing candidate is data
            measurement = Measurement(error=f"{type(error).__name__}: {error}", seconds=time.monotonic() - began)
            self._check(error)
        finally:
            if watch:
                watch.cancel()
        return {"fid": measurement.fid, "latency_ms": measurement.latency_ms, "measurement": json.dumps(measurement.to_dict()), "done": True}

    def _check(self, error: Exception) -> None:
        """Raise where the process is broken, rather than the strategy."""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if poisons(said):
            raise RuntimeError(f"{BROKEN} {said}") from error
        if self._good is None:
            return  # nothing is known to work
        try:
            self._measurer.measure(self._good)
        except Exception as again:
            raise RuntimeError(f"{BROKEN} {said} (and then what had worked failed too)") from again

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next strategy; the pipeline stays loaded."""
        self._strategy = Strategy.from_json(new_config[STRATEGY], where="the trial's config")
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing between steps."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """There is nothing between steps."""
