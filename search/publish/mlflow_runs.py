"""The only writer of MLflow runs: one parent run a search, one child run a candidate. A view of the ledger, never its truth.

A thread of its own compares what MLflow has with what the record says and writes the difference, so that a database that is slow,
locked or away holds nothing up: what it does not take is written later, at the latest by ``dato sync``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import DatasetInput, Param
from mlflow.tracking import MlflowClient

from dato.mlflow_store import ask, check_address
from dato.sources import without_credentials
from search.data.datasets import Data
from search.data.images import DataError
from search.measurements import flat
from search.optimize.importance import Importance, importance, importance_table
from search.optimize.winners import aliases_of
from search.publish.background import Background
from search.publish.candidate_runs import PARENT, CandidateRuns, as_metrics
from search.publish.curves import curves, final_metrics
from search.publish.datasets import dataset_inputs
from search.publish.mlflow_notes import NOTE, Pages, candidate_note, experiment_page, search_note
from search.publish.mlflow_queries import all_runs, experiment_id
from search.publish.mlflow_values import front_table, made_with, similarity_metrics
from search.publish.snapshot import as_of, snapshot
from search.publish.system_metrics import SystemMetrics, wanted
from search.records import Candidate, SearchRecord

_log = logging.getLogger(__name__)
_SEARCH = "dato.search_id"
CHILDREN = ("all", "front", "none")
START_S, STOP_S, FLUSH_S = 5.0, 5.0, 60.0
"""Seconds that the beginning, an interruption and the end of a search wait for MLflow at most."""
_LOCKED_S = 1.0
"""Seconds that a sqlite database may be locked by others before it counts as away."""
_STEADY = "system/cpu_utilization_percentage"
"""Of every sample of the machine."""
_BATCH = 1000
"""Metrics that MLflow takes in one request."""


class TrackingError(RuntimeError):
    """MLflow does not take the log: the message says why."""


class Tracker:
    """Writes a search into MLflow as it goes, in the background. A failing server is reported once and never holds the search up.

    Args:
        experiment: Experiment name, made if missing.
        uri: Tracking URI; None for MLflow's own default or MLFLOW_TRACKING_URI.
        children: Candidates with a run of their own: "all" as they are measured, those on the "front" and the winners at the end, or "none".
        front_page: Draws the front of a record as one HTML page, renewed after each generation.
        candidate_files: What there is to see of a candidate on the front or that won, by file name: pictures, a card.
        data: Reads what the search generates and compares with, which MLflow notes as data sets.
        flush_s: Seconds that `finished` waits at most until MLflow has everything.
    """

    def __init__(
        self,
        *,
        experiment: str,
        uri: str | None = None,
        children: str = "all",
        front_page: Callable[[SearchRecord], str] | None = None,
        candidate_files: Callable[[SearchRecord, Candidate], Mapping[str, bytes]] | None = None,
        data: Callable[[], Data] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        if children not in CHILDREN:
            raise ValueError(f"mlflow.children is {children!r}; allowed are {', '.join(CHILDREN)}")
        self.experiment, self.uri, self.children, self._page, self._files, self._data = experiment, uri, children, front_page, candidate_files, data
        self.run_id: str | None = None
        self.trouble: str | None = None
        """Why MLflow does not have everything that it was told of; None where it has, or may still."""
        self._flush_s = flush_s
        self._record: SearchRecord | None = None
        self._end: tuple[str, list[Path]] | None = None
        """The status that the parent run is to have, and files."""
        self._sure = False
        """Whether what follows is what MLflow has: not before the start, and not after a call that failed."""
        self._generations: set[int] = set()
        self._counts: dict[int, int] = {}
        """Results at the end of each generation."""
        self._inputs: list[DatasetInput] = []
        self._importance: list[Importance] = []
        self._system, self._system_steps = SystemMetrics(), 0
        self._warned = False
        self._background = Background(self._work, self._complain)

    def begin(self, record: SearchRecord) -> None:
        """Make the parent run, or find the one that this search already has, while the caller goes on."""
        self._tell(record)

    def started(self, record: SearchRecord) -> None:
        """As `begin`; waits a little, so that a new database is not laid out while latencies are measured."""
        if wanted():
            self._system.start()
        self._tell(record)
        self._background.wait(START_S)

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """A candidate has a measurement, or one on more images: for its child run, where every candidate has one."""
        if candidate.number >= 0 and self.children == "all":
            self._tell(record)

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """There is a hypervolume: log it with the other curves, and the front as a figure and as a table."""
        self._counts[generation] = len(record.results)
        self._tell(record)

    def finished(self, record: SearchRecord, artifacts: Sequence[Path]) -> None:
        """Log winners and files, describe the front, and end the parent run; `trouble` says what came of it."""
        self._close(record, "FINISHED", artifacts, self._flush_s)

    def stopped(self) -> None:
        """Mark the parent run as interrupted; the next start continues it."""
        if self._record is not None:
            self._close(self._record, "KILLED", [], STOP_S)

    def complete(self, record: SearchRecord, artifacts: Sequence[Path]) -> None:
        """Log all that a record holds and MLflow does not have, at once. Raises `TrackingError`."""
        self._use(record)
        self._end = ("FINISHED" if record.finished else "KILLED", list(artifacts))
        try:
            self._work()
        except Exception as error:  # MLflow's own, its server's, or whatever its database driver raises
            raise TrackingError(f"MLflow does not take the log ({without_credentials(str(error))})") from None

    @property
    def page(self) -> str:
        """Where MLflow shows the search's experiment, within its pages."""
        return experiment_page(self._experiment_id)

    def _use(self, record: SearchRecord) -> None:
        if self.uri:
            mlflow.set_tracking_uri(self.uri)
        self._where = mlflow.get_tracking_uri()
        self._record = record

    def _tell(self, record: SearchRecord) -> None:
        if self._record is not record:
            self._use(record)
        self._background.wake()

    def _close(self, record: SearchRecord, status: str, artifacts: Sequence[Path], limit_s: float) -> None:
        self._system.stop()
        self._end = (status, list(artifacts))
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
            self._candidates.log(record, record.candidates[number])
        for number in record.promotions if self.children == "all" else ():
            self._candidates.log_promotions(record, record.candidates[number])
        for generation in sorted(set(range(len(record.hypervolumes))) - self._generations):
            self._log_generation(as_of(record, generation, self._counts.get(generation)), generation)
            self._generations.add(generation)
        self._log_system()
        if end is not None and end[0] == "FINISHED":
            self._finish(record, end[1])
        elif end is not None and self.run_id is not None:
            self._client.set_terminated(self.run_id, end[0])

    def _start(self, record: SearchRecord) -> None:
        self._client = MlflowClient(self._where)
        self._experiment_id = experiment_id(self._client, self.experiment)
        names = {k: (record.config.get(k) or {}).get("name") for k in ("model", "data")}
        tags = {_SEARCH: record.search_id, **{f"dato.{k}": str(v) for k, v in names.items() if v}, "dato.reference": record.reference[:5000]}
        runs = all_runs(self._client, self._experiment_id, f"tags.`{_SEARCH}` = '{record.search_id}'")
        parents = [r for r in runs if PARENT not in r.data.tags]
        if parents:
            self.run_id = parents[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            whole = bool(parents[0].data.params)
        else:
            named = {**tags, "dato.kind": "search", **made_with(record.environment)}
            self.run_id, whole = self._client.create_run(self._experiment_id, run_name=record.search_id, tags=named).info.run_id, False
        self._candidates = CandidateRuns(self._client, self._experiment_id, self.run_id, tags, runs)
        noted = parents[0].inputs.dataset_inputs if parents and parents[0].inputs else []
        self._inputs = list(noted) or self._log_inputs()
        if not whole:  # the parameters come last: a run that has them has the rest
            self._client.set_tag(self.run_id, NOTE, search_note(record, self._pages()))
            self._client.log_dict(self.run_id, {"config": record.config, "environment": record.environment}, "search.json")
            self._client.log_batch(self.run_id, params=[Param(k, str(v)[:6000]) for k, v in sorted(flat(record.config).items())[:100]])
        self._generations = {m.step for m in self._client.get_metric_history(self.run_id, "hypervolume")}
        self._system_steps = max((m.step for m in self._client.get_metric_history(self.run_id, _STEADY)), default=0)

    def _log_inputs(self) -> list[DatasetInput]:
        if self._data is None:
            return []
        try:
            found = dataset_inputs(self._data())
        except (DataError, OSError) as error:  # the search ran elsewhere
            _log.warning("MLflow notes no data sets of this search, whose data are not on this machine (%s)", error)
            return []
        self._client.log_inputs(str(self.run_id), found)
        return found

    def _log_system(self) -> None:
        metrics, count = self._system.waiting(self._system_steps)
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(str(self.run_id), metrics=metrics[first : first + _BATCH])
        self._system.written(count)
        self._system_steps += count

    def _log_generation(self, record: SearchRecord, generation: int) -> None:
        if self.run_id is None:
            return
        self._client.log_text(self.run_id, front_table(record), f"fronts/generation_{generation:03d}.csv")
        if self._page:
            self._client.log_text(self.run_id, self._page(record), "front.html")
        self._client.set_tag(self.run_id, NOTE, search_note(record, self._pages()))
        # Last: a generation that has its hypervolume has the rest.
        self._client.log_batch(self.run_id, metrics=as_metrics(curves(record), generation))

    def _finish(self, record: SearchRecord, artifacts: Sequence[Path]) -> None:
        if self.run_id is None:
            return
        # Promotions have changed the front since the last generation was logged, its hypervolume they have not.
        metrics = {k: v for k, v in curves(record).items() if k != "hypervolume"} | final_metrics(record)
        self._client.log_batch(self.run_id, metrics=as_metrics(metrics, len(record.hypervolumes)))
        self._importance = importance(record)
        self._client.log_text(self.run_id, importance_table(self._importance), "importance.csv")
        for path in artifacts:
            self._client.log_artifact(self.run_id, str(path))
        if self.children != "none":
            self._describe_front(record)
        self._client.set_tag(self.run_id, NOTE, search_note(record, self._pages(artifacts), self._importance))
        self._client.set_terminated(self.run_id, "FINISHED")

    def _describe_front(self, record: SearchRecord) -> None:
        front, winners = {c.number: c for c, _ in record.front()}, {w.candidate.number: w for w in record.winners.values()}
        chosen = {**front, **{n: w.candidate for n, w in winners.items()}}
        for candidate in chosen.values():
            self._candidates.log(record, candidate)
        aliases = aliases_of(record)
        for number, candidate in chosen.items():
            tags, metrics = {"dato.front": "true"} if number in front else {}, dict[str, float]()
            if number in winners:
                tags["dato.winner"] = ", ".join(aliases[number])
                # What is compared between versions, such as the speedup, comes with their models (`search.publish.registry`).
                metrics = {f"verified/{k}": v for k, v in similarity_metrics(winners[number].fresh).items()}
            tags[NOTE] = candidate_note(record, candidate, self._pages())
            self._candidates.describe(number, tags, self._files(record, candidate) if self._files else {}, self._inputs, metrics)

    def registered(self, record: SearchRecord, name: str, versions: Mapping[str, str], artifacts: Sequence[Path] = ()) -> None:
        """Say in the descriptions of a finished search and its winners which versions of model `name` they became. Raises `TrackingError`.

        Args:
            record: Of the search.
            name: The registered model.
            versions: By alias.
            artifacts: As `finished` was given them.
        """
        try:
            pages = self._pages(artifacts, name, versions)
            for number in aliases_of(record) if self.children != "none" else ():
                self._candidates.tag(number, {NOTE: candidate_note(record, record.candidates[number], pages)})
            self._client.set_tag(str(self.run_id), NOTE, search_note(record, pages, self._importance))
        except Exception as error:  # as in `complete`
            raise TrackingError(f"MLflow does not take the log ({without_credentials(str(error))})") from None

    def _pages(self, artifacts: Sequence[Path] = (), name: str | None = None, versions: Mapping[str, str] | None = None) -> Pages:
        files = {"the report": "report.html", "samples": "samples.png"}
        there = {what: path.name for what, file in files.items() for path in artifacts if path.name == file}
        return Pages(
            experiment=self._experiment_id, parent=str(self.run_id), runs=self._candidates.ids, model=name, versions=versions or {},
            artifacts=there | ({"the front": "front.html"} if self._page else {}),
        )  # fmt: skip
