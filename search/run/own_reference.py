"""The unaccelerated pipeline's own images as the reference: drawn once from seeds of their own, kept as features beside a search."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from search.data.datasets import REFERENCE_OFFSET, Data
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.tensor_file import read_tensors, write_tensors
from search.metrics.reference import weight_files
from search.run.jobs import Job, Task
from search.run.pools import Pool

FILE = "reference.safetensors"
_log = logging.getLogger(__name__)


class OwnReferenceError(RuntimeError):
    """A reference that cannot be drawn or belongs to another model: the message says why and what to do."""


def own_reference(folder: Path, spec: EvaluatorSpec) -> OwnReference | None:
    """The pipeline's own images, where these are the reference and a metric needs one; None else."""
    return OwnReference(folder, spec) if spec.data.own_reference and {"fid", "kid"} & set(spec.metrics) else None


@dataclass(eq=False)
class OwnReference:
    """Which images they are, and where their features are kept. One belongs to one run of a command, whose workers have one model.

    Attributes:
        folder: Of the search or evaluation.
        spec: Of the evaluators that draw them; data of kind "prompts".
    """

    folder: Path
    spec: EvaluatorSpec
    _known_key: str = field(default="", init=False)

    @cached_property
    def data(self) -> Data:
        """Their prompts."""
        return Data(self.spec.data)

    @property
    def count(self) -> int:
        """How many images."""
        return self.spec.data.own_reference

    @property
    def batches(self) -> list[list[int]]:
        """Their indices."""
        end, size = REFERENCE_OFFSET + self.count, self.spec.protocol.batch
        return [list(range(i, min(i + size, end))) for i in range(REFERENCE_OFFSET, end, size)]

    def kept(self) -> torch.Tensor | None:
        """(N, num_features) float32 that the folder holds for these settings, or None. Whether the weights are still the same, only `fetch` knows."""
        about, features = _read(self.folder / FILE)
        return features if about.get("settings") == self._settings else None

    def fetch(self, pool: Pool) -> torch.Tensor | None:
        """The features that the folder or a neighbour of it holds for exactly this model, or None: then they are to be drawn.

        Raises:
            OwnReferenceError: The folder's were drawn by another model.
        """
        key = self._key(pool)
        about, features = _read(self.folder / FILE)
        if features is not None and about.get("key") != key:
            raise OwnReferenceError(f"{self.folder / FILE} was drawn by another model, or under other settings; put the model back, or begin anew with fresh_start=true or another output")
        for other in sorted(self.folder.parent.glob(f"*/{FILE}")) if features is None else ():
            about, found = _read(other)
            if found is not None and about.get("key") == key:
                self._write(self.folder / FILE, found, key)
                return found
        return features

    def draw(self, pool: Pool, plain: Any, first_s: Callable[[float], None] = lambda seconds: None) -> torch.Tensor:
        """(N, num_features) float32 features of the images, drawn by the pool, batch by batch.

        A batch is on disk when it is drawn, so that a stopped command goes on where it was.

        Args:
            pool: Draws.
            plain: The unaccelerated pipeline, as the pool's evaluators take it.
            first_s: Told the seconds per image of the first batch that is drawn.

        Raises:
            OwnReferenceError: The pipeline fails.
        """
        key = self._key(pool)
        found = self._draw(pool, plain, key, first_s)
        features = torch.cat([found[b[0]] for b in self.batches])
        if self._write(self.folder / FILE, features, key):
            shutil.rmtree(self._parts, ignore_errors=True)
        return features

    @property
    def _parts(self) -> Path:
        return self.folder / "reference"

    def _draw(self, pool: Pool, plain: Any, key: str, first_s: Callable[[float], None]) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for indices in self.batches:
            about, part = _read(self._parts / f"{indices[0]}.safetensors")
            if part is not None and about.get("key") == key and len(part) == len(indices):
                found[indices[0]] = part
        missing = [b for b in self.batches if b[0] not in found]
        # The first alone: it says how long all the others will take.
        for jobs in (missing[:1], missing[1:]):
            for job, shard in pool.map([Job(b[0], [plain], [b], Task.REFERENCE) for b in jobs]) if jobs else ():
                if shard is None:
                    raise OwnReferenceError(f"the unaccelerated pipeline itself fails, so that there is nothing to search: {job.reason}")
                found[job.key] = shard.features
                self._write(self._parts / f"{job.key}.safetensors", shard.features, key)
                if job.key == missing[0][0]:
                    first_s(shard.seconds / len(shard.features))
        return found

    @cached_property
    def _settings(self) -> str:
        """Digest of what makes other images, or other features of them."""
        model = {k: v for k, v in self.spec.model.to_dict().items() if k not in ("name", "device")}
        features = self.spec.protocol.features
        content = {
            "schema": "dato.own_reference/1", "model": model, "prompts": self.data.prompts, "count": self.count, "features": features,
            "net": [hashlib.sha256(p.read_bytes()).hexdigest() for p in weight_files(features)],
            **({"edit": asdict(self.spec.edit)} if self.spec.edit else {}),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _key(self, pool: Pool) -> str:
        """Digest of the settings and of the weights that a worker has loaded, asked for once: a hub id or a folder may be given other ones."""
        if not self._known_key:
            ((job, info),) = pool.map([Job("model info", [], [], Task.MODEL_INFO)])
            if info is None:
                raise OwnReferenceError(f"a worker does not tell what its model is: {job.errors[0]}; run the same command again")
            self._known_key = hashlib.sha256(f"{self._settings}|{json.dumps(info, sort_keys=True)}".encode()).hexdigest()
        return self._known_key

    def _write(self, path: Path, features: torch.Tensor, key: str) -> bool:
        try:
            write_tensors(path, {"features": features}, {"key": key, "settings": self._settings, "reference": self.data.reference_in_words()})
        except OSError as error:
            _log.warning("the reference's features are not kept in %s (%s); free some space, or they are drawn again the next time", path, error)
            return False
        return True


def _read(path: Path) -> tuple[dict[str, str], torch.Tensor | None]:
    """A file's notes and features; nothing where it is missing or torn."""
    tensors, notes = read_tensors(path) or ({}, {})
    return notes, tensors.get("features")
