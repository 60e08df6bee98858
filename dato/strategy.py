"""How a whole run goes: with which sampler, and at each of its steps what is computed, reused and pruned; validated, in plain JSON."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, overload

from dato import presets, schema, sources
from dato.card_text import check_card
from dato.files import refuse_target, shown
from dato.sampler import ONE_CALL, Sampler
from dato.schema import FULL, StrategyError
from dato.step import Step, canonical_steps, depth_name, extent, plain_step, step_code, typed
from dato.text_table import text_table

MAX_STEPS = 1000


@dataclass(frozen=True)
class Strategy(Sequence[Step]):
    """One `Step` per sampler step, the first executed first, the sampler, and where it comes from.

    Two strategies are equal when their steps and samplers are; `provenance` is a note and takes no part in equality or digest.

    Attributes:
        steps: One for each step of the sampler.
        provenance: Notes, in what JSON can hold.
        sampler: What it runs with: a `Sampler`, or given as a name such as "DPM++"; None for the pipeline's own.
    """

    steps: tuple[Step, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        given: Any = self.steps
        if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__"):
            raise StrategyError(f"steps is {typed(given)}; give a dato.Step for each sampler step, or dato.Strategy.load for a file or a preset's name")
        object.__setattr__(self, "steps", tuple(_step(i, entry) for i, entry in enumerate(given)))
        object.__setattr__(self, "sampler", Sampler.of(self.sampler))
        if not isinstance(self.provenance, Mapping):
            raise StrategyError(f"provenance is {typed(self.provenance)}; give a mapping of notes, or leave it out")
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise StrategyError(f"a strategy of {len(self.steps)} steps; allowed are 1 to {MAX_STEPS}, one entry per sampler step")

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        return self.steps[index]

    def __str__(self) -> str:
        return "".join(step_code(s) for s in self)

    def __repr__(self) -> str:
        # Steps and provenance in full are pages: `summary` and `to_json` show them.
        return f"<dato.Strategy: {self.headline()}>"

    def headline(self) -> str:
        """Length, steps in short, prune ratios, digest and origin, within a line or two."""
        code = str(self)
        code = code if len(code) <= 120 else f"{code[:100]}... and so on"
        ratios = [s.prune_ratio for s in self if s.cache_depth and s.prune_ratio]
        spread = f"{ratios[0]:g}" if len(set(ratios)) == 1 else f"{min(ratios):g} to {max(ratios):g}" if ratios else ""
        pruning = f"pruning {spread} in {len(ratios)} of them" if ratios else "no pruning"
        alone = sum(s.guidance == "cond" for s in self)
        pruning += f", the conditional half alone in {alone}" if alone else ""
        made = self.provenance.get("source") or self.provenance.get("search_id")
        return f"{len(self)} steps {f'of {self.sampler} ' if self.sampler else ''}{code}, {pruning}, digest {self.digest}" + (f", from {str(made)[:100]}" if made else "")

    def summary(self) -> str:
        """A table of the steps, a row for each stretch of equal ones: which, at what cache depth, prune ratio, guidance and order."""
        rows = [("steps", "cache depth", "prune ratio", "guidance", "order")]
        position = 0
        for step, same in groupby(self.canonical()):
            end = position + len(list(same))
            ratio, order = f"{step.prune_ratio:g}" if step.cache_depth else "-", "-" if step.cache_depth == FULL else str(step.order)
            rows.append((str(position) if end == position + 1 else f"{position}-{end - 1}", depth_name(step.cache_depth), ratio, step.guidance, order))
            position = end
        used = [True, True, True, any(s.guidance != "both" for s in self), any(s.order for s in self)]
        shown_rows = [tuple(cell for cell, kept in zip(row, used, strict=True) if kept) for row in rows]
        calls = ", ".join(f"{n} {depth_name(d)}" for d, n in self.calls_by_depth.items())
        return f"{len(self)} steps{f' of {self.sampler}' if self.sampler else ''}: {calls}; digest {self.digest}\n{text_table(shown_rows)}"

    @classmethod
    def full(cls, steps: int, sampler: Sampler | str | None = None) -> Strategy:
        """Everything computed at every step: the unaccelerated pipeline, or with few steps of a fast sampler what users try first."""
        return cls((Step(FULL),) * _checked_count(steps, "steps"), sampler=sampler)  # type: ignore[arg-type]  # names become samplers

    @classmethod
    def uniform(cls, steps: int, interval: int, depth: int = 1, prune_ratio: float = 0.0, sampler: Sampler | str | None = None) -> Strategy:
        """A full call every `interval` steps and `depth` in between, as DeepCache does, at one prune ratio."""
        _checked_count(interval, "interval")
        entries = (Step(FULL if i % interval == 0 else depth, prune_ratio) for i in range(_checked_count(steps, "steps")))
        return cls(tuple(entries), sampler=sampler)  # type: ignore[arg-type]  # names become samplers

    @classmethod
    def preset(cls, name: str, prune_ratio: float | None = None) -> Strategy:
        """A named strategy, such as "dpmpp-8" or one of `presets`. Those that prune nothing take one `prune_ratio` for every step."""
        return cls.from_document(presets.preset(name, prune_ratio), name)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names that `preset` takes; those that end in a number take others too."""
        return tuple(presets.presets())

    @cached_property
    def digest(self) -> str:
        """16 hex digits of a SHA-256 over the steps, and over the sampler where there is one."""
        content: Any = [[s.cache_depth, s.prune_ratio, *((s.guidance, s.order) if s.guidance != "both" or s.order else ())] for s in self]
        if self.sampler is not None:
            content = {"sampler": schema.plain(self.sampler.document()), "steps": content}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def calls_by_depth(self) -> dict[int, int]:
        """How many steps have each cache depth, deepest first."""
        depths = [s.cache_depth for s in self]
        return {d: depths.count(d) for d in sorted(set(depths), key=extent, reverse=True)}

    def canonical(self, inert: Sequence[int] = (0,), guided: bool = True) -> Strategy:
        """The same behaviour written one way: what has no effect on a step has its default, and what cannot be otherwise is said.

        With a sampler that is known to make one call a step at timesteps of its own (DDIM, DPM++, Euler, UniPC) a call that has nothing
        to reuse is written as the full one that it is, and an order as no more than there are values for.

        Args:
            inert: Depths at which nothing is pruned, so that the ratio becomes 0.
            guided: Whether the pipeline guides; where it does not, the guidance becomes "both".
        """
        one_call = self.sampler is not None and self.sampler.scheduler in ONE_CALL
        return replace(self, steps=canonical_steps(self.steps, inert, guided, one_call))

    def resample(self, steps: int) -> Strategy:
        """Stretch or shrink to another number of steps: each new step takes the entry at its own relative position."""
        count = _checked_count(steps, "steps")
        return replace(self, steps=tuple(self[int((i + 0.5) * len(self) / count)] for i in range(count)))

    def with_provenance(self, **notes: Any) -> Strategy:
        """A copy whose provenance also holds `notes`."""
        return replace(self, provenance={**self.provenance, **notes})

    def to_json(self) -> str:
        """The strategy as JSON text, with a digest of its content: schema ``dato.strategy/1`` where depths and ratios say all, else ``/2``."""
        return schema.write(self.document())

    def document(self) -> dict[str, Any]:
        """Steps, provenance and sampler, where there is one, as plain data."""
        steps = [plain_step(s) for s in self]
        return {"steps": steps, "provenance": dict(self.provenance)} | ({"sampler": self.sampler.document()} if self.sampler else {})

    @classmethod
    def from_json(cls, text: str, where: str = "the strategy") -> Strategy:
        """Read `to_json`'s text, or that of an older schema. Raises `StrategyError` naming `where` and what is allowed."""
        return cls.from_document(schema.read(text, where), where)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], where: str = "the strategy") -> Strategy:
        """The inverse of `document`; every step is validated, and of a card that it was read from, whatever else stands there."""
        parsed = []
        steps = document.get("steps") if isinstance(document, Mapping) else None
        if not isinstance(steps, list | tuple):
            raise StrategyError(f"{where} has the steps {shown(steps)}; expected a list of objects with cache_depth and prune_ratio")
        for i, entry in enumerate(steps):
            if not isinstance(entry, dict) or not {"cache_depth", "prune_ratio"} <= set(entry) <= {"cache_depth", "prune_ratio", "guidance", "order"}:
                raise StrategyError(f"{where}, step {i}: given {shown(entry)}; expected an object with cache_depth and prune_ratio, and where they are not usual guidance and order")
            try:
                parsed.append(Step(**entry))
            except StrategyError as error:
                raise StrategyError(f"{where}, step {i}: {error}") from None
        if "card" in document:
            card, signed = document["card"]
            check_card(cls.from_document(signed, where), card, where)
        try:
            return cls(tuple(parsed), document.get("provenance", {}), document.get("sampler"))
        except StrategyError as error:
            raise StrategyError(f"{where}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the JSON file; a reader never sees half of it."""
        path = Path(path)
        if why := refuse_target(path):
            raise StrategyError(f"cannot write the strategy to {path}: {why}; give the path of a file")
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            partial.write_text(self.to_json(), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise StrategyError(f"cannot write the strategy to {path}: {error.strerror}; give a writable path") from None

    @classmethod
    def load(cls, source: str | Path) -> Strategy:
        """Read a strategy from a preset's name, a file or folder (strategy or card), ``https://...``, ``models:/...`` or ``runs:/...``."""
        return cls.from_document(*sources.load_document(source))


def _checked_count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= value <= MAX_STEPS:
        raise StrategyError(f"{name} is {typed(value)}; allowed are the integers 1 to {MAX_STEPS}")
    return int(value)


def _step(index: int, entry: Any) -> Step:
    """A strategy's entry; (depth, ratio) and (depth, ratio, guidance, order) are too."""
    if isinstance(entry, Step):
        return entry
    if not isinstance(entry, tuple | list) or len(entry) not in (2, 4):
        raise StrategyError(
            f"step {index} is {typed(entry)}; give dato.Step(cache_depth, prune_ratio, guidance, order), such as dato.Step(12, 0.5), or the pair (12, 0.5)"
        )
    try:
        return Step(*entry)
    except StrategyError as error:
        raise StrategyError(f"step {index}: {error}") from None
