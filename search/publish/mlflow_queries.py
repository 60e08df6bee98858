"""What MLflow is asked for."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made where it is missing."""
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        # Another search may have made it between the two calls.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def all_runs(client: MlflowClient, experiment: str, query: str) -> list[Any]:
    """Every run of an experiment that a filter finds, of which MLflow gives a thousand at a time."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs
