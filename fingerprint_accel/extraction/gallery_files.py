"""The files of a gallery folder: what the gallery is, and one Arrow file for each enrolment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa

from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import FolderKind

FORMAT_VERSION = 1
FACTS = "gallery.json"
PART_NAME = re.compile(r"part-(\d{6})-([0-9a-f]{16})\.arrow")


def as_facts(dims: int, model: str, cells: int) -> dict[str, int | str]:
    """What `gallery.json` and every file of prints say of a gallery."""
    return {"format_version": FORMAT_VERSION, "dims": dims, "model": model, "cells": cells}


def _facts(facts: dict[str, int | str]) -> tuple[int, str, int]:
    return int(facts["dims"]), str(facts["model"]), int(facts.get("cells", 0))  # older galleries do not name cells


def read_facts(folder: Path) -> tuple[int, str, int] | None:
    """Length of the embeddings, model and cells of a gallery folder, from `gallery.json` or, where that is lost, from a
    file of prints; None where neither says."""
    try:
        return _facts(json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        path = part_files(folder)[0]
        return _facts(json.loads(pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata[b"gallery"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
        return None


KIND = FolderKind("a gallery folder", lambda folder: read_facts(folder) is not None, ".*", whole=False)


def part_files(folder: Path) -> list[Path]:
    """The files of prints, oldest first."""
    return sorted(path for path in folder.iterdir() if PART_NAME.fullmatch(path.name))


def read_part(path: Path, dims: int) -> pa.RecordBatch:
    """Opens a file of prints, memory-mapped.

    Raises:
        UserError: it is damaged, or holds embeddings of another length than `dims`.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged; restore it, or delete it and enrol its prints again") from error
    if batch.schema.field("embedding").type.list_size != dims:
        raise UserError(f"{path}: belongs to another gallery")
    return batch
