"""Files of a gallery folder: `gallery.json`, which describes the gallery, and Arrow files of prints.

Code and docstrings call an Arrow file of prints a part; see `gallery_parts`. An enrolment adds one part by a rename. A
change that also deletes parts is first recorded in `changes.json`. If a kill interrupts such a change, the next process
that opens the gallery completes it. A gallery is therefore never left half-changed.

This module does not import torch, so that commands which only check files start fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fingerprint_accel.durable import draft_of, file_sha256, fsync_path, is_being_written, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_parts import (
    PART_NAME,
    checked_facts,
    part_files,
    read_part,
)
from fingerprint_accel.outputs import OF_THE_SYSTEM, FolderKind, exclusive_lock
from fingerprint_accel.privacy import private_files
from fingerprint_accel.untrusted import MOST_COMPARED, Fields, read_json

FACTS = "gallery.json"
PARTS = "parts"  # entry of `gallery.json`: names of the files of prints
CHANGES = "changes.json"
INDEXES = "index-*.faiss"
INDEX_DRAFTS = ".*-index.tmp"
INDEX_NAME = re.compile(r"index-[0-9a-f]{16}-[0-9a-f]{16}\.faiss")  # earlier versions wrote no checksum
PART_DRAFTS = ".*part-*.tmp"  # unfinished files of `durable.draft_of`
DRAFTS = ".*.tmp"
LEFTOVERS = re.compile(rf"\.lock|\..*\.tmp|{OF_THE_SYSTEM.pattern}")  # what a killed first enrolment can leave
DRAFT_NAME = re.compile(r"\.[^/\0]{1,200}\.tmp")
PATIENCE = 60.0  # seconds to wait for another command to write its files


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Read the description of a gallery (see `as_facts`); return None if the folder has none.

    If `gallery.json` is missing or damaged, the copy in the first file of prints is read.

    Raises:
        UserError: if the description is damaged and there is no copy.
    """
    files = part_files(folder)
    try:
        if (found := own_facts(folder)) is not None:
            return found
    except UserError:
        if not files:
            raise
    return read_part(files[0], compare=False)[1] if files else None


def own_facts(folder: Path) -> dict[str, Any] | None:
    """Read `gallery.json`; return None if it is missing, or empty after a crash of the machine.

    Raises:
        UserError: if the file is damaged.
    """
    path, remedy = folder / FACTS, "delete it; the next `enroll` writes it again"
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return None
    return checked_facts(read_json(path, remedy), path, remedy)


