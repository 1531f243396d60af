"""Read files that may be damaged, huge, or made by an attacker.

All readers of metadata, weights and templates use this module, so that the same bounds hold everywhere: only regular
files are read, the size is checked before anything is read, and every value of a JSON object has its type and range
checked before it is used. This module imports only `errors` and `durable` of the package.
"""

from __future__ import annotations

import errno
import json
import math
import operator
import os
import re
import stat
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fingerprint_accel.durable import CHECKSUM, checksum_of
from fingerprint_accel.errors import UserError

MOST_JSON = 2**25  # bytes; the largest JSON file lists a few thousand shards
MOST_YAML = 2**17  # bytes; YAML is parsed slowly, in pure Python
MOST_HEADER = 2**23  # bytes; the header of a safetensors file with 10,000 tensors has about 1.5 MB
MOST_LINE = 2**20  # bytes of one line of a JSON lines file
MOST_COMPARED = 2**26
"""Largest size, in bytes, of a gallery or folder of embeddings whose checksums are compared when it is opened. This
takes 30 ms. The checksums of larger ones are compared by `verify` only."""
SHA256, XXH3 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")  # digests in hexadecimal
# Errors of json, yaml and the checks of this module for damaged content. Deep nesting raises RecursionError.
DAMAGED = (ValueError, RecursionError, MemoryError, yaml.YAMLError)


class UnreadableError(ValueError):
    """Error for a file that must not be read, or whose content is damaged. The message does not name the file."""


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is not a regular file (for example a pipe or a device), or the path contains a zero byte.
    """
    return os.fdopen(regular_descriptor(path), "rb")


def regular_descriptor(path: Path | str) -> int:
    """Open a regular file for reading like `open_regular`, and return its file descriptor."""
    try:  # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise UnreadableError("has no valid path") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # these are no faults of the disk
            raise UnreadableError(f"has no valid path: {error.strerror}") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableError("is not a regular file")
    return descriptor


def read_bytes(path: Path | str, limit: int) -> bytes:
    """Read a regular file completely.

    Args:
        path: The file. Links are followed.
        limit: Largest size to accept, in bytes.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is not a regular file (for example a pipe or a device), or is larger than `limit`.
    """
    with open_regular(path) as file:
        return read_rest(file, limit)


def read_rest(file: BufferedReader, limit: int) -> bytes:
    """Read the rest of a file that `open_regular` has opened.

    Raises:
        UnreadableError: If the file is larger than `limit` bytes.
    """
    check_file_size(file, limit)
    data = file.read(limit + 1)  # files in /proc state the size 0
    if len(data) > limit:
        raise UnreadableError(f"has more than the limit of {_size(limit)}")
    return data


def check_file_size(file: BufferedReader, limit: int) -> None:
    """Raise an `UnreadableError` if an opened file is larger than `limit` bytes."""
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise UnreadableError(f"has {_size(size)}, more than the limit of {_size(limit)}")


def read_json(path: Path, remedy: str, limit: int = MOST_JSON) -> dict[str, Any]:
    """Read a JSON file that contains an object, and compare it with its checksum if it contains one.

    Args:
        path: The file.
        remedy: What the user can do if the file is damaged, for the error message.
        limit: Largest size to accept, in bytes.

    Returns:
        The object, without the entry of the checksum.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If the file cannot be read, is damaged, or was changed after it was written.
    """
    try:
        return parse_json(read_bytes(path, limit))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except DAMAGED as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {remedy}") from error


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object, and compare it with its checksum if it contains one.

    Returns:
        The object, without the entry of the checksum.

    Raises:
        ValueError: If the text is not a JSON object, contains NaN or infinity, or differs from its checksum.
        RecursionError: If the text is nested too deeply.
    """
    values = json.loads(text, parse_constant=_not_a_number)
    if not isinstance(values, dict):
        raise UnreadableError("contains no JSON object")
    checksum = values.pop(CHECKSUM, None)
    for name in values:  # a changed bit in the name of the entry must not turn the comparison off
        if len(name) == len(CHECKSUM) and sum(map(operator.ne, name, CHECKSUM)) == 1:
            raise UnreadableError(f"contains {name!r} instead of {CHECKSUM!r}")
    if checksum is not None and checksum != checksum_of(values):
        raise UnreadableError(f"differs from its {CHECKSUM}; if you edited it yourself, delete the line {CHECKSUM!r}")
    return values


