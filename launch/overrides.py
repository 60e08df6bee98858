"""Words of the command line as overrides for Hydra: texts as a person types them, and what Hydra would ignore is refused."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dato.files import shown
from launch.model_space import space_of_model
from launch.schema import SCHEMAS, fields_of, groups_of, keys
from search import old_names
from search.fields import Kind
from search.publish.strategies import hydra_text


class ConfigError(ValueError):
    """A configuration that cannot be: the message says what was given, what is allowed and what to do."""


_OF_SEARCHES = {"protocol.images": "evaluation.images", "protocol.similarity": "evaluation.metrics", "protocol.fidelities": "evaluation.images"}
"""Keys that an evaluation would ignore, each with what to set for it; experiments have them for searches."""


def prepare(name: str, words: Sequence[str], choices: Mapping[str, Sequence[str]], sweep: bool = False) -> list[str]:
    """The words as Hydra reads them, of a search after those that choose what is searched for a model that nothing of ours is for.

    A value of a key that is a text is taken as it stands, whatever characters it holds; Hydra's own quotes and ``${...}``
    still work.

    Args:
        name: Of the primary configuration.
        words: ``key=value``, as they come from the shell.
        choices: Of each configuration group.
        sweep: Whether a word may name several values, of which each makes a run.

    Raises:
        ConfigError: A word that is no override, adds or deletes a key, names several values, or cannot be read.
    """
    fitting = space_of_model(words) if name == "search" else []
    return [_prepare(name, word, choices, sweep) for word in [*fitting, *words]]


def _prepare(name: str, word: str, choices: Mapping[str, Sequence[str]], sweep: bool) -> str:
    marked, equals, value = word.removeprefix("--").partition("=")
    key = marked.lstrip("+")
    if marked.startswith("~"):
        raise ConfigError(f"{shown(word)} deletes a key, and every key is needed; set it: {marked.lstrip('~')}=<value>, or =null where its meaning allows that")
    if re.split(r"[./]", key)[0] == "hydra" and equals:
        if sweep:
            return word  # of its sweeper and launcher
        raise ConfigError(f"{shown(word)} sets Hydra itself, which dato uses to read its configuration only; set output=<folder> for where results go")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*(/\w+)?", key):
        if key.partition("@")[0] in choices or "/" in key:
            raise ConfigError(f"{shown(word)} names a configuration group in a form that dato does not use; write {', '.join(f'{g}=<name>' for g in choices)}")
        raise ConfigError(f"{shown(word)} is not an override; write key=value, such as seed=1 or model=sd15")
    several = _several(f"{key}={value}") if sweep else False
    if key in choices:
        if not several and value not in choices[key] and not (key == "experiment" and value == "null"):
            raise ConfigError(f"there is no {key} {shown(value)}; {key} is one of {', '.join(choices[key])}, and its keys are set one by one, such as {_example(key)}")
        return f"{marked}={value}"
    kind = _kind(name, key)
    _refuse_old_value(key, value)
    if several and not _listed(kind):
        return f"{key}={value}"
    open_ended = (kind is None and key not in groups_of(SCHEMAS[name])) or (kind is not None and dict in kind.of)  # a mapping without a schema
    written = f"{'++' if open_ended else ''}{key}={_as_typed(kind, value)}"
    try:
        read = OverridesParser.create().parse_override(written)
    except (HydraException, ValueError, RecursionError):
        raise ConfigError(_unreadable(key, value, kind)) from None
    if read.is_sweep_override():
        fix = f"write {shlex.quote(f'{key}=[{value}]')}" if _listed(kind) else f"run a command for each of them, or one with --multirun {key}={value}"
        raise ConfigError(f"{key}={value} names several values, and a command has one; {fix}")
    return written


def _several(word: str) -> bool:
    try:
        return OverridesParser.create().parse_override(word).is_sweep_override()
    except (HydraException, ValueError, RecursionError):
        return False


def _listed(kind: Kind | None) -> bool:
    return kind is not None and tuple in kind.of


def _as_typed(kind: Kind | None, value: str) -> str:
    """A value as Hydra is to read it: a text stands for itself, and one text where a list of them goes for a list of one."""
    own = value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1
    if kind is None or not value or own or "${" in value or value.lower() == "null" or (value[0], value[-1]) in (("[", "]"), ("{", "}")):
        return value
    if tuple in kind.of and kind.items and kind.items.of == (str,) and "," not in value:
        return f"[{hydra_text(value)}]"
    number = float in kind.of and re.fullmatch(r"[-+\d.eE]+", value)
    return hydra_text(value) if str in kind.of and not number else value


def _kind(name: str, key: str) -> Kind | None:
    """What a key may be; None within one that is a mapping. Raises `ConfigError` where there is none."""
    known = keys(name)
    if new := old_names.KEYS.get(key):
        raise ConfigError(f"{key} is now called {new}; write {new}=...")
    if name == "evaluate" and key in _OF_SEARCHES:
        raise ConfigError(f"{key} is for dato search; set {_OF_SEARCHES[key]}")
    outer = key.rpartition(".")[0]
    if key in known or key in groups_of(SCHEMAS[name]):
        return known.get(key)
    if outer in known and dict in known[outer].of:
        return None
    raise ConfigError(unknown(name, key))


def unknown(name: str, key: str) -> str:
    """What to say of a key that there is not, with the nearest ones."""
    close = difflib.get_close_matches(key, list(dict.fromkeys([*keys(name), *fields_of(SCHEMAS[name])])), 3, 0.5)
    return f"{key} is no key here, and would change nothing" + (f"; is it {' or '.join(close)}?" if close else "; keys are in conf/README.md, and in --help")


def _refuse_old_value(key: str, value: str) -> None:
    if new := old_names.VALUES.get((key, value)):
        raise ConfigError(f"{key}={value} is now called {key}={new}; write that")


def _unreadable(key: str, value: str, kind: Kind | None) -> str:
    if kind and not {str, tuple, dict} & set(kind.of):
        return f"{key} is {shown(value)}; {kind}"
    listed = value.startswith("[")
    items = [item.strip().strip("'\"") for item in value.strip("[]").split(",")]
    quoted = f"[{','.join(hydra_text(i, chr(34)) for i in items)}]" if listed else hydra_text(value, '"')
    return f"the value of {key} cannot be read ({shown(value)}); quotes within quotes keep such characters. In a shell: {shlex.quote(f'{key}={quoted}')[:300]}"


def _example(group: str) -> str:
    return {"model": "model.steps=20", "data": "data.images=photos", "cluster": "cluster.workers=2"}.get(group, "seed=1")
