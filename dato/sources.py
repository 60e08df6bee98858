"""Where a strategy can come from: a preset's name, a JSON file, or a model registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dato.strategy import Strategy, StrategyError

MAX_BYTES = 1 << 20
"""A strategy is a few kilobytes; a larger file is not one."""


def load_strategy(source: str | Path) -> Strategy:
    """Read a strategy from `source`: a preset's name, a JSON file, a folder with ``strategy.json``, or ``models:/...``."""
    text = str(source)
    if text.partition("@")[0] in Strategy.presets():
        return Strategy.preset(text)
    if text.startswith(("models:/", "runs:/")):
        return _from_registry(text)
    path = Path(source)
    if path.is_dir():
        path /= "strategy.json"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StrategyError(f"{path} has {path.stat().st_size} bytes; a strategy file has at most {MAX_BYTES}")
        return Strategy.from_json(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StrategyError(
            f"cannot read a strategy from {text!r} ({reason}); give a JSON file, models:/<name>@<alias>, "
            f"or a preset: {', '.join(Strategy.presets())}"
        ) from None


def _from_registry(uri: str) -> Strategy:
    try:
        import mlflow
    except ImportError:
        raise StrategyError(f"{uri} needs MLflow: pip install mlflow, or give a JSON file") from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise StrategyError(
                f"cannot read {uri} from the registry at {mlflow.get_registry_uri()}: {error}. "
                "Set MLFLOW_TRACKING_URI to the server that holds it and check name and alias"
            ) from None
        files = sorted(found.rglob("strategy.json")) if found.is_dir() else [found]
        if not files:
            raise StrategyError(f"{uri} holds no strategy.json; give a model that dato exported")
        return load_strategy(files[0]).with_provenance(loaded_from=uri)
