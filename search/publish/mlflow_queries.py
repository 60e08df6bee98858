"""What MLflow is asked for."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

_KIND = "mlflow.experimentKind"
_RUNS_FIRST = "custom_model_development"
"""The kind of experiment that MLflow's page opens on its runs; one of none, or one that it guessed, opens on traces. No constant of its Python package."""
_GUESSED = ("", "no_inferred_type")


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made where it is missing, and whose page opens on its runs, unless somebody chose otherwise."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags={_KIND: _RUNS_FIRST}))
        except MlflowException:
            # Another search may have made it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    kind = found.tags.get(_KIND, "")
    if kind in _GUESSED or kind.endswith("_inferred"):
        client.set_experiment_tag(found.experiment_id, _KIND, _RUNS_FIRST)
    return str(found.experiment_id)


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
