"""Candidates that do not fit, on real workers with a real pipeline and allocations that no machine has room for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dato.strategy import Strategy
from search.evaluate.evaluator import EvaluatorSpec, PipelineEvaluator
from search.evaluate.variants import Variant
from search.run.jobs import Job
from search.run.ray_pool import RayPool
from tests.search.evaluate.test_evaluator import SPEC

GREEDY = Strategy.uniform(4, 3)


@dataclass(frozen=True)
class Greedy:
    """The evaluator of a specification, where one strategy needs more memory than there is."""

    spec: EvaluatorSpec
    folder: str

    def build(self) -> PipelineEvaluator:
        folder = Path(self.folder)

        class Evaluator(PipelineEvaluator):
            def _make(self, variant: Variant, indices: Sequence[int]) -> Any:
                if variant.baseline.strategy == GREEDY:
                    with (folder / "tries").open("a") as file:
                        file.write(f"{os.getpid()}\n")
                    torch.empty(1 << 50)
                return super()._make(variant, indices)

        return Evaluator(self.spec)


@pytest.mark.slow
def test_a_candidate_that_does_not_fit_is_recorded_as_that_and_its_worker_goes_on(tmp_path: Path) -> None:
    pool = RayPool(Greedy(SPEC, str(tmp_path)), workers=2, cpus=0, load_timeout_s=200)
    batches = SPEC.protocol.batches()[:1]
    greedy = [Job(f"greedy {i}", [GREEDY], batches) for i in range(2)]
    try:
        list(pool.map([Job(i, [Strategy.full(4)], batches) for i in range(4)]))
        workers = [slot.actor for slot in pool._crew.slots.values()]
        results = {job.key: shards for job, shards in pool.map([*greedy, *(Job(i, [Strategy.full(4)], batches) for i in range(4))])}
        still = [slot.actor for slot in pool._crew.slots.values()]
    finally:
        pool.close()
    assert {key for key, shards in results.items() if shards is None} == {job.key for job in greedy}
    assert all(len(results[i][0].features) == len(batches[0]) for i in range(4))
    for job in greedy:
        assert job.tries <= 2
        assert "out of memory on" in job.reason
        assert "4503599627370496 bytes were asked for" in job.reason
        assert "protocol.batch" in job.reason
    assert still == workers, "no process was exchanged"
    assert len((tmp_path / "tries").read_text().split()) <= 8, "twice on each worker that judges it"