def listed_parts(folder: Path) -> list[str]:
    """Return the names of the files of prints that `gallery.json` lists, to find out which ones are missing.

    The list is empty if `gallery.json` is missing or damaged, or an early version has written it.
    """
    with contextlib.suppress(UserError, OSError):
        names = read_json(folder / FACTS, "").get(PARTS)
        if isinstance(names, list):
            return [name for name in names if isinstance(name, str) and PART_NAME.fullmatch(name)]
    return []


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `gallery.json` with a list of all files of prints, unless it is up to date; the caller must hold the lock.

    The list is written after the files. If a kill comes in between, the list lacks a file, which harms nothing.
    """
    names = [path.name for path in part_files(folder)]
    with contextlib.suppress(UserError):
        if own_facts(folder) == facts and listed_parts(folder) == names:
            return
    write_json(folder / FACTS, {**facts, PARTS: names})


def _list_parts(folder: Path) -> None:
    """List the files of prints in `gallery.json`, after a change; the caller must hold the lock."""
    facts = read_facts(folder)
    if facts is not None:
        write_facts(folder, facts)


def _recognises(folder: Path) -> bool:
    """Return whether a folder is a gallery, or contains only what a killed first enrolment has left."""
    if part_files(folder):
        return True
    with contextlib.suppress(UserError):
        if own_facts(folder) is not None:
            return True
    return all(name == FACTS or LEFTOVERS.fullmatch(name) for name in os.listdir(folder))  # noqa: PTH208


KIND = FolderKind("a gallery folder", _recognises, ".*", whole=False)


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


def settled_parts(folder: Path, facts: dict[str, Any], known: dict[str, pa.RecordBatch]) -> dict[str, pa.RecordBatch]:
    """Open all files of prints in a consistent state, even if another process changes the gallery at the same time.

    The SHA-256 of the files is compared if they have at most `MOST_COMPARED` bytes together.

    Args:
        folder: gallery folder.
        facts: description of the gallery.
        known: contents of files that are open already, by name. Files with these names are not opened again, because
            the content of a file of prints never changes.

    Returns:
        Contents of each file by name, oldest first.

    Raises:
        UserError: if a file is damaged or belongs to another gallery.
    """
    while True:
        files = part_files(folder)
        if (folder / CHANGES).exists():
            with changing(folder):
                continue
        try:
            new = [path for path in files if path.name not in known]
            compare = sum(path.lstat().st_size for path in new) <= MOST_COMPARED
            opened = {path.name: read_part(path, compare) for path in new}
        except (UserError, FileNotFoundError):
            if files == part_files(folder):
                raise
            continue  # another process replaced a file; try again
        if files == part_files(folder) and not misses_parts(folder, files):
            break
    foreign = [folder / name for name, (_, stated) in opened.items() if stated != facts]
    if foreign and len(foreign) == len(files) and (folder / FACTS).exists():
        raise UserError(f"{folder / FACTS}: differs from its copy in the files of prints; delete it, the copy is used")
    require(not foreign, f"{foreign[0] if foreign else ''}: belongs to another gallery; move it out of this folder")
    return {path.name: known[path.name] if path.name in known else opened[path.name][0] for path in files}


def misses_parts(folder: Path, files: list[Path]) -> bool:
    """Return whether another process changes the gallery at the moment, so that a listed file is not among `files`.

    Raises:
        UserError: if a file of prints that `gallery.json` lists is missing.
    """
    listed = listed_parts(folder)
    missing = sorted(set(listed).difference(path.name for path in files))
    if not missing:
        return False
    if (folder / CHANGES).exists() or files != part_files(folder) or listed != listed_parts(folder):
        return True
    raise UserError(
        f"{folder / missing[0]}: missing, and its prints with it; restore it from a copy, or delete {FACTS} to use the "
        "gallery without it"
    )


@private_files()
def change_parts(folder: Path, new: Sequence[tuple[int, pa.RecordBatch]], gone: Sequence[str] = ()) -> None:
    """Add and delete files of prints in one atomic change; the caller must hold the lock.

    Unfinished files of killed enrolments are deleted. If files of prints are deleted, search indexes are deleted too,
    because they may contain the same prints.

    Args:
        folder: gallery folder.
        new: sequence number and contents of each file to add; at most one file if `gone` is empty.
        gone: names of the files to delete.
    """
    assert gone or len(new) <= 1, "several files can be added atomically only through changes.json"
    delete_drafts(folder, PART_DRAFTS)
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
            _list_parts(folder)
    except OSError as error:  # Arrow does not name the file
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(folder)) from error
    finally:
        if not (folder / CHANGES).exists():
            for name in drafts:
                (folder / name).unlink(missing_ok=True)


def delete_abandoned(folder: Path, pattern: str) -> None:
    """Delete unfinished files of `durable.draft_of` whose process on this machine has ended.

    Unlike `delete_drafts`, this spares the files that another process writes without holding the lock.
    """
    for path in folder.glob(pattern):
        if not is_being_written(path):
            path.unlink(missing_ok=True)


def delete_drafts(folder: Path, pattern: str = DRAFTS) -> None:
    """Delete unfinished files that killed commands left in a gallery folder; the caller must hold the lock."""
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


def _read_changes(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    """Read `changes.json`; return None if there is no unfinished change.

    Returns:
        Dictionary from the temporary to the final name of each file to add, and names of the files to delete.

    Raises:
        UserError: if the file is damaged, or names anything but files of prints in this folder.
    """
    path, remedy = folder / CHANGES, "restore the gallery from a copy"
    try:
        values = read_json(path, remedy)
    except FileNotFoundError:
        return None
    new, gone = Fields(values, path, remedy).part("new").values, values.get("gone")
    good = (
        isinstance(gone, list)
        and all(isinstance(name, str) and PART_NAME.fullmatch(name) for name in [*new.values(), *gone])
        and all(DRAFT_NAME.fullmatch(name) for name in new)
    )
    require(good, f"{path}: damaged (it must list files of prints in this folder); {remedy}")
    return new, list(gone or ())


def _complete(folder: Path) -> None:
    """Complete the change that is recorded in `changes.json`, if there is one; the caller must hold the lock.

    Raises:
        UserError: if `changes.json` is damaged, or a new file of the change is missing.
    """
    changes = _read_changes(folder)
    if changes is None:
        return
    new, gone = changes
    for draft, name in new.items():
        if not (folder / name).exists():
            there = (folder / draft).exists()
            require(there, f"{folder / CHANGES}: {draft} is missing; restore the gallery from a copy")
            (folder / draft).rename(folder / name)
    fsync_path(folder)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(INDEXES):
        path.unlink(missing_ok=True)
    delete_drafts(folder)
    fsync_path(folder)
    _list_parts(folder)
    (folder / CHANGES).unlink()
    fsync_path(folder)
