"""Read a csv file that may be damaged or huge."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from fingerprint_accel.untrusted import UnreadableError, check_file_size, open_regular

# Largest size in bytes, and number of lines. A million lines have about 80 MB, and take 10 s and 0.5 GB of memory.
MOST_CSV, MOST_LINES = 2**28, 4_000_000
MOST_LINE = 2**17  # characters
DAMAGED_CSV = (UnreadableError, UnicodeDecodeError, csv.Error)
"""Errors of reading a file that is not a csv in UTF-8, or is too large."""


@contextlib.contextmanager
def open_csv(path: Path) -> Iterator[csv.DictReader[str]]:
    """Open a csv file in UTF-8 for reading. Lines are read when they are needed, so errors can come in between.

    Raises:
        OSError: if the file cannot be opened.
        UnreadableError: if it is not a regular file, is too large, or has too many lines.
        UnicodeDecodeError: if it is not UTF-8.
        csv.Error: if it is not a csv, or has a line of more than `MOST_LINE` characters.
    """
    with open_regular(path) as file:
        check_file_size(file, MOST_CSV)
        yield csv.DictReader(_lines(io.TextIOWrapper(file, "utf-8-sig", newline="")))


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    for _ in range(MOST_LINES):
        line = text.readline(MOST_LINE)
        if not line:
            return
        if len(line) == MOST_LINE:
            raise csv.Error(f"a line of more than {MOST_LINE} characters")
        yield line
    raise UnreadableError(f"has more than {MOST_LINES} lines; split it")
