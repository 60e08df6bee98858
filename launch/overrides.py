"""Words of the command line as overrides for Hydra: texts as a person types them, and what Hydra would ignore is refused."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from dato.files import shown
from launch.keys import FREE, KEYS
from search import old_names
from search.publish.strategies import hydra_text


class OverrideError(ValueError):
    """A word that sets nothing: the message says what was given, what is allowed and what to do."""


def prepare(words: Sequence[str], groups: dict[str, list[str]], sections: Sequence[str]) -> list[str]:
    """The words as Hydra reads them.

    A value of a key that is a text is taken as it stands, whatever characters it holds; Hydra's own quotes and ``${...}``
    still work.

    Args:
        words: ``key=value``, as they come from the shell.
        groups: The choices of each configuration group.
        sections: Keys of the configuration's top level.

    Raises:
        OverrideError: A word that is no override, adds or deletes a key, names several values, or cannot be read.
    """
    return [_prepare(word, groups, sections) for word in words]


def _prepare(word: str, groups: dict[str, list[str]], sections: Sequence[str]) -> str:
    key, equals, value = word.removeprefix("--").partition("=")
    name = key.lstrip("+")
    if key.startswith("~"):
        raise OverrideError(f"{shown(word)} deletes a key, and every key is needed; set it: {key.lstrip('~')}=<value>, or =null where its comment allows that")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*(/\w+)?", name):
        if name.partition("@")[0] in groups or "/" in name:
            raise OverrideError(f"{shown(word)} names a configuration group in a form that dato does not use; write {', '.join(f'{g}=<name>' for g in groups)}")
        raise OverrideError(f"{shown(word)} is not an override; write key=value, such as seed=1 or model=sd15")
    if re.split(r"[./]", name)[0] == "hydra":
        raise OverrideError(f"{shown(word)} sets Hydra itself, which dato uses to read its configuration only; set output=<folder> for where results go")
    if name in groups:
        if value not in groups[name] and not (name == "experiment" and value == "null"):
            raise OverrideError(f"there is no {name} {shown(value)}; {name} is one of {', '.join(groups[name])}, and its keys are set one by one, such as {_example(name)}")
        return f"{key}={value}"
    _refuse_unknown(name, sections)
    # Added where it is not: models and data sets have different keys, and each is checked by whoever it belongs to.
    written = f"{key if name in sections else f'++{name}'}={hydra_text(value) if _is_text(name, value) else value}"
    try:
        read = OverridesParser.create().parse_override(written)
    except (HydraException, ValueError, RecursionError):
        raise OverrideError(_unreadable(name, value)) from None
    _refuse_sweep(name, value, read)
    return written


def _is_text(name: str, value: str) -> bool:
    """Whether a value is to be taken as it stands: neither Hydra's own quoting, nor null, nor an interpolation or list."""
    own = value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1
    if not value or own or "${" in value or value.lower() == "null" or (value[0], value[-1]) in (("[", "]"), ("{", "}")):
        return False
    key = KEYS.get(name)
    return key.kind == "text" if key else name in FREE and not re.fullmatch(r"[-+\d.eE]+", value)


def _refuse_unknown(name: str, sections: Sequence[str]) -> None:
    if new := old_names.KEYS.get(name):
        raise OverrideError(f"{name} is now called {new}; write {new}=...")
    inner = any(name.startswith(f"{known}.") for known, key in KEYS.items() if key.kind == "section")
    if name in sections or ((name in KEYS or name in FREE or inner) and name.split(".")[0] in sections):
        return
    close = difflib.get_close_matches(name, [k for k in (*KEYS, *FREE) if k.split(".")[0] in sections], 3, 0.5)
    raise OverrideError(f"{name} is no key here, and would change nothing" + (f"; is it {' or '.join(close)}?" if close else "; keys are in the comments of conf"))


def _refuse_sweep(name: str, value: str, read: Override) -> None:
    if not read.is_sweep_override():
        return
    key = KEYS.get(name)
    fix = f"write {shlex.quote(f'{name}=[{value}]')}" if (key and key.kind == "list") or name in FREE else "run a command for each of them"
    raise OverrideError(f"{name}={value} names several values, and a command has one; {fix}")


def _unreadable(name: str, value: str) -> str:
    key = KEYS.get(name)
    if key and key.kind not in ("text", "list", "section"):
        return f"{name} is {shown(value)}; {key}"
    listed = value.startswith("[")
    items = [item.strip().strip("'\"") for item in value.strip("[]").split(",")]
    quoted = f"[{','.join(hydra_text(i, chr(34)) for i in items)}]" if listed else hydra_text(value, '"')
    return f"the value of {name} cannot be read ({shown(value)}); quotes within quotes keep such characters. In a shell: {shlex.quote(f'{name}={quoted}')[:300]}"


def _example(group: str) -> str:
    return {"model": "model.steps=20", "data": "data.images=photos", "cluster": "cluster.workers=2"}.get(group, "seed=1")
