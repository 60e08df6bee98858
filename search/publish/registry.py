"""Strategies into the MLflow model registry: one registered model, a version a strategy, aliases that move to winners."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ParamSchema, ParamSpec
from sqlalchemy.exc import SQLAlchemyError

from dato.card import write_card
from dato.mlflow_store import StoreError, ask, check_address
from dato.sources import without_credentials
from dato.strategy import Strategy
from search.publish.aliases import Standing, why_not
from search.publish.candidate_runs import as_metrics
from search.publish.mlflow_notes import model_note, version_note
from search.publish.mlflow_queries import experiment_id
from search.publish.mlflow_values import guided_share, sampler_name
from search.publish.strategies import check_names

PYFUNC = Path(__file__).with_name("pyfunc.py")
# No input schema: MLflow would make one row of {"prompt": [...]}, and one image.
_SIGNATURE = ModelSignature(params=ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("output", "string", "pil")]))
_MODEL_CONFIG = {"path": None, "device": None, "dtype": None, "batch": 8}  # what load_model(model_config=...) may change
_REQUIREMENTS = ["dato-search", "mlflow"]
_CONTENT = "dato.sha256"
_FIRST_NOTE = 'DaTo strategies: dato.Strategy.load("models:/<name>@<alias>"), or mlflow.pyfunc.load_model'
"""The description of registered models of before, of which MLflow's page shows models:/@ alone."""


class RegistryError(RuntimeError):
    """A registry that does not take a strategy: the message says why and what to do."""


@dataclass(frozen=True)
class Registered:
    """What came of it.

    Attributes:
        versions: Alias or name to version number, of every strategy.
        stayed: For each alias that was not moved to its strategy, what stands there and why.
    """

    versions: dict[str, str]
    stayed: dict[str, str]


def register(name: str, strategies: Mapping[str, Strategy], run_id: str, *, uri: str | None = None, replace: bool = False) -> Registered:
    """Make a version of model `name` of each strategy, then move the aliases to those that are better than what stands there.

    A strategy that won several aliases gets one version with all of them, and what is there already, the same strategy with the same
    provenance, gets no second one. A version is of a logged model, an MLflow pyfunc whose code is `search.publish.pyfunc`, next to
    ``strategy.json`` and its card; its source is the candidate's run where there is one. An alias moves by the rule of
    `search.publish.aliases.why_not`: a strategy that was measured on no fresh images gets a version, and no alias. Either all aliases
    that may move do, or none does.

    Args:
        name: Registered model; made if missing.
        strategies: By alias: "quality", "balanced", "fastest", or another name of letters, digits, - and _.
        run_id: The run of the search, or of the import, that the versions belong to.
        uri: Tracking URI; None for the one that is set.
        replace: Move the aliases of all that were measured on fresh images, whatever stands there.

    Raises:
        RegistryNameError: A name that MLflow does not take.
        RegistryError: The registry refuses; the aliases point to where they did before.
    """
    for alias in strategies:
        check_names(name, alias)
    client = _connect(uri)
    try:
        _ensure_model(client, name, list(strategies))
        there = {v.tags.get(_CONTENT): str(v.version) for v in client.search_model_versions(f"name = '{name}'") if v.status == "READY"}
        versions: dict[str, str] = {}
        for aliases in _together(strategies):
            known = {a: found for a in aliases if (found := there.get(_content(a, strategies[a])))}
            version = next(iter(known.values()), None) or _make_version(client, name, aliases, strategies[aliases[0]], run_id)
            versions |= {a: known.get(a, version) for a in aliases}
        stayed = {a: why for a, v in versions.items() if (why := _why_not(client, name, a, strategies[a], v, replace))}
        _move_aliases(client, name, {a: v for a, v in versions.items() if a not in stayed})
    except (MlflowException, SQLAlchemyError, OSError) as error:
        where = without_credentials(str(uri or mlflow.get_registry_uri()))
        raise RegistryError(
            f"the registry at {where} does not take {name!r}: {without_credentials(str(error))}. Nothing of it was changed that anybody "
            "uses: the aliases are where they were. Check that you may write there (MLFLOW_TRACKING_URI and its credentials), or export to=folder"
        ) from None
    return Registered(versions, stayed)


