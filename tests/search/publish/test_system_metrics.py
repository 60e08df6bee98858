"""This machine's samples: they wait until somebody writes them, and are bounded."""

from __future__ import annotations

import time

import pytest

from search.publish.system_metrics import SystemMetrics, wanted


def test_samples_wait_until_they_are_written() -> None:
    system = SystemMetrics(0.02)
    system.start()
    end = time.monotonic() + 30
    while system.waiting(0)[1] < 2 and time.monotonic() < end:
        time.sleep(0.02)
    system.stop()
    metrics, count = system.waiting(5)
    assert count >= 2
    names = {m.key for m in metrics}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names
    assert {m.step for m in metrics} == set(range(6, 6 + count)), "after what is there already"
    assert all(m.timestamp > 1e12 for m in metrics)
    again, same = system.waiting(5)
    assert same >= count and [m.value for m in again[: len(metrics)]] == [m.value for m in metrics], "what was not written is not lost"
    system.written(count)
    assert system.waiting(0)[1] == same - count


@pytest.mark.parametrize(("given", "expected"), [(None, True), ("true", True), ("false", False)])
def test_mlflows_own_switch_turns_them_off(given: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    if given:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", given)
    assert wanted() is expected
