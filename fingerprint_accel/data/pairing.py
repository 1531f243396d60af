"""Which minutiae file belongs to which print. One that fits several prints of the listing is used for none of them."""

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

UNUSED = "a minutiae file that no image belongs to"
OF_REJECTED = "minutiae of an image that is rejected"
SECOND = "the image has another minutiae file: {}"


class Pairing:
    """Finds the minutiae files of the prints of a listing.

    The csv may name the file. Otherwise it has the path of the image but for the suffix, below `folder` or beside the
    image; case does not count. Where there is none below `folder`, a file in `folder` itself with the stem of the image
    is taken, if no other image has that stem. A file that fits several prints is used for none of them.

    Args:
        listing: what is imported.
        folder: of minutiae files; None where they lie beside the images.

    Attributes:
        unused: path and reason of minutiae files that were met and belong to no image.
    """

    def __init__(self, listing: Listing, folder: Path | None) -> None:
        base = folder or listing.root
        self._paths, named = (listing.table[name].combine_chunks() for name in ("path", "minutiae"))
        is_named = np.asarray(pc.fill_null(pc.not_equal(named, ""), False))
        found = listing.templates
        if folder is not None:
            found = pa.array((met.path for met in walk(folder) if met.kind == TEMPLATE), pa.string())
        # a csv may name one folder in several ways
        met = pc.unique(_absolute(_by_preference(found), base))
        stated = _absolute(named.filter(pa.array(is_named)), listing.root)
        given = pc.unique(stated)
        self._files = pa.concat_arrays([met, given.filter(pc.invert(pc.is_in(given, met)))])
        keys = _key(_relative(self._files, base))
        images = _key(_relative(_absolute(self._paths, listing.root), listing.root))
        self._file = _index_in(images, keys)  # of each print, a row of `files`; -1: none
        self._file[is_named] = _index_in(stated, self._files)
        self._prints = np.bincount(self._file[self._file >= 0], minlength=len(self._files) + 1)[self._file]
        used = self._files.take(pa.array(np.unique(self._file[self._file >= 0])))
        self._xyt = used.filter(pc.match_like(pc.utf8_lower(used), "%.xyt")).to_pylist()
        unused = ~np.isin(np.arange(len(met)), self._file)
        rejected = _key(pa.array([path for path, _ in listing.rejected], pa.string()))
        if folder is not None:
            self._take_stems(images, keys, rejected, self._file < 0)
            unused &= ~np.isin(np.arange(len(met)), self._file)
        # what lies beside an image that could not be listed is that image's
        gone = np.asarray(pc.is_in(keys[: len(met)], rejected))
        first = _index_in(keys[: len(met)], keys)  # of the files that differ in their suffix alone
        self.unused = []
        for number in np.flatnonzero(unused).tolist():
            other = int(first[number])
            is_second = other != number and bool((self._file == other).any())
            reason = SECOND.format(self._files[other]) if is_second else OF_REJECTED if gone[number] else UNUSED
            self.unused.append((met[number].as_py(), reason))

    def _take_stems(self, images: pa.Array, keys: pa.Array, rejected: pa.Array, without: np.ndarray) -> None:
        """Gives prints without a file the one that has their stem and lies in no folder."""
        stems = _name(images)
        # a file that has the path of an image is that image's alone
        found = np.where(np.asarray(pc.is_in(stems, images)), -1, _index_in(stems, keys))
        take = without & (found >= 0)
        self._file[take] = found[take]
        counts = _counts(pa.concat_arrays([stems, _name(rejected)]))[: len(stems)]  # rejected images have a stem too
        self._prints[take] = counts[take]

    def with_xyt_kind(self, reading: Reading) -> Reading:
        """How images are read, with the convention of `.xyt` files, which all of them decide together."""
        if reading.xyt_kind or not self._xyt:
            return reading
        return dataclasses.replace(reading, xyt_kind=xyt_kind(map(Path, self._xyt)))

    def notes(self, reading: Reading) -> list[tuple[str, str]]:
        """What was decided for all minutiae files."""
        if not self._xyt:
            return []
        kind = "mindtct -m1" if reading.xyt_kind == "m1" else "mindtct"
        return [(".", f"{len(self._xyt)} .xyt files are read as {kind} writes them; --xyt-kind says otherwise")]

    def of(self, row: int) -> tuple[Path | None, str]:
        """The minutiae file of a row of the listing; and if it is not to be used, why."""
        number = int(self._file[row])
        if number < 0:
            return None, ""
        path, prints = Path(self._files[number].as_py()), self._prints[row]
        if prints == 1:
            return path, ""
        return path, f"minutiae: fits {prints} prints, one of them {self._paths[row]}, and is used for none"


def _by_preference(paths: pa.Array) -> pa.Array:
    """Sorts files of one name by their suffix: the first of them is used."""
    suffixes = pc.utf8_lower(pc.replace_substring_regex(paths, r"^.*(\.[^./]+)$", r"\1"))
    columns = {"stem": _key(paths), "rank": pc.index_in(suffixes, pa.array(SUFFIXES))}
    return paths.take(pc.sort_indices(pa.table(columns), [("stem", "ascending"), ("rank", "ascending")]))


def _absolute(paths: pa.Array, root: Path) -> pa.Array:
    """Paths, absolute or relative to `root` -> absolute, without `..`."""
    here = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118
    dotted = pc.match_substring_regex(paths, r"//|(^|/)\.\.?(/|$)")
    if pc.any(dotted).as_py():  # only a csv has such paths
        plain = [os.path.normpath(os.path.join(here, path)) for path in paths.filter(dotted).to_pylist()]  # noqa: PTH118
        paths = pc.replace_with_mask(paths, dotted, pa.array(plain, pa.string()))
    return pc.if_else(pc.starts_with(paths, "/"), paths, pc.binary_join_element_wise(here, paths, ""))


def _relative(absolute: pa.Array, base: Path) -> pa.Array:
    """The same relative to `base`; absolute where they do not lie in it."""
    there = os.path.join(os.path.abspath(base), "")  # noqa: PTH100, PTH118
    return pc.if_else(pc.starts_with(absolute, there), pc.utf8_slice_codeunits(absolute, len(there)), absolute)


def _key(paths: pa.Array) -> pa.Array:
    """Paths without their suffix, in small letters, however their accents are composed."""
    return pc.utf8_lower(pc.utf8_normalize(pc.replace_substring_regex(paths, r"([^/])\.[^./]+$", r"\1"), form="NFC"))


def _name(paths: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(paths, r"^.*/", "")


def _counts(values: pa.Array) -> np.ndarray:
    """(N,) int64: how often each value occurs."""
    codes = values.dictionary_encode().indices.to_numpy()
    return np.bincount(codes)[codes]


def _index_in(values: pa.Array, others: pa.Array) -> np.ndarray:
    """(N,) int64: where each value first stands in `others`; -1 for nowhere."""
    return pc.fill_null(pc.index_in(values, others), -1).to_numpy().astype(np.int64)
