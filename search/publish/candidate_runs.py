"""The runs of a search's candidates in MLflow: one each, found again when a search goes on, and described where one is on the front or won."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from search.publish.mlflow_values import child_metrics, child_params, child_tags
from search.records import Candidate, SearchRecord

PARENT = "mlflow.parentRunId"


class CandidateRuns:
    """Writes each candidate's run once.

    Args:
        client: Of the store that holds them.
        experiment_id: Where they are.
        parent: The search's run.
        tags: That every run of the search has.
        there: Runs of the search that MLflow has already.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, parent: str, tags: Mapping[str, str], there: Sequence[Any] = ()) -> None:
        self._client, self._experiment_id, self._parent, self._tags = client, experiment_id, parent, dict(tags)
        children = {r.data.tags["dato.candidate"]: r.info for r in there if "dato.candidate" in r.data.tags}
        self._begun = {n: info for n, info in children.items() if info.status == "RUNNING"}
        """Runs that were made, and not completed: cut off, they are completed and not made anew."""
        self._logged = {n: info.run_id for n, info in children.items() if n not in self._begun}
        self._failed = {n for n, info in children.items() if info.status == "FAILED"}
        """Candidates whose runs say that they failed."""
        self._promoted: set[tuple[int, int, bool]] = set()

    @property
    def ids(self) -> dict[int, str]:
        """Run of each candidate that has one, by number."""
        return {int(n): run_id for n, run_id in self._logged.items()}

    def log(self, record: SearchRecord, candidate: Candidate) -> None:
        """Write what a candidate is and gave, unless it is there."""
        number, measurement = str(candidate.number), record.results[candidate.number]
        if number in self._logged and not (measurement.ok and number in self._failed):
            return
        if number in self._logged:  # it was tried again, and did not fail
            info = self._client.get_run(self._logged[number]).info
            self._client.delete_tag(info.run_id, "dato.error")
            self._client.set_tag(info.run_id, "dato.device", measurement.device)
        else:
            tags = {**self._tags, PARENT: self._parent, **child_tags(candidate, measurement)}
            info = self._begun.get(number) or self._client.create_run(self._experiment_id, run_name=f"candidate {candidate.number}", tags=tags).info
        self._begun[number] = info
        self._client.log_batch(
            info.run_id,
            metrics=as_metrics(child_metrics(record, candidate, measurement), 0),
            params=[Param(k, v) for k, v in child_params(candidate.strategy).items()],
        )
        self._log_strategy(info.artifact_uri, candidate)
        self._client.set_terminated(info.run_id, "FINISHED" if measurement.ok else "FAILED")
        self._logged[number] = info.run_id
        del self._begun[number]
        (self._failed.discard if measurement.ok else self._failed.add)(number)

    def log_promotions(self, record: SearchRecord, candidate: Candidate) -> None:
        """Write what a candidate gave on more images, unless it is there."""
        for images, m in record.promotions[candidate.number].items():
            if (candidate.number, images, m.ok) in self._promoted:
                continue
            values = {k: v for k, v in child_metrics(record, candidate, m).items() if k in ("fid", "fid_difference") or k.startswith(("with/fid_", "with/feature_"))}
            named = {f"at_{images}_images/{k}": v for k, v in values.items()}
            # The columns that people sort by hold what was measured last, on the most images.
            self._client.log_batch(self._logged[str(candidate.number)], metrics=[*as_metrics(named, 0), *as_metrics({**values, "with/images": float(images)}, images)])
            self._promoted.add((candidate.number, images, m.ok))

    def describe(
        self, number: int, tags: Mapping[str, str], files: Mapping[str, bytes], inputs: Sequence[DatasetInput] = (), metrics: Mapping[str, float] | None = None
    ) -> None:
        """Give a candidate's run tags, files by name, data sets and metrics: of the front and of winners alone, so that thousands browse fast."""
        run_id = self._logged[str(number)]
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    Path(folder, name).write_bytes(content)
                self._client.log_artifacts(run_id, folder)
        if inputs:
            self._client.log_inputs(run_id, list(inputs))
        self._client.log_batch(run_id, metrics=as_metrics(metrics or {}, 0), tags=[RunTag(k, v) for k, v in tags.items()])

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Give a candidate's run tags."""
        self._client.log_batch(self._logged[str(number)], tags=[RunTag(k, v) for k, v in tags.items()])

    def _log_strategy(self, artifact_uri: str, candidate: Candidate) -> None:
        # Not client.log_text, which reads the whole run again to find out where its artifacts are.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "strategy.json"
            path.write_text(candidate.strategy.to_json(), encoding="utf-8")
            get_artifact_repository(artifact_uri, tracking_uri=self._client.tracking_uri).log_artifact(str(path))


def as_metrics(values: Mapping[str, float], step: int, model_id: str | None = None) -> list[Metric]:
    """For `MlflowClient.log_batch`: those that are numbers, of a run, or of a run and a logged model."""
    now = int(time.time() * 1000)
    return [Metric(k, v, now, step, model_id=model_id) for k, v in values.items() if math.isfinite(v)]
