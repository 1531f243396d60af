"""Files of a gallery folder: `gallery.json`, which describes the gallery, and Arrow files of prints.

Code and docstrings call an Arrow file of prints a part. An enrolment adds one part by a rename. A change that also
deletes parts is first recorded in `changes.json`. If a kill interrupts such a change, the next process that opens the
gallery completes it. A gallery is therefore never left half-changed.

This module does not import torch, so that commands which only check files start fast.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fingerprint_accel.durable import draft_of, file_sha256, fsync_path, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.outputs import FolderKind, exclusive_lock
from fingerprint_accel.untrusted import parse_json, read_json

FORMAT_VERSION = 1
FACTS = "gallery.json"
CHANGES = "changes.json"
INDEXES = "index-*.faiss"
DRAFTS = ".*.tmp"  # unfinished files of `durable.draft_of` and `durable.write_file`
PART_NAME = re.compile(r"part-(\d{6})-([0-9a-f]{16})\.arrow")
PATIENCE = 60.0  # seconds to wait for another command to write its files


class Known(NamedTuple):
    """Record of a print in a gallery, without its embedding.

    Attributes:
        name: name of the print, unique in the gallery.
        person: person to whom the print belongs; empty if unknown.
        position: finger position code of ANSI/NIST-ITL, for example 7 for the left index finger; 0 if unknown.
        source: path or description of the original print; empty if unknown.
    """

    name: str
    person: str = ""
    position: int = 0
    source: str = ""


def as_facts(dims: int, model: str, cells: int) -> dict[str, Any]:
    """Return the contents of `gallery.json`; the metadata of every file of prints contains a copy.

    Args:
        dims: dimension of the embeddings.
        model: identity of the model that computes the embeddings.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
    """
    return {"format_version": FORMAT_VERSION, "dims": dims, "model": model, "cells": cells}


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Read the description of a gallery (see `as_facts`); return None if the folder is not a gallery.

    If `gallery.json` is missing or damaged, the description is read from the metadata of the first file of prints.
    """
    for path in (folder / FACTS, *part_files(folder)[:1]):
        try:
            text = path.read_text() if path.name == FACTS else _open(path).schema.metadata[b"gallery"]
            facts = parse_json(text)
            return as_facts(int(facts["dims"]), str(facts["model"]), int(facts.get("cells", 0)))  # missing in old files
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            continue
    return None


KIND = FolderKind("a gallery folder", lambda folder: read_facts(folder) is not None, ".*", whole=False)


def part_files(folder: Path) -> list[Path]:
    """List the paths of the files of prints in a gallery folder, oldest first."""
    return sorted(path for path in folder.glob("part-*") if PART_NAME.fullmatch(path.name))


def part_number(name: str) -> int:
    """Return the sequence number that the name of a file of prints contains."""
    return int(name[5:11])


