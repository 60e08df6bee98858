"""When an alias, a folder or a file may go from one strategy to another: only to at least as much evidence and a better value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dato.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the strategy under an alias rests on.

    Attributes:
        what: A name for messages.
        images: Fresh images that it was measured on; 0 where it was on none.
        difference: FID less the unaccelerated pipeline's, there; None where unknown.
        speedup: Times faster; None where unknown.
        model: Which weights; None where unknown.
        device: Where it was timed; None where unknown.
    """

    what: str
    images: int = 0
    difference: float | None = None
    speedup: float | None = None
    model: str | None = None
    device: str | None = None

    @classmethod
    def of(cls, strategy: Strategy) -> Standing:
        """From a strategy's provenance."""
        notes = strategy.provenance
        quality, latency = _part(notes, "quality"), _part(notes, "latency")
        fresh = quality.get("fresh", notes.get("validated") is True) is True
        return cls(
            what=f"strategy {strategy.digest} of search {notes.get('search_id', 'unknown')}",
            images=_integer(quality.get("images")) if fresh else 0,
            difference=_number(quality.get("difference")),
            speedup=_number(latency.get("speedup")),
            model=weights_of(notes),
            device=_text(latency.get("device")),
        )

    def to_tags(self) -> dict[str, str]:
        """As tags of a model version."""
        found = {"images": self.images, "difference": self.difference, "speedup": self.speedup, "model": self.model, "device": self.device}
        return {f"dato.evidence.{k}": str(v) for k, v in found.items() if v is not None}

    @classmethod
    def of_tags(cls, what: str, tags: Mapping[str, str]) -> Standing:
        """The inverse of `to_tags`; of a version of before there were such tags, one without evidence."""
        found = {k.removeprefix("dato.evidence."): v for k, v in tags.items() if k.startswith("dato.evidence.")}
        return cls(
            what=what, images=_integer(found.get("images")), difference=_number(found.get("difference")),
            speedup=_number(found.get("speedup")), model=found.get("model"), device=found.get("device"),
        )  # fmt: skip


def why_not(alias: str, new: Standing, old: Standing) -> str | None:
    """Why `alias` stays where it is, or None where it may go to `new`.

    What stands there without evidence gives way to what has some. Otherwise the new one needs the same model and device, at least as many
    fresh images, and a better value: more speed for `fastest`, a lower FID difference for `quality` and ``at-...``, and for every other
    alias one of the two without losing in the other.
    """
    if new.images == 0:
        return f"{new.what} was not measured on fresh images"
    if new.model != old.model and (old.images or old.model):
        return f"{old.what} is for another model ({old.model} and not {new.model})"
    if old.images == 0:
        return None
    if new.device != old.device:
        return f"{old.what} was timed on another device ({old.device} and not {new.device})"
    if new.images < old.images:
        return f"{old.what} was measured on {old.images} fresh images, {new.what} on {new.images} only"
    if None in (new.speedup, old.speedup, new.difference, old.difference):
        return f"the figures of {old.what} or {new.what} are not known, so that they do not compare"
    faster, closer = _cmp(new.speedup, old.speedup), _cmp(old.difference, new.difference)
    if alias == "fastest":
        better = faster > 0
    elif alias == "quality" or alias.startswith("at-"):
        better = closer > 0
    else:
        better = faster + closer > 0 and min(faster, closer) >= 0
    return None if better else (
        f"{old.what} is as good or better there ({old.speedup:.2f}x, FID {old.difference:+.2f} against {new.speedup:.2f}x, FID {new.difference:+.2f})"
    )


def weights_of(notes: Mapping[str, Any]) -> str | None:
    """Which weights a strategy was measured on, as short as it tells them apart."""
    model = _part(notes, "model")
    known = _part(model, "weights")
    digest = next((str(known[d]) for d in ("float32", "float16", "bfloat16") if d in known), model.get("unet_sha256"))
    return str(digest)[:16] if digest else _text(model.get("path"))


def _part(notes: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = notes.get(key)
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if found == found else None


def _integer(value: Any) -> int:
    found = _number(value)
    return int(found) if found is not None and 0 <= found < 1e12 else 0


def _cmp(a: float | None, b: float | None) -> int:
    assert a is not None and b is not None
    return (a > b) - (a < b)
