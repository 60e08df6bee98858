"""Where a strategy can come from: a preset's name, a file or folder, an https address, or MLflow."""

from __future__ import annotations

import os
import re
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dato import schema
from dato.card_text import BLOCK, CARD_SCHEMA
from dato.files import FileError, decode, parse_json, read_bytes, shown, user_path
from dato.https import fetch
from dato.mlflow_store import StoreError, ask, local_path, require_store
from dato.presets import is_preset, preset, presets
from dato.schema import StrategyError

MAX_BYTES = 1 << 20
"""A strategy is a few kilobytes; a larger file is not one."""
HANDED_OVER = ("strategy.json", "card.json", "card.md")
"""Files of a folder that holds one strategy: the first there is read."""
ACCEPTED = "a JSON file or a card, a folder that holds one, https://..., models:/<name>@<alias>, runs:/<run id>/<path>"


def load_document(source: str | Path) -> tuple[dict[str, Any], str]:
    """Read a strategy's document from wherever `source` points; nothing that is read is executed.

    Args:
        source: A preset's name; a strategy's JSON file, a card (``card.json`` or ``card.md``), or a folder with one of these;
            ``https://...`` of such a file; ``models:/<name>@<alias>``, ``models:/<name>/<version>`` or ``runs:/<run id>/<path>``.

    Returns:
        Steps and provenance, as `dato.schema.migrate` gives them (what the steps hold is for `dato.Strategy` to check), and where they
        were read, as messages name it.

    Raises:
        StrategyError: It cannot be read, is too large, was changed after it was written, or is something else.
    """
    if not isinstance(source, str | PathLike):
        raise StrategyError(f"cannot read a strategy from {shown(source)} of type {type(source).__name__}; give {ACCEPTED}, or a preset: {', '.join(presets())}")
    text = str(source)
    if is_preset(text):
        return preset(text), text
    if text.startswith(("models:/", "runs:/")):
        return _from_mlflow(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        address, body = fetch(text, MAX_BYTES)
        return parse(body, where=address), address
    path = user_path(source)
    if os.path.isdir(path):  # false, where Path.is_dir raises, for a name that no file can have
        path = _in_folder(path)
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileError as error:
        raise StrategyError(f"cannot read a strategy from {shown(text, 300)} ({error}); give {ACCEPTED}, or a preset: {', '.join(presets())}") from None
    return parse(content, where=str(path)), str(path)


def parse(body: bytes, where: str) -> dict[str, Any]:
    """The document of the bytes of a strategy's JSON, a card's JSON, or a Markdown card."""
    try:
        text = decode(body)
    except FileError as error:
        raise StrategyError(f"cannot read a strategy from {where}: {error}; give {ACCEPTED}") from None
    card = text.startswith("# ")
    text = text.replace("\r\n", "\n") if card else text
    try:
        data = parse_json(_block(text, where) if card else text)
    except FileError:
        return schema.read(text, where)  # which says what is wrong with it
    return _of_card(data, text, where) if card and not _is_card(data) else parse_document(data, where)


def parse_document(data: Any, where: str) -> dict[str, Any]:
    """`parse` of JSON that is parsed already: a strategy's document or a card's."""
    return _from_card(data, where) if _is_card(data) else schema.migrate(data, where)


def _is_card(data: Any) -> bool:
    return isinstance(data, dict) and str(data.get("schema")).startswith("dato.card/")


def _from_card(data: dict[str, Any], where: str) -> dict[str, Any]:
    if data["schema"] != CARD_SCHEMA:
        raise StrategyError(f"{where} has schema {shown(data['schema'])}; this version reads {CARD_SCHEMA!r}: export it again or update dato")
    if "strategy" not in data:
        raise StrategyError(f"{where} is a card without its strategy; export it again")
    return _of_card(data["strategy"], data, where)


def _of_card(document: Any, card: Any, where: str) -> dict[str, Any]:
    """The document of a card's strategy, and under "card" what the rest of the card is to be compared with: it follows from the strategy.

    The strategy is written with its digest: a card without it is one that somebody changed.
    """
    if isinstance(document, dict) and document.get("schema") in (*schema.SCHEMAS, *schema.MIGRATIONS) and "digest" not in document:
        raise StrategyError(
            f"{where} is a card whose strategy has no digest, so it was changed after it was written; get it again from where it was exported, or give "
            "the steps alone, a file of schema and steps without figures"
        )
    found = schema.migrate(document, where)
    return {**found, "card": (card, found)}


def _block(text: str, where: str) -> str:
    blocks: list[str] = BLOCK.findall(text)
    if len(blocks) != 1:
        raise StrategyError(f"{where} is Markdown with {len(blocks)} json blocks; a strategy card has one, so give card.json or strategy.json instead")
    return blocks[0]


def _in_folder(folder: Path) -> Path:
    for name in HANDED_OVER:
        if (folder / name).is_file():
            return folder / name
    raise StrategyError(f"the folder {folder} holds no strategy.json, card.json or card.md; give the folder of one strategy, such as <search>/winners/fastest")


_SECRET = r"(?:password|passwd|pwd|token|access_token|secret)"
"""Query keys whose values are credentials."""


def without_credentials(text: str) -> str:
    """An address or message without the passwords and tokens in its addresses."""
    return re.sub(rf"([?&]{_SECRET}=)[^&\s]+", r"\1***", re.sub(r"(://)[^/@\s]+@", r"\1***@", text), flags=re.IGNORECASE)


def holds_credentials(address: str) -> bool:
    """Whether an address holds a password or token. A database's user name alone is none."""
    parts = urlsplit(address)
    token = parts.scheme in ("http", "https") and parts.username
    return bool(parts.password or token or re.search(rf"[?&]{_SECRET}=.", address, flags=re.IGNORECASE))


def _from_mlflow(uri: str) -> tuple[dict[str, Any], str]:
    try:
        import mlflow
    except ImportError:
        raise StrategyError(f"{uri} needs MLflow: pip install mlflow, or ask for its strategy.json or card.json and give that file") from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = mlflow.get_registry_uri() if uri.startswith("models:/") else mlflow.get_tracking_uri()
            require_store(store)
            if local_path(store) is None:  # reading waits for no lock
                ask(store)
            _require_artifacts(uri)
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except StoreError as error:
            raise StrategyError(f"cannot read {uri} from MLflow: {without_credentials(str(error))}") from None
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise StrategyError(
                f"cannot read {uri} from MLflow at {without_credentials(mlflow.get_registry_uri())}: {without_credentials(str(error))}. "
                "Set MLFLOW_TRACKING_URI to the server that holds it and check its name and alias, or the run's id"
            ) from None
        if found.is_dir() and not (found / "strategy.json").is_file():
            raise StrategyError(f"{uri} holds no strategy.json; give a model that dato exported")
        document, _ = load_document(found)
        return {**document, "provenance": {**document["provenance"], "loaded_from": uri}}, uri


def _require_artifacts(uri: str) -> None:
    """Refuse a model or run whose files are on this machine no more: MLflow would hand out an empty folder. Raises `StoreError`."""
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

    kind = ModelsArtifactRepository if uri.startswith("models:/") else RunsArtifactRepository
    path = local_path(str(kind.get_underlying_uri(uri)))
    if path is not None and not path.exists() and not (kind is RunsArtifactRepository and _is_logged_model(uri)):
        raise StoreError(
            f"its files were stored at {path}, where nothing is. MLflow keeps whole paths: if its folder was moved, put it back, or link the old place to the "
            "new one (ln -s <new folder> <old folder>), or give the strategy.json that is in the moved folder; otherwise export again, dato export to=registry"
        )


def _is_logged_model(uri: str) -> bool:
    """Whether ``runs:/<run id>/<name>`` names a model that the run logged, whose files MLflow keeps beside those of its runs."""
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
    from mlflow.tracking import MlflowClient

    (run_id, name), client = RunsArtifactRepository.parse_runs_uri(uri), MlflowClient()
    outputs = client.get_run(run_id).outputs
    models = [client.get_logged_model(o.model_id) for o in outputs.model_outputs] if outputs else []
    return any(model.name == name and model.source_run_id == run_id for model in models)
