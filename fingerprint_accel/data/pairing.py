"""Assign minutiae files to the prints of a listing (the table of prints to import)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.listing import Listing
from fingerprint_accel.data.print_file import Reading
from fingerprint_accel.data.templates import SUFFIXES, xyt_kind
from fingerprint_accel.data.walking import TEMPLATE, walk

UNUSED = "a minutiae file that no image belongs to: give it the name of its image"
OF_REJECTED = "minutiae of an image that is rejected"
SECOND = "the image has another minutiae file: {}"


class Pairing:
    """Assignment of minutiae files to the prints of a listing.

    If a csv names the minutiae file of a print, the named file is used. Otherwise the minutiae file must have the same
    relative path as the image, except for the suffix, below `folder` or beside the image. Upper and lower case are not
    distinguished. If `folder` has no file with this path, a file directly in `folder` with the name of the image is
    used, unless a second image has the same name. A file that fits several prints is not used.

    Args:
        listing: prints to import.
        folder: folder of minutiae files; None if they lie beside the images.

    Attributes:
        unused: pairs (path, reason) of the minutiae files that belong to no image.
    """

    def __init__(self, listing: Listing, folder: Path | None) -> None:
        base = folder or listing.root
        self._paths, named = (listing.table[name].combine_chunks() for name in ("path", "minutiae"))
        is_named = np.asarray(pc.fill_null(pc.not_equal(named, ""), False))
        found = listing.templates
        if folder is not None:
            found = pa.array((met.path for met in walk(folder) if met.kind == TEMPLATE), pa.string())
        # Paths are made absolute, because a csv may state one folder in several ways.
        met = pc.unique(_absolute(_by_preference(found), base))
        stated = _absolute(named.filter(pa.array(is_named)), listing.root)
        given = pc.unique(stated)
        self._files = pa.concat_arrays([met, given.filter(pc.invert(pc.is_in(given, met)))])
        keys = _key(_relative(self._files, base))
        images = _key(_relative(_absolute(self._paths, listing.root), listing.root))
        self._file = _index_in(images, keys)  # row in `_files` of each print; -1 for none
        self._file[is_named] = _index_in(stated, self._files)
        self._prints = np.bincount(self._file[self._file >= 0], minlength=len(self._files) + 1)[self._file]
        used = self._files.take(pa.array(np.unique(self._file[self._file >= 0])))
        self._xyt = used.filter(pc.match_like(pc.utf8_lower(used), "%.xyt")).to_pylist()
        unused = ~np.isin(np.arange(len(met)), self._file)
        rejected = _key(pa.array([path for path, _ in listing.rejected], pa.string()))
        if folder is not None:
            self._take_stems(images, keys, rejected, self._file < 0)
            unused &= ~np.isin(np.arange(len(met)), self._file)
        # A minutiae file beside a rejected image belongs to that image.
        gone = np.asarray(pc.is_in(keys[: len(met)], rejected))
        first = _index_in(keys[: len(met)], keys)  # first of the files that differ only in the suffix
        self.unused = []
        for number in np.flatnonzero(unused).tolist():
            other = int(first[number])
            is_second = other != number and bool((self._file == other).any())
            reason = SECOND.format(self._files[other]) if is_second else OF_REJECTED if gone[number] else UNUSED
            self.unused.append((met[number].as_py(), reason))

    def _take_stems(self, images: pa.Array, keys: pa.Array, rejected: pa.Array, without: np.ndarray) -> None:
        """Assign minutiae files that lie directly in the folder to prints without a file, by the name of the image.

        Args:
            images: path of the image of each print, without suffix.
            keys: path of each minutiae file, without suffix.
            rejected: paths of rejected images, without suffix.
            without: (N,) bool, True for prints without a minutiae file.
        """
        stems = _name(images)
        # A minutiae file with the full path of an image belongs only to that image.
        found = np.where(np.asarray(pc.is_in(stems, images)), -1, _index_in(stems, keys))
        take = without & (found >= 0)
        self._file[take] = found[take]
        counts = _counts(pa.concat_arrays([stems, _name(rejected)]))[: len(stems)]  # includes rejected images
        self._prints[take] = counts[take]

    def with_xyt_kind(self, reading: Reading) -> Reading:
        """Return a copy of `reading` with the attribute `xyt_kind`, the convention of the `.xyt` files, filled in.

        The convention is detected from all files together. If `reading` states a convention, it is kept.
        """
        if reading.xyt_kind or not self._xyt:
            return reading
        return dataclasses.replace(reading, xyt_kind=xyt_kind(map(Path, self._xyt)))

    def notes(self, reading: Reading) -> list[tuple[str, str]]:
        """Return a list with one note (path, text) on the convention of `.xyt` files; empty without such files."""
        if not self._xyt:
            return []
        kind = "mindtct -m1" if reading.xyt_kind == "m1" else "mindtct"
        return [(".", f"{len(self._xyt)} .xyt files are read as {kind} writes them; to change this, give --xyt-kind")]

    def of(self, row: int) -> tuple[Path | None, str]:
        """Return the minutiae file of a print, and the reason if the file must not be used.

        Args:
            row: row index of the print in the listing.

        Returns:
            Path of the file (None if the print has none), and the reason (empty if the file can be used).
        """
        number = int(self._file[row])
        if number < 0:
            return None, ""
        path, prints = Path(self._files[number].as_py()), self._prints[row]
        if prints == 1:
            return path, ""
        return path, f"minutiae: fits {prints} prints, one of them {self._paths[row]}, and is therefore not used"


def _by_preference(paths: pa.Array) -> pa.Array:
    """Sort paths by name without suffix, and paths with the same name by the order of suffixes in `SUFFIXES`."""
    suffixes = pc.utf8_lower(pc.replace_substring_regex(paths, r"^.*(\.[^./]+)$", r"\1"))
    columns = {"stem": _key(paths), "rank": pc.index_in(suffixes, pa.array(SUFFIXES))}
    return paths.take(pc.sort_indices(pa.table(columns), [("stem", "ascending"), ("rank", "ascending")]))


def _absolute(paths: pa.Array, root: Path) -> pa.Array:
    """Convert paths to absolute paths without `..`. Relative paths are relative to `root`."""
    here = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118
    dotted = pc.match_substring_regex(paths, r"//|(^|/)\.\.?(/|$)")
    if pc.any(dotted).as_py():  # such paths come only from a csv
        plain = [os.path.normpath(os.path.join(here, path)) for path in paths.filter(dotted).to_pylist()]  # noqa: PTH118
        paths = pc.replace_with_mask(paths, dotted, pa.array(plain, pa.string()))
    return pc.if_else(pc.starts_with(paths, "/"), paths, pc.binary_join_element_wise(here, paths, ""))


def _relative(absolute: pa.Array, base: Path) -> pa.Array:
    """Convert absolute paths to paths relative to `base`. Paths outside `base` stay absolute."""
    there = os.path.join(os.path.abspath(base), "")  # noqa: PTH100, PTH118
    return pc.if_else(pc.starts_with(absolute, there), pc.utf8_slice_codeunits(absolute, len(there)), absolute)


def _key(paths: pa.Array) -> pa.Array:
    """Normalise paths for comparison: remove the suffix, convert to lower case and to the Unicode form NFC."""
    return pc.utf8_lower(pc.utf8_normalize(pc.replace_substring_regex(paths, r"([^/])\.[^./]+$", r"\1"), form="NFC"))


def _name(paths: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(paths, r"^.*/", "")


def _counts(values: pa.Array) -> np.ndarray:
    """Return an (N,) int64 array: for each of N entries, the number of entries with the same value."""
    codes = values.dictionary_encode().indices.to_numpy()
    return np.bincount(codes)[codes]


def _index_in(values: pa.Array, others: pa.Array) -> np.ndarray:
    """Return an (N,) int64 array with the index of each of N values in `others` (first occurrence); -1 if missing."""
    return pc.fill_null(pc.index_in(values, others), -1).to_numpy().astype(np.int64)
