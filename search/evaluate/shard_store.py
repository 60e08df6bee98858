"""Shards on disk: what a search may add images to, and what a comparison need not compute again."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from search.evaluate.shards import Shard
from search.evaluate.tensor_file import read_notes, read_tensors, write_tensors
from search.records import Candidate

_log = logging.getLogger(__name__)


class ShardStore:
    """A folder of safetensors: a file for each part of what was made of something.

    A search keeps candidates by their numbers, in parts by how many images; a comparison keeps variants by their digests, in parts by
    shard number. A file that is missing or torn is no loss but the time to generate its images again.

    Args:
        folder: Made when something is put there.
        session: A name for this run, noted in the shards that it puts: those that were timed in another run can be told apart.
    """

    def __init__(self, folder: Path, session: str = "") -> None:
        self.folder, self.session = folder, session
        self._warned = False
        self._there: dict[str, set[Path]] | None = None
        """Files of candidates by number; None before anybody looked."""

    def path(self, of: int | str, part: int) -> Path:
        """Where a part is, or would be."""
        return self.folder / f"{of}-{part}.safetensors"

    def put(self, of: int | str, part: int, shards: Sequence[Shard]) -> bool:
        """Keep shards where there is space, and say whether they are kept: a full disk is said once, and is no error."""
        path = self.path(of, part)
        tensors = {f"features_{i}": shard.features for i, shard in enumerate(shards)}
        notes = [{k: v for k, v in vars(replace(shard, session=self.session)).items() if k != "features"} for shard in shards]
        try:
            write_tensors(path, tensors, {"shards": json.dumps(notes)})
        except OSError as error:
            if not self._warned:
                _log.warning("features are not kept in %s (%s); images that are compared with later ones are generated again", self.folder, error)
                self._warned = True
            return False
        self._note(path)
        return True

    def has(self, of: int | str, part: int) -> bool:
        """Whether `get` finds this part, without reading its features."""
        return _shards(read_notes(self.path(of, part))) is not None

    def get(self, of: int | str, part: int) -> list[Shard] | None:
        """The shards of a part, or None where they are not there."""
        tensors, notes = read_tensors(self.path(of, part)) or ({}, None)
        shards = _shards(notes)
        return [replace(s, features=tensors[f"features_{i}"]) for i, s in enumerate(shards)] if shards else None

    def keep_only(self, candidates: Collection[Candidate]) -> None:
        """Delete the shards of all other candidates."""
        for number in self._candidates().keys() - {str(c.number) for c in candidates}:
            for path in self._candidates().pop(number):
                path.unlink(missing_ok=True)

    def _candidates(self) -> dict[str, set[Path]]:
        if self._there is None:  # an earlier run of the search may have left some
            self._there = {}
            for path in self.folder.glob("*-*.safetensors"):
                self._note(path)
        return self._there

    def _note(self, path: Path) -> None:
        number = path.name.split("-")[0]
        if self._there is not None and number.isdecimal():
            self._there.setdefault(number, set()).add(path)

    def clear(self) -> None:
        """Delete everything."""
        self._there = None
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            path.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()


def _shards(notes: Mapping[str, str] | None) -> list[Shard] | None:
    """Shards without their features, from a file's notes; None for what another version wrote."""
    try:
        return [Shard(features=torch.empty(0, 0), **note) for note in json.loads((notes or {})["shards"])]
    except (KeyError, TypeError, ValueError):
        return None
