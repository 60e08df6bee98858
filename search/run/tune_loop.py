"""One more loop: the candidates of a search as a Ray Tune experiment, which has workers of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from dato.strategy import Strategy
from search.metrics.similarity import PlainFeatures
from search.optimize.winners import SearchFailed
from search.records import UNACCELERATED, Candidate, Measurement, SearchRecord
from search.run.limits import Limits
from search.run.loops import Evaluate, all_failed, close_if_full
from search.run.measurer import Measurer
from search.run.recorder import Recorder
from search.run.tune import BROKEN, NSGA2Search, StrategyTrainable


class TuneLoop:
    """Runs a search's candidates as a Tune experiment.

    The ledger stays the truth: a search that is started again goes through it, then on, in a new experiment.

    Args:
        searcher: Suggests candidates; fresh, it is brought up to date from the ledger.
        factory: The measurer that each trial's actor builds, given the unaccelerated features.
        workers: Trials at once.
        resources: CPUs and GPUs of each, as Tune takes them.
        storage: Folder of Tune's own files.
        tries: How often a failing trial is started at most.
        deadline_s: Seconds that one trial may take.
    """

    def __init__(
        self,
        searcher: NSGA2Search,
        factory: Callable[[PlainFeatures | None], Measurer],
        *,
        workers: int,
        resources: Mapping[str, float],
        storage: Path,
        tries: int = 3,
        deadline_s: float | None = None,
    ) -> None:
        self._searcher, self._factory, self._workers, self._resources = searcher, factory, workers, dict(resources)
        self._storage, self._tries, self._deadline = storage, tries, deadline_s

    def has_told(self, record: SearchRecord, candidate: Candidate) -> bool:
        """At once."""
        return True

    def run(self, recorder: Recorder, limits: Limits, evaluate: Evaluate) -> None:
        """As for `search.run.loops.Loop`, in trials in place of `evaluate`."""
        searcher, record, recording = self._searcher, recorder.record, _Recording(recorder)
        searcher.bounds = recorder.bounds()
        for event, number in list(record.events):
            strategy = record.candidates[number].strategy
            if event == "ask":
                searcher.recall(strategy)
            else:
                searcher.recall_result(strategy, *recorder.told(number))

        def asked(strategy: Strategy, trial_id: str) -> None:
            recording.trials[trial_id] = recorder.ask(recorder.number(strategy), strategy, searcher.parents(strategy))

        def judge(strategy: Strategy, result: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, float]:
            return recorder.values(recorder.with_latency(strategy, Measurement.from_dict(json.loads(result["measurement"]))))

        def ended() -> bool:
            return all_failed(recorder) or limits.are_reached(record, len(record.candidates))

        searcher.asked, searcher.judge, searcher.ended = asked, judge, ended
        missing = int(limits.candidates) - len(record.results)
        if missing > 0 and (searcher.pending or not ended()):
            self._tune(missing, recorder, recording)
        close_if_full(recorder)  # raises where nothing succeeded

    def _tune(self, trials: int, recorder: Recorder, recording: _Recording) -> None:
        # Tune's own handler ends an interrupted experiment as if it were complete.
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
        known = recorder.record.baselines[UNACCELERATED][0].strategy.to_json()
        measuring = tune.with_parameters(StrategyTrainable, factory=self._factory(recorder.plain_features), deadline_s=self._deadline, known=known)
        tuner = tune.Tuner(
            tune.with_resources(measuring, self._resources),
            tune_config=tune.TuneConfig(
                search_alg=self._searcher,
                num_samples=trials,
                max_concurrent_trials=self._workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
                trial_name_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"from-{len(recorder.record.results)}",
                storage_path=str(self._storage),
                failure_config=tune.FailureConfig(max_failures=self._tries - 1),
                callbacks=[recording],
                verbose=0,
            ),
        )
        tuner.fit()
        if not recorder.record.results:
            raise SearchFailed(f"no trial ended; what Tune says is in {self._storage}")


class _Recording(tune.Callback):
    """Writes a trial's end into the ledger. Never pickled with its recorder: a restored experiment has another ledger's hands."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self.trials: dict[str, Candidate] = {}
        """Candidates by trial."""

    def __getstate__(self) -> dict[str, Any]:
        return {"_recorder": None, "trials": {}}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if "measurement" in (trial.last_result or {}):
            self._record(trial.trial_id, Measurement.from_dict(json.loads(trial.last_result["measurement"])))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # A strategy's own errors are results: what is left are processes that broke or died, one after the other.
        broken = [line.split(BROKEN, 1)[1].strip() for line in str(trial.get_error() or "").splitlines() if BROKEN in line]
        what = broken[-1] if broken else "the trial's process died, or passed cluster.batch_timeout_s"
        self._record(trial.trial_id, Measurement(error=f"{what}; its log is in the search's folder `tune`, and search.retry_failed=true tries it again"))

    def _record(self, trial_id: str, measurement: Measurement) -> None:
        if self._recorder is None:
            return
        candidate, population = self.trials[trial_id], self._recorder.plan.population
        self._recorder.result(candidate, self._recorder.complete(candidate.strategy, measurement))
        if len(self._recorder.record.results) % population == 0:
            self._recorder.close_generation(len(self._recorder.record.results) // population - 1)
