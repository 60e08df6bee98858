"""Where a strategy can come from: a preset's name, a file or folder, an https address, or MLflow."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dato import schema
from dato.https import fetch
from dato.presets import is_preset
from dato.strategy import Strategy, StrategyError

MAX_BYTES = 1 << 20
"""A strategy is a few kilobytes; a larger file is not one."""
HANDED_OVER = ("strategy.json", "card.json", "card.md")
"""Files of a folder that holds one strategy: the first there is read."""
CARD_SCHEMA = "dato.card/1"
ACCEPTED = "a JSON file or a card, a folder that holds one, https://..., models:/<name>@<alias>, runs:/<run id>/<path>"


def load_strategy(source: str | Path) -> Strategy:
    """Read a strategy from wherever `source` points; nothing that is read is executed.

    Args:
        source: A preset's name; a strategy's JSON file, a card (``card.json`` or ``card.md``), or a folder with one of these;
            ``https://...`` of such a file; ``models:/<name>@<alias>``, ``models:/<name>/<version>`` or ``runs:/<run id>/<path>``.

    Raises:
        StrategyError: It cannot be read, is too large, was changed after it was written, or is something else.
    """
    text = str(source)
    if is_preset(text):
        return Strategy.preset(text)
    if text.startswith(("models:/", "runs:/")):
        return _from_mlflow(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        address, body = fetch(text, MAX_BYTES)
        return parse(body, where=address)
    path = Path(source)
    try:
        if path.is_dir():
            path = _in_folder(path)
        if path.stat().st_size > MAX_BYTES:
            raise StrategyError(f"{path} has {path.stat().st_size} bytes; a strategy file has at most {MAX_BYTES}")
        return parse(path.read_bytes(), where=str(path))
    except OSError as error:
        raise StrategyError(
            f"cannot read a strategy from {text!r} ({error.strerror}); give {ACCEPTED}, or a preset: {', '.join(Strategy.presets())}"
        ) from None


def parse(body: bytes, where: str) -> Strategy:
    """A strategy from the bytes of a strategy's JSON, a card's JSON, or a Markdown card."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrategyError(f"cannot read a strategy from {where}: it is not UTF-8 text ({error.reason}); give {ACCEPTED}") from None
    if text.startswith("# "):
        return Strategy.from_json(_block(text, where), where)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return Strategy.from_json(text, where)  # which says what is wrong with it
    return Strategy.from_document(_from_card(data, where), where) if _is_card(data) else Strategy.from_json(text, where)


def _is_card(data: Any) -> bool:
    return isinstance(data, dict) and str(data.get("schema")).startswith("dato.card/")


def _from_card(data: dict[str, Any], where: str) -> dict[str, Any]:
    if data["schema"] != CARD_SCHEMA:
        raise StrategyError(f"{where} has schema {data['schema']!r}; this version reads {CARD_SCHEMA!r}: export it again or update dato")
    if "strategy" not in data:
        raise StrategyError(f"{where} is a card without its strategy; export it again")
    return schema.migrate(data["strategy"], where)


def _block(text: str, where: str) -> str:
    blocks: list[str] = re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
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


def _from_mlflow(uri: str) -> Strategy:
    try:
        import mlflow
    except ImportError:
        raise StrategyError(f"{uri} needs MLflow: pip install mlflow, or ask for its strategy.json or card.json and give that file") from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise StrategyError(
                f"cannot read {uri} from MLflow at {without_credentials(mlflow.get_registry_uri())}: {without_credentials(str(error))}. "
                "Set MLFLOW_TRACKING_URI to the server that holds it and check its name and alias, or the run's id"
            ) from None
        if found.is_dir() and not (found / "strategy.json").is_file():
            raise StrategyError(f"{uri} holds no strategy.json; give a model that dato exported")
        return load_strategy(found).with_provenance(loaded_from=uri)
