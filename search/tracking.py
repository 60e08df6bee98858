"""The only writer of MLflow runs: one parent run a search, one child run a candidate. A view of the ledger, never its truth."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from search.records import Candidate, Measurement, SearchRecord

_log = logging.getLogger(__name__)
_PARENT = "mlflow.parentRunId"
_SEARCH = "dato.search_id"


class Tracker:
    """Writes a search into MLflow as it goes. A failing server is reported once and never stops the search.

    Args:
        experiment: Experiment name, made if missing.
        uri: Tracking URI; None for MLflow's own default or MLFLOW_TRACKING_URI.
        front_figure: Draws the front of a record, logged after each generation.
        front_size: Counts the front of a record.
    """

    def __init__(
        self,
        *,
        experiment: str,
        uri: str | None = None,
        front_figure: Callable[[SearchRecord], Any] | None = None,
        front_size: Callable[[SearchRecord], int] | None = None,
    ) -> None:
        self.experiment, self.uri, self._figure, self._front_size = experiment, uri, front_figure, front_size
        self.run_id: str | None = None
        self._logged: set[str] = set()
        self._warned = False

    def started(self, record: SearchRecord) -> None:
        """Make the parent run, or find the one that this search already has, and bring it up to date."""
        self._guard(self._start, record)

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """Log a candidate's child run."""
        if candidate.number >= 0:
            self._guard(self._log_child, candidate, record.results[candidate.number])

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """Log hypervolume, counts and the front's figure."""
        self._guard(self._log_generation, record, generation)

    def finished(self, record: SearchRecord, artifacts: Mapping[str, Path]) -> None:
        """Log the winners and files, and end the parent run."""
        self._guard(self._finish, record, artifacts)

    def stopped(self) -> None:
        """Mark the parent run as interrupted; the next start continues it."""
        if self.run_id:
            self._guard(self._client.set_terminated, self.run_id, "KILLED")

    def logged_generations(self) -> set[int]:
        """The generations that the parent run has already."""
        if self.run_id is None:
            return set()
        return {m.step for m in self._client.get_metric_history(self.run_id, "hypervolume")}

    def _guard(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except (MlflowException, OSError) as error:
            if not self._warned:
                _log.warning("MLflow does not take the log (%s); the search goes on, its ledger holds everything", error)
                self._warned = True

    def _start(self, record: SearchRecord) -> None:
        if self.uri:
            mlflow.set_tracking_uri(self.uri)
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(self.experiment)
        self._experiment_id = found.experiment_id if found else self._client.create_experiment(self.experiment)
        query = f"tags.`{_SEARCH}` = '{record.search_id}'"
        runs = self._pages(query)
        parents = [r for r in runs if _PARENT not in r.data.tags]
        if parents:
            self.run_id = parents[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            self._logged = {r.data.tags["dato.candidate"] for r in runs if "dato.candidate" in r.data.tags}
        else:
            run = self._client.create_run(self._experiment_id, run_name=record.search_id, tags={_SEARCH: record.search_id, "dato.kind": "search"})
            self.run_id = run.info.run_id
            flat = _flatten(record.config)
            self._client.log_batch(self.run_id, params=[Param(k, str(v)[:6000]) for k, v in sorted(flat.items())[:100]])
            self._client.log_dict(self.run_id, {"config": record.config, "environment": record.environment}, "search.json")
        for number, measurement in record.results.items():
            self._log_child(record.candidates[number], measurement)

    def _pages(self, query: str) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _log_child(self, candidate: Candidate, measurement: Measurement) -> None:
        if self.run_id is None or str(candidate.number) in self._logged:
            return
        tags = {
            _PARENT: self.run_id,
            _SEARCH: self._client.get_run(self.run_id).data.tags[_SEARCH],
            "dato.kind": "candidate",
            "dato.candidate": str(candidate.number),
            "dato.generation": str(candidate.generation),
            "dato.digest": candidate.strategy.digest,
            "dato.device": measurement.device,
        }
        run = self._client.create_run(self._experiment_id, run_name=f"candidate {candidate.number}", tags=tags)
        metrics = {
            "fid": measurement.fid,
            "fid_low": measurement.fid_low,
            "fid_high": measurement.fid_high,
            "latency_ms": measurement.latency_ms,
            "images": float(measurement.images),
            "seconds": measurement.seconds,
            "generation": float(candidate.generation),
            **{f"calls_depth_{d}": float(n) for d, n in measurement.calls_by_depth.items()},
        }
        steps = [[s.cache_depth, s.prune_ratio] for s in candidate.strategy]
        self._client.log_batch(
            run.info.run_id,
            metrics=_metrics(metrics, 0),
            params=[Param("strategy", str(candidate.strategy)), Param("steps", json.dumps(steps)[:6000])],
            tags=[RunTag("dato.error", measurement.error[:5000])] if measurement.error else [],
        )
        self._client.set_terminated(run.info.run_id, "FINISHED" if measurement.ok else "FAILED")
        self._logged.add(str(candidate.number))

    def _log_generation(self, record: SearchRecord, generation: int) -> None:
        if self.run_id is None:
            return
        metrics = {"hypervolume": record.hypervolumes[generation], "evaluations": float(len(record.results))}
        metrics["failures"] = float(sum(not m.ok for m in record.results.values()))
        if self._front_size:
            metrics["front_size"] = float(self._front_size(record))
        self._client.log_batch(self.run_id, metrics=_metrics(metrics, generation))
        if self._figure:
            self._client.log_figure(self.run_id, self._figure(record), f"fronts/generation_{generation:03d}.html")

    def _finish(self, record: SearchRecord, artifacts: Mapping[str, Path]) -> None:
        if self.run_id is None:
            return
        metrics = {}
        for alias, winner in record.winners.items():
            metrics[f"{alias}_speedup"] = winner.speedup
            metrics[f"{alias}_fid_difference"] = winner.fid_difference
        self._client.log_batch(self.run_id, metrics=_metrics(metrics, len(record.hypervolumes)))
        for folder, path in artifacts.items():
            self._client.log_artifact(self.run_id, str(path), folder or None)
        self._client.set_terminated(self.run_id, "FINISHED")


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(k, v, now, step) for k, v in values.items() if math.isfinite(v)]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
