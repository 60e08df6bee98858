from __future__ import annotations

import pytest

from search.evaluate.evaluator import PipelineEvaluator
from search.run.jobs import WORKER_DIED, Job, Task


@pytest.mark.parametrize("task", Task)
def test_every_task_is_a_method_of_the_evaluator(task: Task) -> None:
    assert callable(getattr(PipelineEvaluator, task.value))


def test_what_pools_may_do_with_each() -> None:
    assert {t for t in Task if t.is_timed} == {Task.EVALUATE, Task.COSTS}
    assert {t for t in Task if t.proves} == {Task.EVALUATE, Task.REFERENCE}
    assert {t for t in Task if t.is_divisible} == {Task.EVALUATE}


def test_a_job_says_each_reason_once_and_whether_it_ends_workers() -> None:
    job = Job(0, [], [], errors=["a cable is loose", "out of memory"], blamed=["out of memory", "out of memory"])
    assert job.reason == "out of memory"
    job.blamed = [f"{WORKER_DIED}: {i}" for i in range(3)]
    assert job.reason.startswith("quarantined, it killed 3 workers")
