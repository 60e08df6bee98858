"""The unaccelerated pipeline's own images as the reference: drawn once from seeds of their own, kept as features beside a search."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from search.data.datasets import REFERENCE_OFFSET, Data
from search.evaluate.pipelines import ModelSpec
from search.metrics.reference import weight_files
from search.run.scheduler import Job

FILE = "reference.safetensors"
_log = logging.getLogger(__name__)


class OwnReferenceError(RuntimeError):
    """A reference that cannot be drawn or belongs to another model: the message says why and what to do."""


class Pool(Protocol):
    """Where batches are drawn: `RayPool` or `InProcessPool`, of evaluators with the methods `reference` and `facts`."""

    def map(self, jobs: Any) -> Iterator[tuple[Job, Any]]:
        """Each job with its result, or with None and its errors."""
        ...


@dataclass(frozen=True, kw_only=True)
class OwnReference:
    """Which images they are, and where their features are kept.

    Attributes:
        folder: Of the search or evaluation.
        model: The pipeline.
        data: Of kind "prompts".
        features: Feature net.
        batch: Images per call.
        more: What else makes other images of the same seeds.
    """

    folder: Path
    model: ModelSpec
    data: Data
    features: str
    batch: int
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many images."""
        return self.data.spec.own_reference

    @property
    def batches(self) -> list[list[int]]:
        """Their indices."""
        end = REFERENCE_OFFSET + self.count
        return [list(range(i, min(i + self.batch, end))) for i in range(REFERENCE_OFFSET, end, self.batch)]

    def kept(self) -> torch.Tensor | None:
        """(N, num_features) float32 that the folder holds for these settings, or None. Whether the weights are still the same, only `fetch` knows."""
        about, features = _read(self.folder / FILE)
        return features if about.get("settings") == self._settings() else None

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
            for job, shard in pool.map([Job(b[0], [plain], [b], method="reference") for b in jobs]) if jobs else ():
                if shard is None:
                    raise OwnReferenceError(f"the unaccelerated pipeline itself fails, so that there is nothing to search: {job.errors[0]}")
                found[job.key] = shard.features
                self._write(self._parts / f"{job.key}.safetensors", shard.features, key)
                if job.key == missing[0][0]:
                    first_s(shard.seconds / len(shard.features))
        return found

    def _settings(self) -> str:
        model = {k: v for k, v in asdict(self.model).items() if k not in ("name", "device")}
        content = {
            "schema": "dato.own_reference/1", "model": model, "prompts": self.data.prompts, "count": self.count, "features": self.features,
            "net": [hashlib.sha256(p.read_bytes()).hexdigest() for p in weight_files(self.features)], **self.more,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _key(self, pool: Pool) -> str:
        """Digest of the settings and of the weights that a worker has loaded: a hub id or a folder may be given other ones."""
        ((job, facts),) = pool.map([Job("facts", [], [], method="facts")])
        if facts is None:
            raise OwnReferenceError(f"a worker does not tell what its model is: {job.errors[0]}; run the same command again")
        return hashlib.sha256(f"{self._settings()}|{json.dumps(facts, sort_keys=True)}".encode()).hexdigest()

    def _write(self, path: Path, features: torch.Tensor, key: str) -> bool:
        torn = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": features.contiguous()}, torn, metadata={"key": key, "settings": self._settings(), "reference": self.data.reference_in_words()})
            torn.replace(path)
        except (OSError, SafetensorError) as error:
            _log.warning("the reference's features are not kept in %s (%s); free some space, or they are drawn again the next time", path, error)
            return False
        return True


def _read(path: Path) -> tuple[dict[str, str], torch.Tensor | None]:
    """A file's notes and features; nothing where it is missing or torn."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), torch.as_tensor(file.get_tensor("features"))
    except (OSError, SafetensorError):
        return {}, None