def read_json_lines(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Read the objects of a JSON lines file, one per line. Empty lines are skipped.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is not a regular file, is larger than `limit` bytes, or a line is not a JSON object.
    """
    for number, line in enumerate(read_bytes(path, limit).split(b"\n"), 1):
        if line.strip():
            try:
                yield parse_json(line)
            except DAMAGED as error:
                raise UnreadableError(f"line {number}: {reason_of(error)}") from error


def read_yaml(path: Path, limit: int = MOST_YAML) -> Any:
    """Read a YAML file without aliases. Aliases can expand a small file to any size.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is not a regular file, is larger than `limit` bytes, or is not YAML.
    """
    data = read_bytes(path, limit)
    try:
        return yaml.load(data, _WithoutAliases)
    except DAMAGED as error:
        raise UnreadableError(f"not valid YAML: {reason_of(error)}") from error


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise UnreadableError("contains an alias (*name), which is not supported; write the value out")
        return super().compose_node(parent, index)


def check_tensors(path: Path) -> None:
    """Check the size of the header of a safetensors file, which the library reads and parses as a whole.

    The library checks everything else.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is not a regular file, or its header is too large.
    """
    with open_regular(path) as file:
        header, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if header > min(MOST_HEADER, size):
        raise UnreadableError("is truncated, or its header is too large")


class Fields:
    """Values of a JSON object, each of which has its type and range checked when it is read.

    Args:
        values: The object.
        where: File or part of a file that contains the object, for error messages.
        remedy: What the user can do if a value is wrong, for error messages.
    """

    def __init__(self, values: dict[str, Any], where: Path | str, remedy: str) -> None:
        self.values, self._where, self._remedy = values, where, remedy

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """Return an integer from `low` to `high`. If the value is missing, return `default` unless it is None.

        Raises:
            UserError: If the value is missing without a default, is not an integer, or is out of range. The other
                methods raise the same error.
        """
        value = self._get(name, default)
        if type(value) is not int or not low <= value <= high:  # a bool is not an integer here
            self._refuse(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, default: float | None = None) -> float:
        """Return a finite number from `low` to `high`. If the value is missing, return `default` unless it is None."""
        value = self._get(name, default)
        if not _is_finite(value) or not low <= value <= high:
            self._refuse(name, f"a number from {low:g} to {high:g}" if math.isfinite(high) else "a finite number")
        return float(value)

    def switch(self, name: str, default: bool | None = None) -> bool:
        """Return a bool. If the value is missing, return `default` unless it is None."""
        value = self._get(name, default)
        if type(value) is not bool:
            self._refuse(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        """Return a string, one of `choices` if given. If the value is missing, return `default` unless it is None."""
        value = self._get(name, default)
        if type(value) is not str or (choices and value not in choices):
            self._refuse(name, f"one of {', '.join(choices)}" if choices else "a text")
        return value

    def part(self, name: str) -> Fields:
        """Return the object with a given name. If it is missing, the result is an empty object."""
        value = self.values.get(name, {})
        if type(value) is not dict:
            self._refuse(name, "an object")
        return Fields(value, f"{self._where}: {name}", self._remedy)

    def numbers(self, name: str) -> list[float]:
        """Return a non-empty list of finite numbers."""
        value = self._get(name, None)
        if not isinstance(value, (list, tuple)) or not value or not all(map(_is_finite, value)):
            self._refuse(name, "a list of finite numbers")
        return list(value)

    def digests(self, name: str, names: str | None = None, digest: re.Pattern[str] = SHA256) -> dict[str, str]:
        """Return a dictionary from names of files in the same folder to their checksums.

        Args:
            name: Name of the dictionary in the object.
            names: Regular expression that the names of the files must match. By default, every name is allowed that
                contains no slash and does not begin with a dot.
            digest: Regular expression that the checksums must match.
        """
        value = self.values.get(name, {})
        allowed = re.compile(r"(?!\.)[^/\0]{1,255}" if names is None else names)
        good = type(value) is dict and all(
            allowed.fullmatch(file) and "/" not in file and type(stated) is str and digest.fullmatch(stated)
            for file, stated in value.items()
        )
        if not good:
            self._refuse(name, "names of files in this folder with their checksums")
        return value

    def _get(self, name: str, default: Any) -> Any:
        if default is None and name not in self.values:
            raise UserError(f"{self._where}: {name} is missing; {self._remedy}")
        return self.values.get(name, default)

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise UserError(f"{self._where}: {name} must be {expected}, not {_shown(self.values[name])}; {self._remedy}")


def reason_of(error: BaseException) -> str:
    """Return the first line of the message of an error, shortened to 80 printable characters."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = str(error).splitlines()
    return printable(lines[0], 80) if lines and lines[0] else type(error).__name__


def printable(text: str, most: int) -> str:
    """Return at most `most` characters of a text from a file, for a message; line breaks and the like become `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def _shown(value: Any) -> str:
    """Return a short text that shows a value of a JSON object."""
    text = json.dumps(value, default=str) if not isinstance(value, (dict, list)) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number other than NaN, infinity, and integers that are too large for a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def _not_a_number(word: str) -> NoReturn:
    raise UnreadableError(f"contains {word}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