def _connect(uri: str | None) -> MlflowClient:
    """A client of an MLflow that answers, and keeps what it is given. Raises `RegistryError`."""
    try:
        check_address(uri or mlflow.get_tracking_uri(), "uri" if uri else "the MLflow address")
        for address in {uri or mlflow.get_tracking_uri(), os.environ.get("MLFLOW_REGISTRY_URI", "")}:
            ask(address)
        return MlflowClient(uri)
    except (StoreError, MlflowException, SQLAlchemyError, OSError) as error:
        raise RegistryError(f"{without_credentials(str(error))}. Nothing was registered; to=folder needs no MLflow") from None


def _why_not(client: MlflowClient, name: str, alias: str, strategy: Strategy, version: str, replace: bool) -> str | None:
    """Why the alias stays where it is, or None where it moves, or is there."""
    new, there = Standing.of(strategy), client.get_registered_model(name).aliases.get(alias)
    if there is None or str(there) == version or (replace and new.images):
        return None if new.images or str(there) == version else why_not(alias, new, Standing(what="nothing"))
    old = Standing.of_tags(f"version {there}", client.get_model_version(name, str(there)).tags)
    return why_not(alias, new, old)


def run_of_search(search_id: str, experiment: str, uri: str | None = None, kind: str = "search") -> str:
    """The parent run of a search, which is made where MLflow does not have it; of kind "import" for a strategy handed over. Raises `RegistryError`."""
    client = _connect(uri)
    try:
        where = experiment_id(client, experiment)
        runs = client.search_runs([where], f"tags.`dato.search_id` = '{search_id}' and tags.`dato.kind` = '{kind}'", max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        run = client.create_run(where, run_name=search_id, tags={"dato.search_id": search_id, "dato.kind": kind})
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise RegistryError(
            f"MLflow at {without_credentials(str(uri or mlflow.get_tracking_uri()))} cannot be used: {without_credentials(str(error))}. "
            "Set MLFLOW_TRACKING_URI to a server that you may write to, or export to=folder"
        ) from None


def _ensure_model(client: MlflowClient, name: str, aliases: Sequence[str]) -> None:
    said = model_note(name, aliases or ["fastest"])
    try:
        if client.get_registered_model(name).description == _FIRST_NOTE:
            client.update_registered_model(name, said)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, description=said)


def _together(strategies: Mapping[str, Strategy]) -> list[list[str]]:
    """The aliases of each strategy: what differs in its alias alone is one."""
    found: dict[str, list[str]] = {}
    for alias, strategy in strategies.items():
        notes = {k: v for k, v in strategy.provenance.items() if k != "alias"}
        found.setdefault(replace_fields(strategy, provenance=notes).to_json(), []).append(alias)
    return list(found.values())


