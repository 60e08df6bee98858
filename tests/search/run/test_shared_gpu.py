from __future__ import annotations

import pytest

from search.run.shared_gpu import shared_gpu_warning


@pytest.mark.parametrize(
    ("gpus", "workers", "together"),
    [
        (1, [("a", True), ("a", True)], 0),
        (2, [("a", True)], 0),
        (0.5, [("a", True), ("a", True)], 2),
        (0.25, [("a", True)] * 8, 4),  # eight fill two GPUs
        (0.3, [("a", True)] * 3, 3),
        (0.5, [("a", True), ("b", True)], 0),
        (0.75, [("a", True)] * 2, 0),
        (0, [("a", True), ("a", True), ("b", True)], 2),
        (0, [("a", False)] * 8, 0),
        (0.5, [], 0),
    ],
)
def test_workers_that_compute_on_one_gpu_are_counted(gpus: float, workers: list[tuple[str, bool]], together: int) -> None:
    said = shared_gpu_warning(gpus, workers, "measured")
    assert (said or "").startswith(f"{together} workers share a GPU (cluster.gpus={gpus:g})" if together else "")
    assert bool(said) == bool(together)


def test_the_warning_says_what_to_do() -> None:
    both = [("a", True)] * 2
    measured, predicted, evaluation = (shared_gpu_warning(0.5, both, latency) or "" for latency in ("measured", "predicted", None))
    assert "include the neighbours' work" in measured and "cluster.gpus=1, or search.latency=predicted" in measured
    assert "winners are timed beside" in predicted and "cluster.gpus=1" in predicted
    assert evaluation.endswith("set cluster.gpus=1")
