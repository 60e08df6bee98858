"""Winners into the MLflow model registry: one registered model, a version a winner, an alias that moves to it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dato.strategy import Strategy


class RegistryError(RuntimeError):
    """A registry that does not take a strategy: the message says why and what to do."""


def register(name: str, strategies: Mapping[str, Strategy], run_id: str) -> dict[str, str]:
    """Register a version of model `name` for each alias, then move the aliases to them.

    The versions hold ``strategy.json``, which ``dato.Strategy.load("models:/<name>@<alias>")`` reads. The aliases move
    only after every version is there.

    Returns:
        Alias to version number.
    """
    client = MlflowClient()
    versions = {}
    try:
        try:
            client.get_registered_model(name)
        except MlflowException:
            client.create_registered_model(name, description="DaTo strategies: load with dato.Strategy.load")
        for alias, strategy in strategies.items():
            with tempfile.TemporaryDirectory() as folder:
                strategy.save(Path(folder) / "strategy.json")
                client.log_artifacts(run_id, folder, f"winners/{alias}")
            source = f"{client.get_run(run_id).info.artifact_uri}/winners/{alias}"
            tags = {"dato.digest": strategy.digest}
            version = client.create_model_version(name, source, run_id=run_id, tags=tags, description=f"{alias}: {strategy}")
            versions[alias] = str(version.version)
        for alias, version_number in versions.items():
            client.set_registered_model_alias(name, alias, version_number)
    except (MlflowException, OSError) as error:
        raise RegistryError(f"the registry at {mlflow.get_registry_uri()} does not take {name!r}: {error}; the JSON files are written all the same") from None
    return versions


def registered_digest(name: str, alias: str) -> str | None:
    """The digest of the strategy that an alias points to, or None."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias).tags.get("dato.digest")
    except MlflowException:
        return None
