"""List all files below a folder with their kind, or with the reason why they are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fingerprint_accel.data.captures import HEAD, container_of
from fingerprint_accel.data.decoding import IMAGE_STARTS
from fingerprint_accel.data.minutiae_record import MAGIC as MINUTIAE_MAGIC
from fingerprint_accel.data.templates import SUFFIXES as TEMPLATE_SUFFIXES
from fingerprint_accel.data.templates import UNSIGNED_SUFFIXES, WRAPPER
from fingerprint_accel.untrusted import UnreadableError, open_regular

# Files with these suffixes are listed as images without being opened. Files with a wrong suffix are found when they are
# decoded.
IMAGE_SUFFIXES = frozenset((
    ".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc",
    ".gif", ".pgm", ".ppm", ".pnm", ".webp", ".wsq",
))  # fmt: skip
# Folders that network storage, desktops and cameras create among images.
SYSTEM_FOLDERS = frozenset(
    ["@eadir", "#recycle", "@recycle", ".@__thumb", "$recycle.bin", "__macosx", "lost+found", ".thumbnails", ".cache"]
)
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"))
DEEPEST = 100  # largest number of folders within folders
SYSTEM = "a thumbnail or system file"
NO_IMAGE, SEEN_LINK, SPECIAL = "not an image", "a link to what", "is not a regular file"
IMAGE, CONTAINER, TEMPLATE = "image", "container", "template"


@dataclass(frozen=True)
class Met:
    """One file below a folder.

    Attributes:
        path: path relative to the folder.
        kind: IMAGE, CONTAINER (a file with several images) or TEMPLATE (a minutiae file); empty if it is skipped.
        reason: reason why the file is skipped; empty if it is not skipped.
    """

    path: str
    kind: str = ""
    reason: str = ""


def walk(folder: Path, raw_bytes: int = 0) -> Iterator[Met]:
    """Iterate over all files below a folder in sorted order.

    Symbolic links are followed if the target lies outside the folder. Each target is read only once.

    Args:
        folder: folder to search.
        raw_bytes: size of files of raw pixels, bytes. Files of this size are listed as images. 0 if there are no files
            of raw pixels.
    """
    yield from _walk(folder, "", os.path.realpath(folder), set(), False, raw_bytes)


def is_nothing_to_read(reason: str) -> bool:
    """Return whether a file was skipped because it is not a print, or because it is read under another path.

    Args:
        reason: reason why the file was skipped, `Met.reason`.
    """
    return reason.startswith((SYSTEM, NO_IMAGE, SEEN_LINK, SPECIAL))


def _walk(folder: Path, prefix: str, root: str, seen: set[str], system: bool, raw_bytes: int) -> Iterator[Met]:
    if prefix.count("/") > DEEPEST:
        yield Met(_shown(prefix), reason=f"a folder below {DEEPEST} others")
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Met(_shown(prefix), reason=f"folder cannot be read: {error.strerror}")
        return
    for at, entry in enumerate(found):
        path = prefix + entry.name
        if entry.is_symlink() and (reason := _why_not_followed(entry, root, seen)):
            yield Met(_shown(path), reason=reason)
        elif entry.is_dir():
            inside = system or entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS
            yield from _walk(folder / entry.name, path + "/", root, seen, inside, raw_bytes)
        elif system or entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
            yield Met(_shown(path), reason=SYSTEM)
        elif _shown(path) != path:
            yield Met(_shown(path), reason="its name is not UTF-8: rename it, for example with convmv")
        elif not entry.is_file():  # opening a named pipe would block forever
            yield Met(path, reason=SPECIAL)
        else:
            yield _kind(found, at, path, raw_bytes)


def _why_not_followed(entry: os.DirEntry[str], root: str, seen: set[str]) -> str:
    """Return the reason why a link is not followed; empty if it leads to a new target outside the folder.

    Args:
        entry: the link.
        root: real path of the folder that is searched.
        seen: targets of links that were followed; a new target is added.
    """
    target = os.path.realpath(entry.path)
    if not os.path.exists(target):  # noqa: PTH110  (path objects are slow for a million names)
        return "a broken link"
    if target == root or target.startswith(root + os.sep):
        return f"{SEEN_LINK} is read anyway"
    if root.startswith(target + os.sep):
        return "a link to a folder that holds this one"
    if target in seen:
        return f"{SEEN_LINK} was read already"
    seen.add(target)
    return ""


def _has_image(found: list[os.DirEntry[str]], at: int) -> bool:
    """Return whether a folder contains an image with the same name as entry `at`, except for the suffix.

    Args:
        found: entries of the folder, sorted by name.
        at: index of the entry.
    """
    start = os.path.splitext(found[at].name)[0] + "."  # noqa: PTH122
    for step in (-1, 1):  # names with the same start are neighbours in the sorted folder
        other = at + step
        while 0 <= other < len(found) and found[other].name.startswith(start):
            if found[other].name[len(start) - 1 :].lower() in IMAGE_SUFFIXES:
                return True
            other += step
    return False


def _kind(found: list[os.DirEntry[str]], at: int, path: str, raw_bytes: int) -> Met:
    """Determine the kind of one file, and return it with its path.

    Args:
        found: the entries of the folder that contains the file, sorted by name.
        at: index of the file in `found`.
        path: path of the file relative to the folder that is searched.
        raw_bytes: size of files of raw pixels, bytes; 0 if there are no files of raw pixels.
    """
    entry = found[at]
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    if suffix in IMAGE_SUFFIXES:
        return Met(path, IMAGE)
    # The suffix .iso is also used for image records. A file without an image beside it may be one, so it is opened.
    if suffix in TEMPLATE_SUFFIXES and (suffix in UNSIGNED_SUFFIXES or _has_image(found, at)):
        return Met(path, TEMPLATE)
    try:
        with open_regular(entry.path) as file:
            head = file.read(HEAD)
        if head and raw_bytes and entry.stat().st_size == raw_bytes:
            return Met(path, IMAGE)
    except OSError as error:
        return Met(path, reason=f"cannot be read: {error.strerror}")
    except UnreadableError as error:
        return Met(path, reason=str(error))
    if container_of(head) is not None:
        return Met(path, CONTAINER)
    if head.startswith(IMAGE_STARTS):
        return Met(path, IMAGE)
    if suffix in TEMPLATE_SUFFIXES or MINUTIAE_MAGIC in head[:WRAPPER]:
        return Met(path, TEMPLATE)
    return Met(path, reason=f"{NO_IMAGE} ({suffix or 'no suffix'})" if head else "empty file: copy it again")


def _shown(path: str) -> str:
    """Convert a path to printable text: bytes that are not UTF-8 become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
