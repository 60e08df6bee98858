"""Statistics of the real images: computed once, streamed, where there is a GPU for it, and kept here under a key of their content and preprocessing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from dato.files import read_json, user_path
from search.data.datasets import Data
from search.metrics.feature_net import FeatureNet, extract
from search.metrics.features import load_features
from search.metrics.moments import Moments

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MAX_NOTES = 1 << 28  # a line for each image that cannot be read


def cache_folder() -> Path:
    """$DATO_CACHE, or dato/reference in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DATO_CACHE") or Path(base) / "dato" / "reference")


def reference_key(data: Data, features: str) -> str:
    """Digest of the real images' bytes, how they are prepared, and the feature net with its own weight file."""
    whole = hashlib.sha256(f"dato.reference/2|{features}|{data.preprocessing}|".encode())
    for weights in weight_files(features):
        whole.update(weights.read_bytes())
    for part in data.reference_content():
        whole.update(part)
    return whole.hexdigest()[:32]


def weight_files(features: str) -> list[Path]:
    """The weight files of a feature net that are files here; a net from the hub is told by its name."""
    if features == "embedded":
        from search.embedded.features import WEIGHTS

        return [WEIGHTS]
    path = user_path(features.partition(":")[2])
    return [path] if path.is_file() else sorted(path.glob("*.safetensors")) if ":" in features and path.is_dir() else []


class RealImages(Protocol):
    """Extracts the features of real images somewhere; with each answer, which of them were left out because they cannot be read."""

    def moments(self) -> tuple[Moments, list[str]]:
        """Their moments."""
        ...

    def features(self) -> tuple[torch.Tensor, list[str]]:
        """(N, num_features) float32."""
        ...


@dataclass(frozen=True)
class RealImagesHere:
    """Extracted by a net in this process.

    Attributes:
        data: Whose real images.
        net: Extracts, where it is.
    """

    data: Data
    net: FeatureNet

    def moments(self) -> tuple[Moments, list[str]]:
        """Their moments, one batch in memory at a time."""
        return Moments.stream(extract(self.net, [batch]) for batch in self.data.reference()), self.data.unreadable

    def features(self) -> tuple[torch.Tensor, list[str]]:
        """(N, num_features) float32."""
        return extract(self.net, self.data.reference()), self.data.unreadable


def reference_moments(
    data: Data, features: str, device: torch.device | str = "cpu", cache: Path | None = None, source: RealImages | None = None
) -> tuple[Moments, list[str]]:
    """Moments of the real images' features: from the data's own statistics file, from the cache, or computed now.

    The second value tells which real images were left out because they cannot be read, with data.on_unreadable "skip".

    Args:
        data: Whose real images.
        features: Name of the feature net, see `load_features`.
        device: Where features are computed in this process.
        cache: Folder of the cache; None for `cache_folder`.
        source: Computes what the cache does not hold; None for this process.
    """
    if data.spec.statistics:
        return Moments.load(data.spec.statistics), []
    path = (cache or cache_folder()) / f"{data.spec.name}-{reference_key(data, features)}.npz"
    notes = path.with_suffix(".json")
    if (kept := _kept(path, notes, Moments.load)) is not None:
        return kept
    found, unreadable = (source or RealImagesHere(data, load_features(features, device))).moments()
    _keep(notes, data, features, found.count, unreadable, lambda: found.save(path))
    return found, unreadable


def reference_features(
    data: Data, features: str, device: torch.device | str = "cpu", cache: Path | None = None, source: RealImages | None = None
) -> tuple[torch.Tensor, list[str]]:
    """(N, num_features) features of the real images, from the cache or computed now, and the images left out; as `reference_moments`."""
    path = (cache or cache_folder()) / f"{data.spec.name}-{reference_key(data, features)}.features.npy"
    notes = path.with_suffix(".json")
    if (kept := _kept(path, notes, lambda p: torch.from_numpy(np.load(p, allow_pickle=False)))) is not None:
        return kept
    found, unreadable = (source or RealImagesHere(data, load_features(features, device))).features()

    def save() -> None:
        torn = path.with_name(f".{path.name}.{os.getpid()}.npy")
        np.save(torn, found.numpy())
        torn.replace(path)

    _keep(notes, data, features, len(found), unreadable, save)
    return found, unreadable


def _kept(path: Path, notes: Path, read: Callable[[Path], _T]) -> tuple[_T, list[str]] | None:
    """What the cache holds, or None: what is damaged is said, and computed again."""
    if not path.is_file() or not notes.is_file():
        return None
    try:
        return read(path), [str(message) for message in read_json(notes, _MAX_NOTES)["unreadable"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:  # of our own, QualityError and FileError are ValueErrors
        _log.warning("the kept features %s cannot be used (%s); they are computed again", path, error)
        return None


def _keep(notes: Path, data: Data, features: str, images: int, unreadable: list[str], save: Callable[[], object]) -> None:
    """Write into the cache where that is possible; what cannot be kept is computed again the next time."""
    about = {"features": features, "preprocessing": data.preprocessing, "images": images, "unreadable": unreadable}
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(about) + "\n", encoding="utf-8")
        save()
    except OSError as error:
        _log.warning("the real images' features are not kept in %s (%s); set DATO_CACHE to a folder that you may write", notes.parent, error.strerror)
