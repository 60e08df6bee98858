"""The real images' features, extracted by a worker's evaluator and kept where the command runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.data.datasets import Data
from search.evaluate.evaluator import PipelineEvaluator
from search.evaluate.measure import load_metrics
from search.metrics.feature_net import QualityError
from search.metrics.reference import reference_features, reference_moments
from search.run.jobs import Task
from search.run.pools import InProcessPool
from search.run.real_images import RealImagesOnWorker
from tests.search.evaluate.test_evaluator import SPEC


class Counted:
    """A worker that notes what it is asked."""

    def __init__(self, evaluator: PipelineEvaluator) -> None:
        self.evaluator, self.asked = evaluator, list[str]()

    def build(self) -> Counted:
        return self

    def run(self, strategies: Sequence[Any], batches: Sequence[Any]) -> Any:
        return self.evaluator.run(strategies, batches)

    def real_moments(self, variants: Sequence[Any], batches: Sequence[Any]) -> Any:
        self.asked.append("moments")
        return self.evaluator.real_moments(variants, batches)

    def real_features(self, variants: Sequence[Any], batches: Sequence[Any]) -> Any:
        self.asked.append("features")
        return self.evaluator.real_features(variants, batches)


@pytest.fixture(scope="module")
def worker() -> Counted:
    return Counted(SPEC.build())


def test_a_worker_extracts_them_once_and_the_command_keeps_them(worker: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = RealImagesOnWorker(InProcessPool(worker)), Data(SPEC.data)
    there, _ = reference_moments(data, "embedded", cache=tmp_path / "there", source=source)
    here, _ = reference_moments(data, "embedded", cache=tmp_path / "here")
    torch.testing.assert_close(there.scatter, here.scatter)
    features, unreadable = reference_features(data, "embedded", cache=tmp_path / "there", source=source)
    assert (len(features), unreadable) == (there.count, [])
    assert worker.asked == ["moments", "features"]
    assert torch.equal(reference_moments(data, "embedded", cache=tmp_path / "there", source=source)[0].mean, there.mean)
    assert worker.asked == ["moments", "features"], "from the cache"
    monkeypatch.setenv("DATO_CACHE", str(tmp_path / "there"))
    # The device is the workers': the command may run where there is none.
    metrics = load_metrics(replace(SPEC, model=replace(SPEC.model, device="cuda:7"), metrics=("fid", "kid")), source=source)
    assert metrics.fid is not None
    assert metrics.reference_images == there.count
    assert worker.asked == ["moments", "features"]


def test_where_no_worker_can_read_them_it_is_said_with_what_to_do(worker: Counted, tmp_path: Path) -> None:
    class Broken(Counted):
        def real_moments(self, variants: Sequence[Any], batches: Sequence[Any]) -> Any:
            raise FileNotFoundError("photos/1.jpg is not there")

    source = RealImagesOnWorker(InProcessPool(Broken(worker.evaluator)))
    with pytest.raises(QualityError, match=r"cannot be extracted: FileNotFoundError: photos/1.jpg is not there; mend that, or give data.statistics"):
        reference_moments(Data(SPEC.data), "embedded", cache=tmp_path, source=source)


def test_tasks_of_real_images_prove_nothing_and_are_whole() -> None:
    for task in (Task.REAL_MOMENTS, Task.REAL_FEATURES):
        assert not (task.is_timed or task.proves or task.is_divisible)
