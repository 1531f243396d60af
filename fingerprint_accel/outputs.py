"""What may be written where: one decision for every command that writes a file or a folder. A leaf module.

A command replaces only what it recognises as written by the same kind of command, and never what it reads. Whoever
writes a folder holds its lock.
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

MARK = "fingerprint_accel"  # in every file that a command writes by itself, beside its kind
PICTURE = "picture"  # kind of a PNG file
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that have none
DECORATION = len("..01234567.partial")  # bytes that names of temporary folders have more than the folder's
RECORDS = "records"  # folder in one that is being made: which shards are whole, and what they hold
OF_THE_SYSTEM = re.compile(r"\.DS_Store|\.nfs[0-9a-f]+")  # files that nobody wrote on purpose


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write.

    Attributes:
        name: what it is called in messages, with its article.
        recognises: whether a folder is one.
        entries: regular expression of the names of all files and folders that commands write into one.
        whole: it is replaced as a whole, so that it may hold nothing else; otherwise files are written into it.
    """

    name: str
    recognises: Callable[[Path], bool]
    entries: str
    whole: bool = True


def json_with(file: str, *keys: str) -> Callable[[Path], bool]:
    """Recognises folders by a JSON file in them that holds these keys."""

    def recognises(folder: Path) -> bool:
        try:
            values = json.loads((folder / file).read_text())
        except (OSError, ValueError):
            return False
        return isinstance(values, dict) and all(key in values for key in keys)

    return recognises


def check_folder(out: Path | str, kind: FolderKind, overwrite: bool = True, inputs: Iterable[Path | str] = ()) -> None:
    """Checks that a command may make the folder `out`, or replace what is there.

    Args:
        out: the folder.
        kind: what the command writes.
        overwrite: replace a folder of the same kind; False refuses all that exists and is not empty.
        inputs: files and folders that the command reads.

    Raises:
        UserError: `out` is something else than a folder of this kind, the current folder, inside an input or around
            one, or has a name that the file system refuses.
    """
    out = Path(out)
    _check_name(out)
    for source in map(Path, inputs):
        if _inside(out, source):
            raise UserError(f"{out}: lies in the source {source}; choose a folder outside of it")
        if kind.whole and _inside(source, out):
            raise UserError(f"{out}: holds the source {source}; choose another folder")
    if kind.whole:
        require(not out.is_symlink(), f"{out}: is a link; give the folder that it leads to, or another one")
    if not out.exists():
        return
    require(out.is_dir(), f"{out}: is a file; give the name of a new folder")
    if kind.whole and _inside(Path.cwd(), out):
        raise UserError(f"{out}: is the current folder, or holds it; give the name of a new folder")
    names = sorted(os.listdir(out))  # noqa: PTH208  (names alone)
    ours = [name for name in names if re.fullmatch(kind.entries, name)]
    if kind.recognises(out):
        foreign = [name for name in names if name not in {*ours, RECORDS} and not OF_THE_SYSTEM.fullmatch(name)]
        if kind.whole and foreign:
            raise UserError(
                f"{out}: holds {foreign[0]}, which is no part of {kind.name} and would be deleted; move it away, or "
                "choose another folder"
            )
        require(overwrite, f"{out}: exists already; choose another folder, or add --overwrite")
    elif taken := names if kind.whole else ours:
        raise UserError(f"{out}: exists already and is not {kind.name} (it holds {taken[0]}); choose another folder")


def check_file(out: Path | str, kind: str, inputs: Iterable[Path | str] = ()) -> None:
    """Checks that a command may make the file `out`, or replace what is there.

    Args:
        out: the file.
        kind: the mark that files of this command hold, see `mark`.
        inputs: files and folders that the command reads.

    Raises:
        UserError: `out` is a folder, a file that this command has not written, or an input.
    """
    out = Path(out)
    _check_name(out)
    for given in map(Path, inputs):
        if given.exists() and out.exists() and os.path.samefile(given, out):  # noqa: PTH121
            raise UserError(f"{out}: is also what this command reads; give the name of a new file")
    require(not out.is_dir(), f"{out}: is a folder; give the name of a file")
    if out.exists() and not _holds(out, mark(kind).encode()):
        raise UserError(f"{out}: exists already and was not written by this command; choose another name, or delete it")


def check_picture(out: Path | str, inputs: Iterable[Path | str] = ()) -> None:
    """`check_file` for a PNG file.

    Raises:
        UserError: as `check_file`, or another suffix.
    """
    require(Path(out).suffix.lower() == ".png", f"{out}: give a file that ends in .png")
    check_file(out, PICTURE, inputs)


def mark(kind: str) -> str:
    """What a file that a command has written holds somewhere, so that the command may replace it."""
    return f"{MARK} {kind}"


def put_in_place(staged: Path, out: Path, kind: FolderKind) -> None:
    """Puts a complete folder in the place of `out`, and then deletes what was there. A kill leaves one of the two.

    Raises:
        UserError: what is there is not of this kind any more.
    """
    check_folder(out, kind)  # hours may have passed since the first look
    replaced = out.with_name(f".{out.name}.old.tmp")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    staged.rename(out)
    fsync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock of a folder; a process that is killed releases it.

    Args:
        path: the file to lock, which is there while the lock is held.
        refusal: what to say where another process holds it.
        patience: seconds to wait for it.

    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while True:
        file = path.open("ab")  # network file systems lock only what can be written to
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # who held it before has deleted the file: then somebody else may have locked a new one meanwhile
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
    """Raises UserError where the file system would refuse the name, or that of a temporary folder beside it."""
    parent = next((folder for folder in out.absolute().parents if folder.is_dir()), Path("/"))
    try:
        longest = os.pathconf(parent, "PC_NAME_MAX")
    except OSError:
        longest = 255
    length = len(os.fsencode(out.name)) + DECORATION
    if length > longest:
        raise UserError(
            f"{out.name[:30]}...: a name of {length - DECORATION} bytes is too long here; give one of at most "
            f"{longest - DECORATION}"
        )
    require("\0" not in str(out), f"{str(out)!r}: a name cannot hold a zero byte")


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder`, or lies below it, by whatever names."""
    if not folder.exists():
        return False
    path = path.resolve()
    return any(os.path.samefile(place, folder) for place in (path, *path.parents) if place.exists())  # noqa: PTH121


def _holds(file: Path, words: bytes) -> bool:
    """Whether a file holds some bytes; an empty one is nobody's, and counts as if it did."""
    if not file.stat().st_size:
        return True
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(words) >= 0
