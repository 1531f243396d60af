"""The JSON file that a benchmark writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fingerprint_accel.durable import write_file
from fingerprint_accel.outputs import check_file, mark


def written_by() -> str:
    """What the results of this benchmark are marked with."""
    return f"benchmark {Path(sys.argv[0]).stem}"


def check_results(out: Path | None) -> None:
    """Called before anything is measured.

    Raises:
        UserError: `out` is a folder, or a file that this benchmark has not written.
    """
    if out is not None:
        check_file(out, written_by())


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Writes results as JSON, whole or not at all.

    Raises:
        UserError: as of `check_results`.
    """
    check_results(out)
    write_file(out, json.dumps({"written_by": mark(written_by()), **results}, indent=2) + "\n")
