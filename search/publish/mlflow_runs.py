"""The only writer of MLflow runs: one parent run a search, one child run a candidate. A view of the ledger, never its truth.

A thread of its own compares what MLflow has with what the record says and writes the difference, so that a database that is slow,
locked or away holds nothing up: what it does not take is written later, at the latest by ``dato sync``.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from dato.mlflow_store import ask, check_address
from dato.sources import without_credentials
from search.measurements import Measurement, flat
from search.optimize.importance import importance, importance_metrics, importance_table
from search.publish.background import Background
from search.publish.mlflow_queries import all_runs, experiment_id
from search.publish.mlflow_values import child_metrics, child_params, child_tags, front_table, made_with, winner_metrics
from search.publish.snapshot import as_of, snapshot
from search.records import Candidate, SearchRecord

_log = logging.getLogger(__name__)
_PARENT = "mlflow.parentRunId"
_SEARCH = "dato.search_id"
CHILDREN = ("all", "front", "none")
START_S, STOP_S, FLUSH_S = 5.0, 5.0, 60.0
"""Seconds that the beginning, an interruption and the end of a search wait for MLflow at most."""
_LOCKED_S = 1.0
"""Seconds that a sqlite database may be locked by others before it counts as away."""


class TrackingError(RuntimeError):
    """MLflow does not take the log: the message says why."""


class Tracker:
    """Writes a search into MLflow as it goes, in the background. A failing server is reported once and never holds the search up.

    Args:
        experiment: Experiment name, made if missing.
        uri: Tracking URI; None for MLflow's own default or MLFLOW_TRACKING_URI.
        children: Candidates with a run of their own: "all" as they are measured, those on the "front" at the end, or "none".
        front_page: Draws the front of a record as one HTML page, renewed after each generation.
        summary: Figures of a record by metric name, logged after each generation.
        flush_s: Seconds that `finished` waits at most until MLflow has everything.
    """

    def __init__(
        self,
        *,
        experiment: str,
        uri: str | None = None,
        children: str = "all",
        front_page: Callable[[SearchRecord], str] | None = None,
        summary: Callable[[SearchRecord], Mapping[str, float]] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        if children not in CHILDREN:
            raise ValueError(f"mlflow.children is {children!r}; allowed are {', '.join(CHILDREN)}")
        self.experiment, self.uri, self.children, self._page, self._summary = experiment, uri, children, front_page, summary
        self.run_id: str | None = None
        self.trouble: str | None = None
        """Why MLflow does not have everything that it was told of; None where it has, or may still."""
        self._flush_s = flush_s
        self._record: SearchRecord | None = None
        self._end: tuple[str, dict[str, Path]] | None = None
        """The status that the parent run is to have, and files."""
        self._sure = False
        """Whether what follows is what MLflow has: not before the start, and not after a call that failed."""
        self._logged: dict[str, str] = {}
        self._failed: set[str] = set()
        """Candidates whose runs say that they failed."""
        self._begun: dict[str, Any] = {}
        """Runs of candidates that were made, and not completed."""
        self._promoted: set[tuple[int, int, bool]] = set()
        self._generations: set[int] = set()
        self._counts: dict[int, int] = {}
        """Results at the end of each generation."""
        self._tags: dict[str, str] = {}
        self._warned = False
        self._background = Background(self._work, self._complain)

    def begin(self, record: SearchRecord) -> None:
        """Make the parent run, or find the one that this search already has, while the caller goes on."""
        self._tell(record)

    def started(self, record: SearchRecord) -> None:
        """As `begin`; waits a little, so that a new database is not laid out while latencies are measured."""
        self._tell(record)
        self._background.wait(START_S)

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """A candidate has a measurement, or one on more images: for its child run, where every candidate has one."""
        if candidate.number >= 0 and self.children == "all":
            self._tell(record)

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """There is a hypervolume: log it with counts, speedup, and the front as a figure and as a table."""
        self._counts[generation] = len(record.results)
        self._tell(record)

    def finished(self, record: SearchRecord, artifacts: Mapping[str, Path]) -> None:
        """Log the winners and files, mark the front, and end the parent run; `trouble` says what came of it."""
        self._close(record, "FINISHED", artifacts, self._flush_s)

    def stopped(self) -> None:
        """Mark the parent run as interrupted; the next start continues it."""
        if self._record is not None:
            self._close(self._record, "KILLED", {}, STOP_S)

    def complete(self, record: SearchRecord, artifacts: Mapping[str, Path]) -> None:
        """Log all that a record holds and MLflow does not have, at once. Raises `TrackingError`."""
        self._use(record)
        self._end = ("FINISHED" if record.finished else "KILLED", dict(artifacts))
        try:
            self._work()
        except Exception as error:  # MLflow's own, its server's, or whatever its database driver raises
            raise TrackingError(f"MLflow does not take the log ({without_credentials(str(error))})") from None

    def _use(self, record: SearchRecord) -> None:
        if self.uri:
            mlflow.set_tracking_uri(self.uri)
        self._where = mlflow.get_tracking_uri()
        self._record = record

    def _tell(self, record: SearchRecord) -> None:
        if self._record is not record:
            self._use(record)
        self._background.wake()

    def _close(self, record: SearchRecord, status: str, artifacts: Mapping[str, Path], limit_s: float) -> None:
        self._end = (status, dict(artifacts))
        self._tell(record)
        if self._background.wait(limit_s):
            self.trouble = None
        else:
            self.trouble = self.trouble or f"it has not taken everything within {limit_s:.0f} s"
        self._background.close()

    def _complain(self, error: Exception) -> None:
        self._sure = False
        self.trouble = without_credentials(str(error))
        if not self._warned:
            _log.warning("MLflow does not take the log (%s); the search goes on, its ledger holds everything", self.trouble)
            self._warned = True

    def _work(self) -> None:
        """Write what MLflow does not have. Whatever it raises, the next call goes on where this one was."""
        assert self._record is not None
        record, end = snapshot(self._record), self._end
        check_address(self._where, "the MLflow address")
        ask(self._where, _LOCKED_S)
        if not self._sure:
            self._start(record)
            self._sure = True
        for number in record.results if self.children == "all" else ():
            self._log_child(record, record.candidates[number])
        for number in record.promotions if self.children == "all" else ():
            self._log_promotions(record, record.candidates[number])
        for generation in sorted(set(range(len(record.hypervolumes))) - self._generations):
            self._log_generation(as_of(record, generation, self._counts.get(generation)), generation)
            self._generations.add(generation)
        if end is not None and end[0] == "FINISHED":
            self._finish(record, end[1])
        elif end is not None and self.run_id is not None:
            self._client.set_terminated(self.run_id, end[0])

    def _start(self, record: SearchRecord) -> None:
        self._client = MlflowClient(self._where)
        self._experiment_id = experiment_id(self._client, self.experiment)
        names = {k: (record.config.get(k) or {}).get("name") for k in ("model", "data")}
        self._tags = {_SEARCH: record.search_id, **{f"dato.{k}": str(v) for k, v in names.items() if v}}
        self._tags["dato.reference"] = record.reference[:5000]
        runs = all_runs(self._client, self._experiment_id, f"tags.`{_SEARCH}` = '{record.search_id}'")
        parents = [r for r in runs if _PARENT not in r.data.tags]
        if parents:
            self.run_id = parents[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            whole = bool(parents[0].data.params)
        else:
            tags = {**self._tags, "dato.kind": "search", **made_with(record.environment)}
            run = self._client.create_run(self._experiment_id, run_name=record.search_id, tags=tags)
            self.run_id, whole = run.info.run_id, False
        if not whole:  # the parameters come last: a run that has them has the rest
            self._client.log_dict(self.run_id, {"config": record.config, "environment": record.environment}, "search.json")
            self._client.log_batch(self.run_id, params=[Param(k, str(v)[:6000]) for k, v in sorted(flat(record.config).items())[:100]])
        self._generations = {m.step for m in self._client.get_metric_history(self.run_id, "hypervolume")}
        children = {r.data.tags["dato.candidate"]: r.info for r in runs if "dato.candidate" in r.data.tags}
        self._begun = {n: info for n, info in children.items() if info.status == "RUNNING"}  # cut off: completed, not made anew
        self._logged = {n: info.run_id for n, info in children.items() if n not in self._begun}
        self._failed = {n for n, info in children.items() if info.status == "FAILED"}

    def _log_child(self, record: SearchRecord, candidate: Candidate) -> None:
        number, measurement = str(candidate.number), record.results[candidate.number]
        if number in self._logged and not (measurement.ok and number in self._failed):
            return
        if number in self._logged:  # it was tried again, and did not fail
            info = self._client.get_run(self._logged[number]).info
            self._client.delete_tag(info.run_id, "dato.error")
            self._client.set_tag(info.run_id, "dato.device", measurement.device)
        else:
            info = self._begun.get(number) or self._make_child(candidate, measurement)
        self._begun[number] = info
        self._client.log_batch(
            info.run_id,
            metrics=_metrics(child_metrics(record, candidate, measurement), 0),
            params=[Param(k, v) for k, v in child_params(candidate.strategy).items()],
        )
        self._log_strategy(info.artifact_uri, candidate)
        self._client.set_terminated(info.run_id, "FINISHED" if measurement.ok else "FAILED")
        self._logged[number] = info.run_id
        del self._begun[number]
        (self._failed.discard if measurement.ok else self._failed.add)(number)

    def _make_child(self, candidate: Candidate, measurement: Measurement) -> Any:
        tags = {**self._tags, _PARENT: self.run_id, **child_tags(candidate, measurement)}
        return self._client.create_run(self._experiment_id, run_name=f"candidate {candidate.number}", tags=tags).info

    def _log_promotions(self, record: SearchRecord, candidate: Candidate) -> None:
        for images, m in record.promotions[candidate.number].items():
            if (candidate.number, images, m.ok) in self._promoted:
                continue
            values = {k: v for k, v in child_metrics(record, candidate, m).items() if k in ("fid", "fid_difference") or k.startswith(("with/fid_", "with/feature_"))}
            named = {f"at_{images}_images/{k}": v for k, v in values.items()}
            # The columns that people sort by hold what was measured last, on the most images.
            self._client.log_batch(self._logged[str(candidate.number)], metrics=[*_metrics(named, 0), *_metrics({**values, "with/images": float(images)}, images)])
            self._promoted.add((candidate.number, images, m.ok))

    def _log_strategy(self, artifact_uri: str, candidate: Candidate) -> None:
        # Not client.log_text, which reads the whole run again to find out where its artifacts are.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "strategy.json"
            path.write_text(candidate.strategy.to_json(), encoding="utf-8")
            get_artifact_repository(artifact_uri, tracking_uri=self._client.tracking_uri).log_artifact(str(path))

    def _log_generation(self, record: SearchRecord, generation: int) -> None:
        if self.run_id is None:
            return
        self._client.log_text(self.run_id, front_table(record), f"fronts/generation_{generation:03d}.csv")
        if self._page:
            self._client.log_text(self.run_id, self._page(record), "front.html")
        # Last: a generation that has its hypervolume has the rest.
        metrics = {"hypervolume": record.hypervolumes[generation], **(self._summary(record) if self._summary else {})}
        self._client.log_batch(self.run_id, metrics=_metrics(metrics, generation))

    def _finish(self, record: SearchRecord, artifacts: Mapping[str, Path]) -> None:
        if self.run_id is None:
            return
        # Promotions have changed the front since the last generation was logged.
        metrics = (dict(self._summary(record)) if self._summary else {}) | winner_metrics(record)
        found = importance(record)
        metrics |= importance_metrics(found)
        self._client.log_text(self.run_id, importance_table(found), "importance.csv")
        self._client.log_batch(self.run_id, metrics=_metrics(metrics, len(record.hypervolumes)))
        for candidate, _ in record.front() if self.children != "none" else []:
            self._log_child(record, candidate)
            self._client.set_tag(self._logged[str(candidate.number)], "dato.front", "true")
        winners: dict[int, list[str]] = {}
        for alias, winner in record.winners.items():
            winners.setdefault(winner.candidate.number, []).append(alias)
        for number, aliases in winners.items():
            if str(number) in self._logged:
                self._client.log_batch(self._logged[str(number)], tags=[RunTag("dato.winner", ", ".join(aliases))])
        for folder, path in artifacts.items():
            self._client.log_artifact(self.run_id, str(path), folder or None)
        self._client.set_terminated(self.run_id, "FINISHED")


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(k, v, now, step) for k, v in values.items() if math.isfinite(v)]
