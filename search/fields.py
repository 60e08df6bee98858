"""Fields of settings: what kind of value each takes, and in what range; checked when an object is made, in words that say what to do.

A settings class is a frozen dataclass whose annotations are of int, float, str, bool, tuples of these, a mapping, or None.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dato.files import shown, written

MOST = 10**12
"""No number is larger, or infinite: nothing computes with it."""
_DEPTH = 6
"""Lists within each other; no value has more."""
_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", tuple: "a list, such as [a,b]", dict: "keys with values, such as {key: value}"}


@dataclass(frozen=True)
class Limits:
    """Range of a field.

    Attributes:
        least: Smallest number allowed.
        above: Numbers must be larger than this.
        most: Largest number allowed; what is larger is a slip of the hand, and would fill memory or overflow.
        among: The texts allowed; empty for any that is not empty.
    """

    least: float | None = None
    above: float | None = None
    most: float = 10**9
    among: tuple[str, ...] = ()


def limited(
    default: Any = dataclasses.MISSING, *, least: float | None = None, above: float | None = None, most: float = 10**9, among: Sequence[str] = (), later: bool = False
) -> Any:
    """A dataclass field with a default and `Limits`; `later`: it came when searches had been recorded without it, see `without_later`."""
    return dataclasses.field(default=default, metadata={"limits": Limits(least, above, most, tuple(among)), "later": later})


def later_defaults(settings: type) -> dict[str, Any]:
    """The keys of a settings class that came later, with their defaults."""
    return {f.name: {} if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(settings) if f.metadata.get("later")}


def without_later(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section but for keys that came later and are at their defaults: what was recorded before they came stays the same section."""
    later = later_defaults(settings)
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return {k: v for k, v in values.items() if k not in later or plain[k] != later[k]}


@dataclass(frozen=True)
class Kind:
    """What a field may be.

    Attributes:
        of: Types of a value, of int, float, str, bool, tuple, dict; empty for any value, which whoever uses it checks.
        null: Whether None may stand there too.
        items: Of a tuple's items.
    """

    of: tuple[type, ...]
    null: bool
    limits: Limits
    items: Kind | None = None

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind; its range aside."""
        if value is None:
            return self.null
        if isinstance(value, int | float) and not isinstance(value, bool):
            return not self.of or float in self.of or (int in self.of and isinstance(value, int))
        return not self.of or isinstance(value, tuple(Mapping if t is dict else t for t in self.of if t not in (int, float)))

    def allows(self, value: Any) -> bool:
        """Whether a value may stand there."""
        limits = self.limits
        if not self.fits(value):
            return False
        if isinstance(value, str) and self.of:
            return value in limits.among if limits.among else bool(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and self.of:
            return abs(value) <= limits.most and (limits.least is None or value >= limits.least) and (limits.above is None or value > limits.above)
        return True

    def __str__(self) -> str:
        among, null = self.limits.among, ", or null" if self.null else ""
        return f"allowed are {', '.join(among[:-1])} and {among[-1]}{null}" if among else f"give {self.words}{null}"

    @property
    def words(self) -> str:
        """What a value is, such as "an integer of at least 1, at most 100"."""
        limits = self.limits
        what = " or ".join(_WORDS[t] for t in self.of)
        if int in self.of or float in self.of:
            what += f" of at least {limits.least:g}" if limits.least is not None else f" above {limits.above:g}" if limits.above is not None else ""
            what += f", at most {limits.most:,}" if limits.least is not None or limits.above is not None else f" of at most {limits.most:,}"
        return what


@cache
def kinds(settings: type) -> dict[str, Kind]:
    """What each field of a settings class may be; those that are settings themselves are left out."""
    hints, found = typing.get_type_hints(settings), {}
    for field in dataclasses.fields(settings):
        kind = _kind(hints[field.name], field.metadata.get("limits", Limits()))
        if not any(dataclasses.is_dataclass(t) for t in kind.of):
            found[field.name] = kind
    return found


def _kind(hint: Any, limits: Limits) -> Kind:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    parts = typing.get_args(hint) if union else (hint,)
    of = [typing.get_origin(p) or p for p in parts if p not in (types.NoneType, Any)]
    items = next((_kind(typing.get_args(p)[0], Limits(most=MOST)) for p in parts if typing.get_origin(p) is tuple), None)
    return Kind(tuple(of), types.NoneType in parts or not of, limits, items)


def check(settings: Any, section: str, error: type[ValueError] = ValueError) -> None:
    """Check every field of an object; its lists become tuples. Raises `error` with the key, its value and what is allowed."""
    for name, kind in kinds(type(settings)).items():  # type: ignore[arg-type]
        value, key = getattr(settings, name), f"{section}.{name}".lstrip(".")
        if isinstance(value, list) and tuple in kind.of:
            object.__setattr__(settings, name, value := tuple(value))
        if not kind.allows(value):
            whole = int(value) if isinstance(value, float) and value.is_integer() else value  # as it was typed
            raise error(f"{key} is {written(whole)}; {kind}")
        if any(isinstance(text, str) and "\0" in text for text in (value if isinstance(value, tuple) else [value])):
            raise error(f"{key} is {written(value)}; give a text without NUL characters, which no file and no name can have")
        for item in value if isinstance(value, tuple) and kind.items else ():
            if not kind.items.fits(item):  # type: ignore[union-attr]
                raise error(f"{key} holds {written(item)}; each must be {kind.items.words}")  # type: ignore[union-attr]
        for number in _numbers(value):
            if number is None or not abs(number) <= MOST:
                raise error(f"{key} is nested deeper than any value" if number is None else f"{key} holds {shown(number)}; give finite numbers of at most {MOST:,}")


def wrong_kind(settings: type, values: Mapping[str, Any], section: str) -> str | None:
    """What is of the wrong kind in a recorded section, and None where nothing is: earlier versions had other keys and ranges."""
    for name, kind in kinds(settings).items():
        value = values.get(name)
        value = tuple(value) if isinstance(value, list) and tuple in kind.of else value
        if value not in (None, "") and not (kind.fits(value) and all(n is not None and abs(n) <= MOST for n in _numbers(value))):
            return f"{section}.{name}".lstrip(".") + f" is {written(value)}; {kind}"
    return None


def _numbers(value: Any, depth: int = 0) -> Iterator[float | None]:
    """Every number within a value; None where it is nested too deep."""
    if depth > _DEPTH:
        yield None
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(one, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
