"""Prompts and real images of a search as MLflow's datasets: names, sources and digests, not the data themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from search.data.datasets import CAPTIONS, Data

_NAME, _DIGEST = 500, 36
"""Characters of a data set's name and digest that MLflow takes at most."""
_Source = tuple[str, dict[str, Any]]
"""Of MLflow: the type of a source, and what it holds."""


def dataset_inputs(data: Data) -> list[DatasetInput]:
    """What a search generates and what it compares with, for `MlflowClient.log_inputs`.

    Prompts are digested by their texts. Real images are by the names and sizes of their files, not by their content, which may be many
    gigabytes; the digits that ship, by content.
    """
    spec = data.spec
    listed = {"prompts": len(data.prompts), "first": data.prompts[:3]}
    found = [_input("prompts", f"{spec.name}: prompts", _prompt_source(data), _digest(f"{p}\n".encode() for p in data.prompts), listed)]
    if spec.own_reference:
        return found
    name, said = f"{spec.name}: real images", {"reference": data.reference_in_words()}
    if spec.statistics:
        path = Path(spec.statistics)
        size = path.stat().st_size if path.is_file() else 0
        return [*found, _input("reference", f"{spec.name}: statistics of real images", _file(path), _digest([f"{path.name}|{size}".encode()]), said)]
    if spec.kind == "digits":
        return [*found, _input("reference", name, _code("sklearn.datasets.load_digits"), _digest(data.reference_content()), said)]
    digest = _digest(f"{p.name}|{p.stat().st_size}\n".encode() for p in data.paths)
    said |= {"digest_of": "names and sizes of the files", "preprocessing": data.preprocessing}
    return [*found, _input("reference", name, _file(spec.images), digest, said)]


def _prompt_source(data: Data) -> _Source:
    spec = data.spec
    if spec.kind == "digits":
        return _code("search.embedded.digits.prompt")
    if spec.kind == "coco":
        return _file(spec.captions)
    if spec.kind == "prompts" and spec.prompts == "captions":
        return _file(CAPTIONS)
    if spec.kind == "imagenet" or (spec.kind == "prompts" and spec.prompts == "imagenet"):
        return _file(spec.classes) if spec.classes else _code("search.data.imagenet.prompts_of")
    return _file(spec.prompts)


def _file(path: str | Path | None) -> _Source:
    return "local", {"uri": str(Path(path or "").absolute())}


def _code(name: str) -> _Source:
    return "code", {"tags": {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}}


def _digest(pieces: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(piece)
    return whole.hexdigest()[:_DIGEST]


def _input(context: str, name: str, source: _Source, digest: str, profile: Mapping[str, Any]) -> DatasetInput:
    dataset = Dataset(name=name[:_NAME], digest=digest, source_type=source[0], source=json.dumps(source[1]), profile=json.dumps(profile))
    return DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", context)])
