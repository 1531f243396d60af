"""The JSON file of results that a benchmark writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fingerprint_accel.durable import write_file
from fingerprint_accel.outputs import check_file, mark


def written_by() -> str:
    """Return the mark of results of this benchmark."""
    return f"benchmark {Path(sys.argv[0]).stem}"


def check_results(out: Path | None) -> None:
    """Check the output file before anything is measured.

    Raises:
        UserError: `out` is a folder, or a file that this benchmark has not written.
    """
    if out is not None:
        check_file(out, written_by())


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, atomically.

    Raises:
        UserError: See `check_results`.
    """
    check_results(out)
    write_file(out, json.dumps({"written_by": mark(written_by()), **results}, indent=2) + "\n")
