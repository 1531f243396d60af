"""Files that are damaged, huge, or made to hurt: one error, soon, and nothing read beyond the bounds."""

import json
import os
import time

import pytest

from fingerprint_accel.durable import write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import (
    Fields,
    UnreadableError,
    check_tensors,
    read_bytes,
    read_json,
    read_json_lines,
    read_yaml,
)


def test_a_json_file_comes_back_without_its_checksum(tmp_path):
    values = {"lengths": (1, 2), "rate": 1e-7, "name": "Ä", "inner": {"a": None}}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json", "make it again") == {**values, "lengths": [1, 2]}


def test_every_change_of_a_value_is_noticed(tmp_path):
    write_json(tmp_path / "a.json", {"step": 119, "inner": {"a": [1, 2.5, True]}})
    text = (tmp_path / "a.json").read_text()
    for old, new in (("119", "118"), ("2.5", "2.6"), ("true", "null"), ('"a"', '"b"'), ("step", "stop")):
        (tmp_path / "b.json").write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=r"b.json: damaged \(differs from its checksum"):
            read_json(tmp_path / "b.json", "make it again")
    (tmp_path / "b.json").write_text(json.dumps(json.loads(text)))  # only white space differs
    assert read_json(tmp_path / "b.json", "make it again")["step"] == 119


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[1]", "contains no JSON object"),
        (b'{"a": NaN}', "contains NaN"),
        (b'{"a": -Infinity}', "contains -Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b" " * 40_000_000, r"has 40.0 MB, more than the limit of 33.6 MB"),
    ],
)
def test_damaged_json_is_one_error(content, reason, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a.json: damaged \(.*{reason}.*; make it again"):
        read_json(tmp_path / "a.json", "make it again")


def test_pipes_devices_and_sparse_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 << 30)
    started = time.monotonic()
    for name in ("pipe", "zero"):
        with pytest.raises(UnreadableError, match="not a regular file"):
            read_bytes(tmp_path / name, 100)
        with pytest.raises(UnreadableError, match="not a regular file"):
            check_tensors(tmp_path / name)
    with pytest.raises(UnreadableError, match=r"3221.2 MB, more than the limit of 100 bytes"):
        read_bytes(tmp_path / "sparse", 100)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none" / "a.json", "")
    with pytest.raises(UserError, match="not a regular file"):
        read_json(tmp_path, "make it again")
    assert time.monotonic() - started < 1


def test_a_line_of_json_lines_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n{"a": Infinity}\n')
    lines = read_json_lines(tmp_path / "a.jsonl", 1000)
    assert [next(lines), next(lines)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(UnreadableError, match="line 4: contains Infinity"):
        next(lines)


def test_yaml_is_bounded(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: [x, 2.5]\n")
    assert read_yaml(file) == {"a": 1, "b": ["x", 2.5]}
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    for text, reason in ((bomb, "alias"), ("[" * 5000, "nested|expected"), ("a: [", "flow node"), ("!!python/x 1", "")):
        file.write_text(text)
        with pytest.raises(UnreadableError, match=reason):
            read_yaml(file)
    file.write_text("#" * 200_000)
    with pytest.raises(UnreadableError, match="limit"):
        read_yaml(file)


def test_a_large_header_of_tensors_is_not_parsed(tmp_path):
    file = tmp_path / "a.safetensors"
    with file.open("wb") as opened:
        opened.write((80_000_000).to_bytes(8, "little"))
        opened.truncate(90_000_000)
    with pytest.raises(UnreadableError, match="header is too large"):
        check_tensors(file)
    file.write_bytes((100).to_bytes(8, "little"))
    with pytest.raises(UnreadableError, match="truncated"):
        check_tensors(file)


@pytest.mark.parametrize(
    ("method", "value", "arguments"),
    [
        ("integer", 0, (1, 10)),
        ("integer", True, (0, 10)),
        ("integer", 3.0, (0, 10)),
        ("integer", "3", (0, 10)),
        ("integer", None, (0, 10)),
        ("number", 10**400, (0.0, 1.0)),
        ("number", -(10**400), ()),
        ("number", float("nan"), ()),
        ("number", float("inf"), ()),
        ("number", [1.0], ()),
        ("switch", 1, ()),
        ("text", 5, ()),
        ("text", "c", (None, ("a", "b"))),
        ("part", [], ()),
        ("digests", {"../a": "0" * 64}, ()),
        ("digests", {"/etc/passwd": "0" * 64}, ()),
        ("digests", {".hidden": "0" * 64}, ()),
        ("digests", {"a": "0" * 63}, ()),
        ("digests", {"a": 5}, ()),
        ("digests", {"other": "0" * 64}, (r"data-\d+",)),
    ],
)
def test_wrong_values_are_refused_by_name(method, value, arguments):
    with pytest.raises(UserError, match=r"a.json: size must be .*; make it again"):
        getattr(Fields({"size": value}, "a.json", "make it again"), method)("size", *arguments)


def test_good_values_pass():
    fields = Fields({"n": 5, "x": 2, "on": False, "name": "a", "files": {"f": "0" * 64}, "in": {"m": 1}}, "a.json", "")
    assert (fields.integer("n", 0, 5), fields.number("x"), fields.switch("on"), fields.text("name")) == (
        5,
        2.0,
        False,
        "a",
    )
    assert fields.digests("files") == {"f": "0" * 64}
    assert fields.part("in").integer("m", 0, 1) == 1
    assert fields.part("none").integer("m", 0, 1, default=0) == 0
    with pytest.raises(UserError, match=r"a.json: in: k is missing"):
        fields.part("in").integer("k", 0, 1)