def _make_version(client: MlflowClient, name: str, aliases: Sequence[str], strategy: Strategy, run_id: str) -> str:
    parent, first, tags = client.get_run(run_id).info, aliases[0], _tags(aliases, strategy)
    run = _candidate_run(client, parent.experiment_id, strategy) or run_id
    params = {"sampler": sampler_name(strategy), "steps": str(len(strategy)), "strategy": str(strategy)[:6000]}
    model = client.create_logged_model(
        parent.experiment_id, name=f"{first}-{strategy.digest}", source_run_id=run, tags=tags, params=params, model_type="diffusion strategy"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            _save_model(strategy, write_card(strategy, Path(folder) / "card"), target, Model(model_id=model.model_id, run_id=run, artifact_path=model.artifact_location))
            client.log_model_artifacts(model.model_id, str(target))
        client.finalize_logged_model(model.model_id, "READY")
    except (MlflowException, SQLAlchemyError, OSError):
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    for owner in dict.fromkeys((run, run_id)):
        client.log_outputs(owner, [LoggedModelOutput(model.model_id, 0)])
    client.log_batch(run, metrics=as_metrics(_figures(strategy), 0, model.model_id))
    note = version_note(strategy, name, aliases, parent.experiment_id, run)
    version = client.create_model_version(name, model.artifact_location, run_id=run, tags=tags, description=note, model_id=model.model_id)
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": str(version.version)}])})
    return str(version.version)


def _candidate_run(client: MlflowClient, experiment: str, strategy: Strategy) -> str | None:
    """The run of the candidate that a strategy was in its search, or None where MLflow has none."""
    search = str(strategy.provenance.get("search_id") or "")
    if not search or "'" in search:
        return None
    query = f"tags.`dato.search_id` = '{search}' AND tags.`dato.kind` = 'candidate' AND tags.`dato.digest` = '{strategy.digest}'"
    found = client.search_runs([experiment], query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _figures(strategy: Strategy) -> dict[str, float]:
    """What versions are compared by, by metric name: measured on fresh images."""
    quality, latency = _mapping(strategy, "quality"), _mapping(strategy, "latency")
    low, high = quality.get("difference_interval") or (None, None)
    found = {
        "speedup": latency.get("speedup"), "latency_ms": latency.get("value"), "fid": quality.get("value"), "fid_difference": quality.get("difference"),
        "fid_difference_low": low, "fid_difference_high": high, "images": quality.get("images"),
    }  # fmt: skip
    return {f"verified/{k}": float(v) for k, v in found.items() if isinstance(v, int | float)}


def _save_model(strategy: Strategy, card: Path, target: Path, model: Model) -> None:
    # Recorded, not filtered: MLflow sets filters of its own around the first of these.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mlflow.pyfunc.save_model(
            target,
            mlflow_model=model,
            python_model=str(PYFUNC),
            artifacts={"strategy": str(card / "strategy.json")},
            model_config=_MODEL_CONFIG,
            signature=_SIGNATURE,
            pip_requirements=_REQUIREMENTS,
            metadata={"dato.digest": strategy.digest},
        )
    for warning in said:
        # The signature stands for type hints, and to try an example would load the whole pipeline.
        if not any(known in str(warning.message) for known in ("Add type hints to the `predict` method", "An input example was not provided")):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    write_card(strategy, target)


def _content(alias: str, strategy: Strategy) -> str:
    """Identity of all that a version holds; of several aliases, the first counts."""
    return hashlib.sha256(f"{alias} {strategy.to_json()}".encode()).hexdigest()


def _tags(aliases: Sequence[str], strategy: Strategy) -> dict[str, str]:
    quality, latency = _mapping(strategy, "quality"), _mapping(strategy, "latency")
    interval = quality.get("difference_interval")
    tags = {
        "dato.digest": strategy.digest,
        "dato.steps": len(strategy),
        "dato.sampler": sampler_name(strategy),
        "dato.guided_share": _number(guided_share(strategy)),
        _CONTENT: _content(aliases[0], strategy),
        "dato.alias": ", ".join(aliases),
        "dato.validated": str(strategy.provenance.get("validated") is True).lower(),
        "dato.search_id": strategy.provenance.get("search_id"),
        "dato.speedup": _number(latency.get("speedup")),
        "dato.fid_difference": _number(quality.get("difference")),
        "dato.fid_difference_interval": " .. ".join(f"{e:.3f}" for e in interval) if interval else None,
        "dato.device": latency.get("device"),
        "dato.reference": quality.get("reference"),
        "dato.in_words": quality.get("in_words"),
        **Standing.of(strategy).to_tags(),
    }
    return {k: str(v)[:5000] for k, v in tags.items() if v}


def _move_aliases(client: MlflowClient, name: str, versions: Mapping[str, str]) -> None:
    before = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    moved: list[str] = []
    try:
        for alias, version in versions.items():
            client.set_registered_model_alias(name, alias, version)
            moved.append(alias)
    except (MlflowException, SQLAlchemyError, OSError):
        for alias in moved:
            if alias in before:
                client.set_registered_model_alias(name, alias, before[alias])
            else:
                client.delete_registered_model_alias(name, alias)
        raise


def _mapping(strategy: Strategy, key: str) -> Mapping[str, Any]:
    found = strategy.provenance.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> str | None:
    return f"{value:.4f}" if isinstance(value, int | float) else None
