"""The files of a gallery folder: what the gallery is, and one Arrow file for each enrolment. Imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import FolderKind

FORMAT_VERSION = 1
FACTS = "gallery.json"
PART_NAME = re.compile(r"part-(\d{6})-([0-9a-f]{16})\.arrow")


def as_facts(dims: int, model: str, cells: int) -> dict[str, Any]:
    """What `gallery.json` and every file of prints say of a gallery."""
    return {"format_version": FORMAT_VERSION, "dims": dims, "model": model, "cells": cells}


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What `gallery.json` or, where that is lost, a file of prints says of a gallery; None where neither does."""
    for path in (folder / FACTS, *part_files(folder)[:1]):
        try:
            text = path.read_text() if path.name == FACTS else _open(path).schema.metadata[b"gallery"]
            facts = json.loads(text)
            return as_facts(int(facts["dims"]), str(facts["model"]), int(facts.get("cells", 0)))  # 0 in older galleries
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            continue
    return None


KIND = FolderKind("a gallery folder", lambda folder: read_facts(folder) is not None, ".*", whole=False)


def part_files(folder: Path) -> list[Path]:
    """The files of prints, oldest first."""
    return sorted(path for path in folder.glob("part-*") if PART_NAME.fullmatch(path.name))


def read_part(path: Path, dims: int) -> pa.RecordBatch:
    """Opens a file of prints, memory-mapped; raises UserError where it is damaged or of another length than `dims`."""
    try:
        batch = _open(path).get_batch(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged; restore it, or delete it and enrol its prints again") from error
    if batch.schema.field("embedding").type.list_size != dims:
        raise UserError(f"{path}: belongs to another gallery")
    return batch


def _open(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path)))
