"""Check whether a command may write its output file or output folder, and lock output folders.

A command replaces only files and folders of the kind that the command itself writes. It never replaces its inputs.
While a command writes a folder, it holds a lock, so that no other command writes the same folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fingerprint_accel.durable import fsync_path, make_folder
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.privacy import private_files
from fingerprint_accel.untrusted import DAMAGED, MOST_JSON, read_bytes

MARK = "fingerprint_accel"  # single files that commands write contain this word and the kind of the file
PICTURE = "picture"  # kind of a PNG file
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks
# Number of characters that the name of a temporary folder adds to the name of the output.
DECORATION = len("..01234567.partial")
RECORDS = "records"  # subfolder of an unfinished folder: one record for each finished shard
OF_THE_SYSTEM = re.compile(r"\.DS_Store|\.nfs[0-9a-f]+")  # files that the operating system creates


@dataclass(frozen=True)
class FolderKind:
    """Kind of output folder, for example a dataset or a gallery.

    Attributes:
        name: Name of the kind for messages, with an article.
        recognises: Function that returns whether a given folder is of this kind.
        entries: Regular expression that matches the names of all files and folders that commands write into it.
        whole: True if a command replaces the folder as a whole, so that it must not contain other files. False if a
            command adds files to a folder that may contain others.
    """

    name: str
    recognises: Callable[[Path], bool]
    entries: str
    whole: bool = True


def json_with(file: str, *keys: str) -> Callable[[Path], bool]:
    """Return a function that checks whether a folder contains a certain JSON file.

    Args:
        file: Name of the JSON file.
        `*keys`: Keys that the JSON object in the file must have.
    """

    def recognises(folder: Path) -> bool:
        try:
            values = json.loads(read_bytes(folder / file, MOST_JSON))
        except (OSError, *DAMAGED):
            return False
        return isinstance(values, dict) and all(key in values for key in keys)

    return recognises


def check_folder(out: Path | str, kind: FolderKind, overwrite: bool = True, inputs: Iterable[Path | str] = ()) -> None:
    """Check that a command may create or replace the folder `out`.

    Args:
        out: The output folder.
        kind: Kind of folder that the command writes.
        overwrite: Whether a folder of the same kind may be replaced.
        inputs: Files and folders that the command reads.

    Raises:
        UserError: If `out` exists and may not be replaced, is the current folder, lies inside an input, contains an
            input, or has a name that the file system does not allow. An empty folder may always be replaced.
    """
    out = Path(out)
    _check_name(out)
    for source in map(Path, inputs):
        if _inside(out, source):
            raise UserError(f"{out}: lies in the source {source}; choose a folder outside the source")
        if kind.whole and _inside(source, out):
            raise UserError(f"{out}: contains the source {source}; choose another folder")
    if kind.whole:
        require(not out.is_symlink(), f"{out}: is a link; give the folder that it points to, or another folder")
    if not out.exists():
        return
    require(out.is_dir(), f"{out}: is a file; give the name of a new folder")
    if kind.whole and _inside(Path.cwd(), out):
        raise UserError(f"{out}: is or contains the current folder; give the name of a new folder")
    names = sorted(os.listdir(out))  # noqa: PTH208  (only names are needed)
    ours = [name for name in names if re.fullmatch(kind.entries, name)]
    if kind.recognises(out):
        foreign = [name for name in names if name not in {*ours, RECORDS} and not OF_THE_SYSTEM.fullmatch(name)]
        if kind.whole and foreign:
            raise UserError(
                f"{out}: contains {foreign[0]}, which is not part of {kind.name} and would be deleted; move it, or "
                "choose another folder"
            )
        require(overwrite, f"{out}: exists already; choose another folder, or add --overwrite")
    elif taken := names if kind.whole else ours:
        raise UserError(f"{out}: exists already and is not {kind.name} (it contains {taken[0]}); choose another folder")


def check_file(out: Path | str, kind: str, inputs: Iterable[Path | str] = ()) -> None:
    """Check that a command may create or replace the file `out`.

    Args:
        out: The output file.
        kind: Kind of file that the command writes, see `mark`.
        inputs: Files and folders that the command reads.

    Raises:
        UserError: If `out` is a folder, an input, or a file without the mark of this kind.
    """
    out = Path(out)
    _check_name(out)
    for given in map(Path, inputs):
        if given.exists() and out.exists() and os.path.samefile(given, out):  # noqa: PTH121
            raise UserError(f"{out}: is also an input of this command; give the name of a new file")
    require(not out.is_dir(), f"{out}: is a folder; give the name of a file")
    if out.exists() and not _holds(out, mark(kind).encode()):
        raise UserError(f"{out}: exists already and was not written by this command; choose another name, or delete it")


def check_picture(out: Path | str, inputs: Iterable[Path | str] = ()) -> None:
    """Check that a command may create or replace the PNG file `out`.

    Raises:
        UserError: For the reasons given in `check_file`, or if the suffix is not .png.
    """
    require(Path(out).suffix.lower() == ".png", f"{out}: give a file that ends in .png")
    check_file(out, PICTURE, inputs)


def mark(kind: str) -> str:
    """Return the text that marks files of a given kind. Commands replace only files that contain this text."""
    return f"{MARK} {kind}"


def put_in_place(staged: Path, out: Path, kind: FolderKind) -> None:
    """Move a complete folder to `out`, and delete the previous folder at `out`.

    If the process is killed, the previous or the new folder is complete at `out`. On file systems that cannot exchange
    two folders (NFS), `out` is missing for a moment; `recover` brings the previous folder back.

    Args:
        staged: Complete folder on the same file system, which is flushed to the disk.
        out: Output folder.
        kind: Kind of both folders.

    Raises:
        UserError: If the previous folder at `out` is not of this kind.
        OSError: If the folder cannot be moved.
    """
    check_folder(out, kind)  # hours may have passed since the first check
    replaced = _replaced(out)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists() and _exchange(staged, out):
        staged.rename(replaced)
    else:
        if out.exists():
            out.rename(replaced)
        staged.rename(out)
    fsync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(out: Path) -> None:
    """Bring back the folder `out`, or delete its remains, if a call of `put_in_place` was interrupted.

    Only the process that holds the lock of `out` may call this function.
    """
    replaced = _replaced(out)
    if replaced.exists() and not out.exists():
        replaced.rename(out)
        fsync_path(out.parent)
    elif replaced.exists():
        shutil.rmtree(replaced, ignore_errors=True)


def interrupted_replacement(out: Path) -> str:
    """Return what to do if `out` is missing because a call of `put_in_place` was interrupted, else ""."""
    if out.exists() or not _replaced(out).exists():
        return ""
    return f"a command was interrupted while it replaced the folder; run it again, or rename {_replaced(out)} to {out}"


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.old.tmp")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step. Return False if the system or file system cannot do it."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Python has no function for it
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock during a `with` statement. The lock is also released if the process is killed.

    On file systems without locks, nothing is locked.

    Args:
        path: File to lock. The function creates the file, and deletes it when the lock is released.
        refusal: Error message if another process holds the lock.
        patience: Number of seconds to wait for the lock.

    Raises:
        UserError: If another process holds the lock.
    """
    make_folder(path.parent)
    deadline = time.monotonic() + patience
    while True:
        with private_files():
            file = path.open("ab")  # network file systems only lock files that are open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous process may have deleted this file, and another process may have locked a new file.
            ours = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except OSError as error:
            ours = error.errno in NO_LOCKS
            if not ours and not isinstance(error, BlockingIOError):
                file.close()
                raise
        if ours:
            break
        file.close()
        if time.monotonic() >= deadline:
            raise UserError(refusal)
        time.sleep(0.05)
    with file:
        try:
            yield
        finally:
            # If the folder was moved, another process may have locked a new file in its place.
            with contextlib.suppress(OSError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    path.unlink()


def _check_name(out: Path) -> None:
    """Raise `UserError` if the file system does not allow the name of an output or of its temporary folder."""
    parent = next((folder for folder in out.absolute().parents if folder.is_dir()), Path("/"))
    try:
        longest = os.pathconf(parent, "PC_NAME_MAX")
    except OSError:
        longest = 255
    length = len(os.fsencode(out.name)) + DECORATION
    if length > longest:
        raise UserError(
            f"{out.name[:30]}...: the name has {length - DECORATION} bytes, which is too long; use at most "
            f"{longest - DECORATION} bytes"
        )
    require("\0" not in str(out), f"{str(out)!r}: a name cannot contain a zero byte")


def _inside(path: Path, folder: Path) -> bool:
    """Return whether `path` is `folder` or lies below it. Links are followed."""
    if not folder.exists():
        return False
    path = path.resolve()
    return any(os.path.samefile(place, folder) for place in (path, *path.parents) if place.exists())  # noqa: PTH121


def _holds(file: Path, words: bytes) -> bool:
    """Return whether a file is empty or contains the bytes `words`."""
    if not file.stat().st_size:
        return True
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(words) >= 0