def new_part(embeddings: np.ndarray, prints: Sequence[Known], facts: str) -> pa.RecordBatch:
    """Build the contents of a file of prints.

    Args:
        embeddings: (N, D) float32.
        prints: record of each print.
        facts: text of `gallery.json`, to store in the metadata of the file.
    """
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    name, person, position, source = zip(*prints, strict=True)
    columns = {
        "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
        "name": pa.array(name, pa.string()),
        "person": pa.array(person, pa.string()),
        "position": pa.array(position, pa.int16()),
        "source": pa.array(source, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns).replace_schema_metadata({"gallery": facts})


def read_part(path: Path, dims: int) -> pa.RecordBatch:
    """Open a file of prints with memory mapping.

    Args:
        path: Arrow file.
        dims: dimension of the embeddings of the gallery.

    Raises:
        UserError: if the file is damaged, or the dimension of its embeddings is not `dims`.
    """
    try:
        batch = _open(path).get_batch(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged; restore it, or delete it and enrol its prints again") from error
    if batch.schema.field("embedding").type.list_size != dims:
        raise UserError(f"{path}: belongs to another gallery; move it out of this folder")
    return batch


def known_in(part: pa.RecordBatch, row: int) -> Known:
    """Return the record of one print in a file; fields that older files do not contain have their default values."""
    return Known(*(part[column][row].as_py() for column in Known._fields if column in part.schema.names))


def positions_in(part: pa.RecordBatch) -> np.ndarray:
    """Return the finger position code of each print in a file, (n,) int16; 0 if unknown."""
    stated = "position" in part.schema.names
    return np.from_dlpack(part["position"]) if stated else np.zeros(len(part), np.int16)


def vectors_in(part: pa.RecordBatch) -> np.ndarray:
    """Return the embeddings of the prints of a file, (n, D) float32, as a view of the memory-mapped file."""
    dims = part.schema.field("embedding").type.list_size
    return np.from_dlpack(part["embedding"].flatten()).reshape(-1, dims)


def _open(path: Path) -> Any:
    """Open an Arrow file with memory mapping."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold the lock of a gallery while the caller changes its files.

    A change that was interrupted by a kill is completed first.

    Raises:
        UserError: if another process holds the lock for longer than `PATIENCE` (60 seconds).
    """
    with exclusive_lock(folder / ".lock", f"{folder}: another command is changing it; try again later", PATIENCE):
        _complete(folder)
        yield


def settled_parts(folder: Path, dims: int) -> list[tuple[str, pa.RecordBatch]]:
    """Open all files of prints in a consistent state, even if another process changes the gallery at the same time.

    Args:
        folder: gallery folder.
        dims: dimension of the embeddings.

    Returns:
        Name and contents of each file, oldest first.

    Raises:
        UserError: if a file is damaged or belongs to another gallery.
    """
    while True:
        files = part_files(folder)
        if (folder / CHANGES).exists():
            with changing(folder):
                continue
        try:
            parts = [(path.name, read_part(path, dims)) for path in files]
        except UserError:
            if all(path.exists() for path in files):
                raise
            continue  # another process replaced a file; try again
        if files == part_files(folder):
            return parts


def change_parts(folder: Path, new: Sequence[tuple[int, pa.RecordBatch]], gone: Sequence[str] = ()) -> None:
    """Add and delete files of prints in one atomic change; the caller must hold the lock.

    If files are deleted, search indexes and unfinished files are deleted too, because they may contain the same prints.

    Args:
        folder: gallery folder.
        new: sequence number and contents of each file to add; at most one file if `gone` is empty.
        gone: names of the files to delete.
    """
    assert gone or len(new) <= 1, "several files can be added atomically only through changes.json"
    drafts: dict[str, str] = {}
    try:
        for number, batch in new:
            draft = draft_of(folder / f"part-{number:06d}")
            drafts[draft.name] = ""
            with pa.ipc.new_file(str(draft), batch.schema) as writer:
                writer.write_batch(batch)
            fsync_path(draft)
            drafts[draft.name] = f"part-{number:06d}-{file_sha256(draft)[:16]}.arrow"
        if gone:
            write_json(folder / CHANGES, {"new": drafts, "gone": list(gone)})
            _complete(folder)
        else:
            for name, final in drafts.items():
                (folder / name).rename(folder / final)
            fsync_path(folder)
    finally:
        if not (folder / CHANGES).exists():
            for name in drafts:
                (folder / name).unlink(missing_ok=True)


def delete_drafts(folder: Path) -> None:
    """Delete unfinished files that killed commands left in a gallery folder; the caller must hold the lock."""
    for path in folder.glob(DRAFTS):
        path.unlink(missing_ok=True)


def _complete(folder: Path) -> None:
    """Complete the change that is recorded in `changes.json`, if there is one; the caller must hold the lock.

    Raises:
        UserError: if a new file of the change is missing.
    """
    try:
        changes = read_json(folder / CHANGES, "restore the gallery from a copy")
    except FileNotFoundError:
        return
    for draft, name in changes["new"].items():
        if not (folder / name).exists():
            there = (folder / draft).exists()
            require(there, f"{folder / CHANGES}: {draft} is missing; restore the gallery from a copy")
            (folder / draft).rename(folder / name)
    fsync_path(folder)
    for name in changes["gone"]:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(INDEXES):
        path.unlink(missing_ok=True)
    delete_drafts(folder)
    fsync_path(folder)
    (folder / CHANGES).unlink()
    fsync_path(folder)
