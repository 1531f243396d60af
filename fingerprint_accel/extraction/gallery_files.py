"""The files of a gallery folder: what the gallery is, and Arrow files of prints. Imports no torch.

Files are added by one rename. Where files also replace others, `changes.json` names both first: from then on the change
counts, and whoever finds it there completes it. So a kill leaves the gallery of before or the one of after.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fingerprint_accel.durable import draft_of, file_sha256, fsync_path, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.outputs import FolderKind, exclusive_lock

FORMAT_VERSION = 1
FACTS = "gallery.json"
CHANGES = "changes.json"
INDEXES = "index-*.faiss"
DRAFTS = ".*.tmp"  # of `durable.draft_of` and `durable.write_file`
PART_NAME = re.compile(r"part-(\d{6})-([0-9a-f]{16})\.arrow")
PATIENCE = 60.0  # seconds to wait for another command to write its files


class Known(NamedTuple):
    """What a gallery keeps of a print beside its template.

    Attributes:
        name: what a search answers with; no two prints of a gallery share it.
        person: whose print it is; empty: not known.
        position: of the finger, ANSI/NIST code; 0: not known.
        source: where the print comes from; empty: not known.
    """

    name: str
    person: str = ""
    position: int = 0
    source: str = ""


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


def part_number(name: str) -> int:
    """Place of a file of prints among the others."""
    return int(name[5:11])


def new_part(embeddings: np.ndarray, prints: Sequence[Known], facts: str) -> pa.RecordBatch:
    """(N, D) float32 and N prints -> what a file of prints holds; `facts` as in `gallery.json`."""
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
    """Opens a file of prints, memory-mapped; raises UserError where it is damaged or of another length than `dims`."""
    try:
        batch = _open(path).get_batch(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged; restore it, or delete it and enrol its prints again") from error
    if batch.schema.field("embedding").type.list_size != dims:
        raise UserError(f"{path}: belongs to another gallery")
    return batch


def known_in(part: pa.RecordBatch, row: int) -> Known:
    """What a file of prints says of one; older files hold names alone."""
    return Known(*(part[column][row].as_py() for column in Known._fields if column in part.schema.names))


def positions_in(part: pa.RecordBatch) -> np.ndarray:
    """(n,) int16: finger positions of the prints of a file, 0 where they are not known."""
    stated = "position" in part.schema.names
    return np.from_dlpack(part["position"]) if stated else np.zeros(len(part), np.int16)


def _open(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path)))


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Holds the lock of a gallery in which no change is unfinished.

    Raises:
        UserError: another process has been writing to it for a minute.
    """
    with exclusive_lock(folder / ".lock", f"{folder}: another command is changing it; try again later", PATIENCE):
        _complete(folder)
        yield


def settled_parts(folder: Path, dims: int) -> list[tuple[str, pa.RecordBatch]]:
    """Names of the files of prints, oldest first, and these opened: all of one moment, no change between them."""
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
            continue  # replaced meanwhile
        if files == part_files(folder):
            return parts


def change_parts(folder: Path, new: Sequence[tuple[int, pa.RecordBatch]], gone: Sequence[str] = ()) -> None:
    """Puts new files of prints into a gallery whose lock is held, and takes files away: all of it, or nothing.

    Where files go, everything goes that was made of them: indexes, and drafts.

    Args:
        folder: of the gallery.
        new: number and content of each file; without `gone` a single one.
        gone: names of files.
    """
    assert gone or len(new) <= 1, "several files appear together only by a list of changes"
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
    """Deletes what killed commands have left half-made in a gallery whose lock is held."""
    for path in folder.glob(DRAFTS):
        path.unlink(missing_ok=True)


def _complete(folder: Path) -> None:
    """Does what `changes.json` says, if it is there; the lock is held."""
    try:
        changes = json.loads((folder / CHANGES).read_text())
    except FileNotFoundError:
        return
    for draft, name in changes["new"].items():
        if not (folder / name).exists():
            there = (folder / draft).exists()
            require(there, f"{folder / CHANGES}: names {draft}, which is not there; restore the gallery from a copy")
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
