"""Read a file that somebody gives, and JSON of it: a regular file of a sensible size, UTF-8, no deeper and no larger than its kind is."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MAX_DEPTH = 64
"""Lists and objects within each other: what we write has six at most, and much deeper ones break whatever walks them."""
MAX_INTEGER = 2**63 - 1
"""Counts, ids and seeds are smaller; larger ones overflow when they become floats."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_BLANK = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\u200b\u200c\u200d\u2060\ufeff"
_PLAIN = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # not every system has all of them


class FileError(ValueError):
    """A file that cannot be read: the message says why, for the reader's own message about what it was given for."""


def read_bytes(path: str | Path, limit: int) -> bytes:
    """All of a regular file of at most `limit` bytes. Nothing else is opened: a device never ends, and a pipe waits.

    Raises:
        FileError: It is not there, is no regular file, is larger, or may not be read.
    """
    try:
        _refuse_kind(os.stat(path).st_mode)
        # Not blocking: what was a file a moment ago may have become a pipe.
        with open(os.open(path, os.O_RDONLY | _PLAIN), "rb", buffering=0) as file:
            _refuse_kind(os.fstat(file.fileno()).st_mode)
            content = bytearray()
            while len(content) <= limit and (piece := file.read(min(1 << 20, limit + 1 - len(content)))):
                content += piece
    except OSError as error:
        raise FileError(error.strerror or str(error)) from None
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        raise FileError("no file can have this name") from None  # a null character
    if len(content) > limit:
        raise FileError(f"it has more than the {limit} bytes that such a file may have")
    return bytes(content)


def read_text(path: str | Path, limit: int) -> str:
    """`read_bytes` as UTF-8; the byte order mark that some editors put first is no part of the text."""
    return decode(read_bytes(path, limit))


def read_lines(path: str | Path, limit: int) -> list[str]:
    """`read_text` by line, without blanks at the ends. Only line ends end a line: U+2028 or a form feed within a prompt is part of it."""
    lines = read_text(path, limit).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # Files joined together have byte order marks within; zero-width characters at the ends are nothing that a person sees.
    return [line.strip(_BLANK) for line in lines]


def read_json(path: str | Path, limit: int) -> Any:
    """`read_text` as `parse_json` reads it."""
    return parse_json(read_text(path, limit))


def decode(content: bytes) -> str:
    """UTF-8 text with or without a byte order mark. Raises `FileError`."""
    if b"\0" in content:  # UTF-8 too has a NUL character, and no text holds one
        little, big = (content[start::2].count(0) for start in (1, 0))
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "NUL characters, as in UTF-16-LE" if little > big else "NUL characters, as in UTF-16-BE"
        raise FileError(f"it is not UTF-8 text ({kind}); save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"at byte {error.start}: {error.reason}"
        raise FileError(f"it is not UTF-8 text ({kind}); save it as UTF-8") from None


def parse_json(text: str) -> Any:
    """JSON that a program can rely on.

    Raises:
        FileError: No JSON, a key twice in one object, a number that is not finite or an integer of more than 64 bits, or deeper
            than `MAX_DEPTH`.
    """
    try:
        data = json.loads(text.removeprefix("\ufeff"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except FileError:
        raise
    except RecursionError:
        raise FileError(f"it is nested deeper than {MAX_DEPTH} lists and objects") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise FileError(f"it is not JSON: {str(error).partition('; use sys.')[0]}") from None
    check_plain(data)
    return data


def check_plain(data: Any) -> None:
    """Refuse plain data that is too deep, or holds a number that is not finite or an integer of more than 64 bits. Raises `FileError`."""
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise FileError(f"it holds {value}, and every number must be finite")
            elif isinstance(value, int):
                if abs(value) > MAX_INTEGER:
                    raise FileError(f"it holds an integer of more than 64 bits ({shown(value)})")
            elif isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level = inner
        if not level:
            return
    raise FileError(f"it is nested deeper than {MAX_DEPTH} lists and objects")


def require_file(path: str | Path) -> None:
    """Refuse what is no regular file, for readers that open files themselves. Raises `FileError`; OSError where it is not there."""
    _refuse_kind(os.stat(path).st_mode)


def user_path(given: str | Path) -> Path:
    """A path with ~ for a home folder; as it stands where there is no such user (`Path.expanduser` raises)."""
    return Path(os.path.expanduser(given))


def refuse_target(path: str | Path) -> str | None:
    """Why a file cannot be written at this path, or None where it can: replacing a device would remove it from the system."""
    try:
        _refuse_kind(os.stat(path).st_mode)
    except FileError as error:
        return str(error)
    except (OSError, ValueError):
        return None  # not there, or what writing it will say
    return None


def shown(value: Any, limit: int = 100) -> str:
    """A value as messages show it: its repr, in full where that is short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a list in a list in a list
        return f"a huge {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit // 2]}... ({len(text)} characters)"


def written(value: Any, limit: int = 100) -> str:
    """A value as one writes it in a configuration: null, true and false; `shown` for the rest."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    plain = isinstance(value, list | tuple) and len(value) <= limit and not any(isinstance(v, list | tuple | dict) for v in value)
    text = f"[{', '.join(written(v) for v in value)}]" if plain else shown(value, limit)
    return text if len(text) <= limit else shown(value, limit)


def _refuse_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise FileError(f"it is {kind}, not a file" if kind != "no regular file" else f"it is {kind}")


def _refuse_constant(name: str) -> float:
    raise FileError(f"it holds {name}, and every number must be finite")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FileError(f"an object has the key {shown(twice)} twice")
    return found
