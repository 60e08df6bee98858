"""Files that people have, and files that are none."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from dato.files import MAX_DEPTH, FileError, check_plain, parse_json, read_bytes, read_json, read_lines, read_text, refuse_target, written


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é", encoding="utf-8-sig")
    assert read_text(tmp_path / "a", 100) == "é"
    (tmp_path / "b").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "b", 100) == {"a": 1}
    (tmp_path / "c").write_text("a cat", encoding="utf-16")
    with pytest.raises(FileError, match=r"not UTF-8 text \(UTF-16\); save it as UTF-8"):
        read_text(tmp_path / "c", 100)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_text("a cat", encoding=encoding)
    with pytest.raises(FileError, match=f"not UTF-8 text .*{encoding.upper()}.*; save it as UTF-8"):
        read_text(tmp_path / "a", 100)


def test_a_line_of_what_nobody_sees_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\u200b\n\ufeff \u2060\t\n\u200ba\u200db \n", encoding="utf-8")
    assert read_lines(tmp_path / "a", 100) == ["", "", "a\u200db", ""]


def test_a_value_as_one_writes_it() -> None:
    assert [written(v) for v in (None, True, [None, 1, "a"], 1.5)] == ["null", "true", "[null, 1, 'a']", "1.5"]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(tmp_path / "s"))
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    wrong = {"/dev/zero": "a device", str(tmp_path): "a folder", str(tmp_path / "pipe"): "a pipe", str(tmp_path / "s"): "a socket", str(tmp_path / "link"): "a device"}
    for path, message in wrong.items():
        with pytest.raises(FileError, match=f"it is {message}, not a file"):
            read_bytes(path, 100)
        assert refuse_target(path)
    held.close()
    for path, message in {"x" * 300: "too long", "a\0b": "no file can have this name", str(tmp_path / "no"): "No such file", str(tmp_path / "loop"): "symbolic links"}.items():
        with pytest.raises(FileError, match=message):
            read_bytes(path, 100)


def test_a_file_of_the_limit_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert len(read_bytes(tmp_path / "a", 100)) == 100
    with pytest.raises(FileError, match="more than the 99 bytes"):
        read_bytes(tmp_path / "a", 99)
    assert refuse_target(tmp_path / "a") is refuse_target(tmp_path / "new") is None


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (nested(MAX_DEPTH + 2), f"deeper than {MAX_DEPTH}"),
        (nested(200_000), f"deeper than {MAX_DEPTH}"),
        ('{"a":' * 5000 + "1" + "}" * 5000, f"deeper than {MAX_DEPTH}"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice"),
        ("[NaN]", "holds NaN, and every number must be finite"),
        ("[-Infinity]", "finite"),
        ("[1e999]", "finite"),
        ("9" * 400, "more than 64 bits"),
        ("9" * 5000, "not JSON: Exceeds the limit"),
    ],
)
def test_json_that_no_program_can_rely_on(text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        parse_json(text)


def test_json_at_its_limits() -> None:
    whole = {"a": [1, -1.5, None, True, "text", 2**63 - 1], "b": json.loads(nested(MAX_DEPTH - 1))}
    assert parse_json(json.dumps(whole)) == whole
    check_plain([{}] * 10)
