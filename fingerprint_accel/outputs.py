"""Check where a command may write. All commands that write a file or a folder use these functions. A leaf module.

A command replaces only files and folders that the same kind of command has written, and never one of its inputs. A
command that writes a folder holds the lock of that folder.
"""

from __future__ import annotations

import contextlib
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

from fingerprint_accel.durable import fsync_path
from fingerprint_accel.errors import UserError, require

MARK = "fingerprint_accel"  # every single file that a command writes contains this word and its kind
PICTURE = "picture"  # kind of a PNG file
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks
DECORATION = len("..01234567.partial")  # bytes that the name of a temporary folder adds to that of the folder
RECORDS = "records"  # subfolder of an unfinished folder: one record for each finished shard
OF_THE_SYSTEM = re.compile(r"\.DS_Store|\.nfs[0-9a-f]+")  # files that the operating system creates


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write.

    Attributes:
        name: Name in messages, with an article.
        recognises: Function that returns whether a folder is of this kind.
        entries: Regular expression that matches the names of all entries that commands write into such a folder.
        whole: Whether the folder is replaced as a whole and may hold nothing else. If not, files are written into it.
    """

    name: str
    recognises: Callable[[Path], bool]
    entries: str
    whole: bool = True


def json_with(file: str, *keys: str) -> Callable[[Path], bool]:
    """Return a function that recognises folders by a JSON file with these keys."""

    def recognises(folder: Path) -> bool:
        try:
            values = json.loads((folder / file).read_text())
        except (OSError, ValueError):
            return False
        return isinstance(values, dict) and all(key in values for key in keys)

    return recognises


def check_folder(out: Path | str, kind: FolderKind, overwrite: bool = True, inputs: Iterable[Path | str] = ()) -> None:
    """Check that a command may create or replace the folder `out`.

    Args:
        out: The folder.
        kind: Kind of folder that the command writes.
        overwrite: Allow to replace a folder of the same kind. If False, every folder that is not empty is refused.
        inputs: Files and folders that the command reads.

    Raises:
        UserError: `out` exists and is not a folder of this kind, is the current folder, lies inside an input, contains
            an input, or has a name that the file system refuses.
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
        out: The file.
        kind: Kind of file that the command writes, see `mark`.
        inputs: Files and folders that the command reads.

    Raises:
        UserError: `out` is a folder, an input, or a file that another command has written.
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
        UserError: As in `check_file`, or the suffix is not .png.
    """
    require(Path(out).suffix.lower() == ".png", f"{out}: give a file that ends in .png")
    check_file(out, PICTURE, inputs)


def mark(kind: str) -> str:
    """Return the text that marks files of this kind. A command replaces only files that contain its mark."""
    return f"{MARK} {kind}"


def put_in_place(staged: Path, out: Path, kind: FolderKind) -> None:
    """Move a complete folder to `out` and delete the folder that it replaces. A kill leaves one of the two intact.

    Raises:
        UserError: The folder at `out` is not of this kind.
    """
    check_folder(out, kind)  # hours may have passed since the first check
    replaced = out.with_name(f".{out.name}.old.tmp")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    staged.rename(out)
    fsync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder. A killed process releases the lock.

    Args:
        path: File to lock. It exists while the lock is held.
        refusal: Message of the error if another process holds the lock.
        patience: Seconds to wait for the lock.

    Raises:
        UserError: Another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while True:
        file = path.open("ab")  # network file systems only lock files that are open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the previous holder has deleted the file, and another process may hold the lock of a new one
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
            path.unlink(missing_ok=True)


def _check_name(out: Path) -> None:
    """Raise `UserError` if the file system would refuse this name, or that of a temporary folder beside it."""
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
    """Return whether a file contains these bytes. An empty file counts as if it did."""
    if not file.stat().st_size:
        return True
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(words) >= 0
