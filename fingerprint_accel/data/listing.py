"""List the prints to import with their fingers and impressions, before any image is decoded.

A listing is an Arrow table, so that a million prints fit into little memory.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.captures import join_name, split_name
from fingerprint_accel.data.csv_rows import rows_of_csv
from fingerprint_accel.data.layouts import (
    LAYOUTS,
    NAMES,
    LayoutError,
    Named,
    guess,
    names_layout,
)
from fingerprint_accel.data.listing_rows import Rows, is_container
from fingerprint_accel.data.templates import SUFFIXES as TEMPLATE_SUFFIXES
from fingerprint_accel.data.walking import CONTAINER, IMAGE, IMAGE_SUFFIXES, TEMPLATE, walk
from fingerprint_accel.errors import UserError, require

SAYS_NOTHING = Named("", 0)  # result for a file name that is ignored or contains no information


@dataclass
class Listing:
    """Prints to import, and files that are not imported.

    Attributes:
        root: folder that relative paths refer to.
        table: one row per print, with the columns path, record, cut, slap, position, person, finger_key, impression,
            ppi and minutiae (see `listing_rows.FIELDS`).
        rejected: pairs (path, reason) of the files and records that are not imported.
        templates: paths of the minutiae files, also called templates, that were found.
    """

    root: Path
    table: pa.Table
    rejected: list[tuple[str, str]]
    templates: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))


def list_files(
    source: Path, layout: str, *, names: str = "", key: Sequence[str] = (), raw_size: tuple[int, int] | None = None
) -> Listing:
    """List the prints in a folder or csv file, reading fingers and impressions from the file names.

    Args:
        source: folder of images, or the csv file.
        layout: file-name convention, one of `layouts.NAMES`.
        names: regular expression for file names; replaces `layout` if it is not empty.
        key: identifiers of the ANSI/NIST fields that identify the subject, for example `2.018`.
        raw_size: (height, width) of files of raw pixels, or None.

    Raises:
        UserError: if the source is missing or holds no image, if no file follows the layout, or if the layout is
            unknown.
    """
    if names:
        read: Callable[[str], Named] = names_layout(names)
    elif layout in LAYOUTS:
        read = LAYOUTS[layout]
    elif layout != "csv":
        raise UserError(f"--layout {layout or '(none)'}: unknown; there are {', '.join(NAMES)}, or give --names")
    if layout == "csv" and not names:
        return _list_csv(source, key)
    require(source.is_dir(), f"{source}: no such folder; give the folder that holds the images")
    rows, sample = _walked(source, read, key, raw_size)
    table = rows.table()
    if not len(table):
        raise _nothing(source, layout, sample, rows.rejected)
    table = _from_zero(table) if layout == "flx" and not names else table
    table = _ranked(table)
    return Listing(source, _without_duplicates(table, rows.rejected), rows.rejected, rows.templates())


def list_prints(
    folder: Path, raw_size: tuple[int, int] | None = None, names: str = "", key: Sequence[str] = ()
) -> Listing:
    """List all prints below a folder, without a layout (a convention of file names that states the fingers).

    The finger key (name of the finger) of an image is its path, unless `names` is given. Prints of container files
    (files with several images) get their keys from the records.

    Args:
        folder: folder of images.
        raw_size: (height, width) of files of raw pixels, or None.
        names: regular expression that reads fingers from file names; empty for none.
        key: numbers of the fields of ANSI/NIST transactions that identify the subject.

    Raises:
        UserError: if the folder is missing or holds no print.
    """
    require(folder.is_dir(), f"{folder}: no such folder; give the folder that holds the images")
    if names:
        return list_files(folder, "", names=names, key=key, raw_size=raw_size)
    rows, _ = _walked(folder, lambda path: SAYS_NOTHING, key, raw_size)
    table = rows.table()
    if not len(table):
        raise _nothing(folder, "", [], rows.rejected)
    return Listing(folder, table, rows.rejected, rows.templates())


def list_paths(paths: Sequence[Path], names: str = "", key: Sequence[str] = ()) -> Listing:
    """List the prints of given files, as `list_prints` does for a folder.

    A file that cannot be read is listed as an image, so that the error is raised when it is opened.

    Args:
        paths: image or container files. `path#record` selects one record of a container.
        names: regular expression that reads fingers from file names; empty for none.
        key: numbers of the fields of ANSI/NIST transactions that identify the subject.
    """
    read: Callable[[str], Named] = names_layout(names) if names else lambda path: SAYS_NOTHING
    rows = Rows(key)
    for path in map(str, paths):
        named = _read_name(read, split_name(path)[0])
        if is_container(Path(), path):
            rows.add_container(Path(), path, None if isinstance(named, LayoutError) else named)
        elif isinstance(named, LayoutError):
            rows.rejected.append((path, str(named)))
        else:
            rows.add(path, named)
    return Listing(Path(), rows.table(), rows.rejected)


def _walked(
    source: Path, read: Callable[[str], Named], key: Sequence[str], raw_size: tuple[int, int] | None
) -> tuple[Rows, list[str]]:
    """Collect the prints below a folder. Also return the paths of up to 50 images, as a sample for error messages.

    Args:
        source: the folder.
        read: function that reads finger and impression from a path.
        key: numbers of the fields of ANSI/NIST transactions that identify the subject.
        raw_size: (height, width) of files of raw pixels, or None.
    """
    rows, sample = Rows(key), list[str]()
    for met in walk(source, raw_size[0] * raw_size[1] if raw_size else 0):
        if met.reason:
            rows.rejected.append((met.path, met.reason))
        elif met.kind == TEMPLATE:
            rows.add_template(met.path)
        else:
            named = _read_name(read, met.path)
            if met.kind == CONTAINER:
                rows.add_container(source, met.path, None if isinstance(named, LayoutError) else named)
            elif isinstance(named, LayoutError):
                rows.rejected.append((met.path, str(named)))
            else:
                rows.add(met.path, named)
            if met.kind == IMAGE and len(sample) < 50:
                sample.append(met.path)
    return rows, sample


def _read_name(read: Callable[[str], Named], path: str) -> Named | LayoutError:
    try:
        return read(path)
    except LayoutError as error:
        return error


def _nothing(source: Path, layout: str, sample: list[str], rejected: list[tuple[str, str]]) -> UserError:
    """Return the error to raise for a source without any print to import.

    Args:
        source: folder of images.
        layout: file-name convention.
        sample: paths of some images of the source, from which matching layouts are guessed.
        rejected: path and reason of each rejected file.
    """
    if not sample:
        if rejected:
            return UserError(f"{source}: holds no print ({len(rejected)} files, {rejected[0][0]}: {rejected[0][1]})")
        return UserError(
            f"{source}: holds no image file; give a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    fitting = [name for name in guess(sample) if name != layout]
    remedy = f"try --layout {fitting[0]}" if fitting else "give --names, or list the files in a csv (`import --help`)"
    path, reason = next((path, reason) for path, reason in rejected if path in sample)
    return UserError(f"{source}: no file follows layout {layout} ({path}: {reason}); {remedy}")


def _list_csv(source: Path, key: Sequence[str]) -> Listing:
    rows = rows_of_csv(source, key)
    table = rows.table()
    if not len(table):
        raise UserError(f"{source}: no usable line" + (f" ({rows.rejected[0][1]})" if rows.rejected else ""))
    table = _without_duplicates(_ranked(table), rows.rejected)
    return Listing(source.parent, table, rows.rejected, _templates_beside(source.parent, table))


def _templates_beside(root: Path, table: pa.Table) -> pa.Array:
    """Find the minutiae files in the folders of the images of a listing, and return their paths.

    Args:
        root: folder that the paths of the listing are relative to.
        table: the listing.
    """
    folders = pc.unique(pc.replace_substring_regex(table["path"], r"(^|/)[^/]*$", r"\1")).to_pylist()
    found = []
    for folder in folders:
        try:
            names = os.listdir(root / folder)  # noqa: PTH208  (path objects are slow for a million names)
        except OSError:  # the images in this folder are rejected later with this error
            continue
        found += [folder + name for name in names if posixpath.splitext(name)[1].lower() in TEMPLATE_SUFFIXES]
    return pa.array(found, pa.string())


def _with_impressions(table: pa.Table, impressions: np.ndarray) -> pa.Table:
    return table.set_column(table.schema.get_field_index("impression"), "impression", pa.array(impressions, pa.int64()))


def finger_codes(table: pa.Table) -> np.ndarray:
    """Return an integer label of the finger of each row of a listing, as an (N,) int64 array for N rows.

    Rows with the same finger key have the same label.
    """
    return pc.dictionary_encode(table["finger_key"]).combine_chunks().indices.to_numpy().astype(np.int64)


def _from_zero(table: pa.Table) -> pa.Table:
    """Subtract 1 from all impression numbers of a listing if the lowest is 1 or more.

    The package flx numbers impressions from 0, and its file names can be imported.
    """
    impressions = table["impression"].to_numpy()
    stated = impressions >= 0
    lowest = int(impressions[stated].min()) if stated.any() else 0
    return _with_impressions(table, np.where(stated, impressions - min(1, lowest), impressions))


def _without_duplicates(table: pa.Table, rejected: list[tuple[str, str]]) -> pa.Table:
    """Return a listing without duplicates. Of several prints with the same finger and impression, the first is kept.

    Args:
        table: the listing.
        rejected: list to which the name of each removed print and the reason are appended.
    """
    numbers = np.unique(table["impression"].to_numpy(), return_inverse=True)[1]  # ranks, which fit into 32 bits
    claim = finger_codes(table) << 32 | numbers.astype(np.int64)
    _, first, whose = np.unique(claim, return_index=True, return_inverse=True)
    if len(first) == len(table):
        return table
    kept = np.zeros(len(table), bool)
    kept[first] = True
    for row in np.flatnonzero(~kept).tolist():
        rejected.append(
            (name_of(table, row), f"same finger and impression: as {name_of(table, int(first[whose[row]]))}")
        )
    return table.filter(pa.array(kept))


def name_of(table: pa.Table, row: int) -> str:
    """Return the name of the print in a row of a listing: path, record and finger, see `captures.join_name`."""
    return join_name(*(table[column][row].as_py() for column in ("path", "record", "cut")))


def _ranked(table: pa.Table) -> pa.Table:
    """Return a listing in which all impressions have an impression number.

    Impressions without a number are numbered in order of path, starting after the highest stated number of their
    finger.
    """
    impressions = table["impression"].to_numpy().copy()
    open_rows = impressions < 0
    if open_rows.any():
        codes = finger_codes(table)
        order = np.argsort(codes, kind="stable")  # the listing is sorted by path
        opened = open_rows[order].astype(np.int64)
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        before = np.cumsum(opened) - opened
        rank = before - np.repeat(before[starts], sizes)
        highest = np.repeat(np.maximum.reduceat(impressions[order], starts), sizes)  # -1 where none is stated
        numbers = np.empty(len(order), np.int64)
        numbers[order] = rank + highest + 1
        impressions[open_rows] = numbers[open_rows]
    return _with_impressions(table, impressions)
