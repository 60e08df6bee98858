"""Shards of the candidates that may be promoted to more images, so that promotion pays for the new images only."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from search.evaluate.evaluator import Shard
from search.records import Candidate

_log = logging.getLogger(__name__)


class KeptShards:
    """A folder of safetensors, one file for a candidate at one number of images.

    A file that is missing or torn is no loss but the time to generate its images again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._warned = False
        self._there: dict[int, set[Path]] | None = None
        """Files by candidate; None before anybody looked."""

    def _path(self, number: int, images: int) -> Path:
        return self.folder / f"{number}-{images}.safetensors"

    def put(self, number: int, images: int, shards: Sequence[Shard]) -> None:
        """Keep a candidate's shards, where there is space: on a full disk it is said once, and promotion generates these images again."""
        path = self._path(number, images)
        if self._write(path, shards):
            self._files().setdefault(number, set()).add(path)

    def put_plain(self, shards: Sequence[Shard]) -> None:
        """Keep the unaccelerated pipeline's shards, which every candidate's images are compared with."""
        self._write(self._plain, shards)

    def get_plain(self) -> list[Shard] | None:
        """The unaccelerated pipeline's shards, or None where they are not there."""
        return self._read(self._plain)

    @property
    def _plain(self) -> Path:
        return self.folder / "unaccelerated.safetensors"

    def _write(self, path: Path, shards: Sequence[Shard]) -> bool:
        tensors = {f"features_{i}": shard.features.contiguous() for i, shard in enumerate(shards)}
        notes = [{k: v for k, v in vars(shard).items() if k != "features"} for shard in shards]
        torn = path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, torn, metadata={"shards": json.dumps(notes)})
            torn.replace(path)
            return True
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                torn.unlink()
            if not self._warned:
                _log.warning("features are not kept in %s (%s); the search goes on, and images that are compared with later ones are generated again", self.folder, error)
                self._warned = True
            return False

    def _files(self) -> dict[int, set[Path]]:
        if self._there is None:  # an earlier run of the search may have left some
            self._there = {}
            for path in self.folder.glob("*-*.safetensors"):
                self._there.setdefault(int(path.stem.split("-")[0]), set()).add(path)
        return self._there

    def get(self, number: int, images: int) -> list[Shard] | None:
        """A candidate's shards, or None where they are not there."""
        return self._read(self._path(number, images))

    def _read(self, path: Path) -> list[Shard] | None:
        try:
            with safe_open(path, framework="pt") as file:
                notes = json.loads(file.metadata()["shards"])
                return [Shard(features=torch.as_tensor(file.get_tensor(f"features_{i}")), **note) for i, note in enumerate(notes)]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def keep_only(self, candidates: Collection[Candidate]) -> None:
        """Delete the shards of all others."""
        for number in self._files().keys() - {c.number for c in candidates}:
            for path in self._files().pop(number):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything."""
        self._there = None
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            path.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()
