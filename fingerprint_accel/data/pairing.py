"""Which minutiae file belongs to which image. One that fits several images of the listing is used for none of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.listing import Listing
from fingerprint_accel.data.templates import SUFFIXES


class Pairing:
    """Finds the minutiae files of the images of a listing.

    The csv may name the file. Otherwise it has the path of the image except for the suffix, below `folder` or beside
    the image. Where there is none below `folder`, a file in `folder` itself with the stem of the image is taken, if no
    other image has that stem. A file that fits several prints is used for none of them.

    Args:
        listing: what is imported.
        folder: of minutiae files; None where they lie beside the images.
    """

    def __init__(self, listing: Listing, folder: Path | None) -> None:
        self._root, self._folder = listing.root, folder
        self._paths, self._named_files = (listing.table[name].combine_chunks() for name in ("path", "minutiae"))
        named_files = self._named_files
        self._keys = _stem(_relative(self._paths, listing.root, listing.root))  # paths without suffix, of all images
        is_named = np.asarray(pc.fill_null(pc.not_equal(named_files, ""), False))
        named = _relative(named_files.filter(pa.array(is_named)), listing.root, folder or listing.root)
        keys_of_named, keys = _stem(named), self._keys.filter(pa.array(~is_named))
        self._prints = np.empty(len(is_named), np.int32)  # that the file with the path of an image, or named, fits
        self._prints[~is_named] = _counts(keys) + _is_in(keys, keys_of_named)
        self._prints[is_named] = _counts(named) + _is_in(keys_of_named, keys)
        if folder is not None:  # images that were rejected have a stem too
            stems = _name(self._keys)
            rejected = _name(_stem(pa.array([path for path, _ in listing.rejected], pa.string())))
            self._stem_prints = _counts(pa.concat_arrays([stems, rejected]))[: len(stems)]
            self._stem_prints += _is_in(stems, keys_of_named)
            # a file that has the path of an image without folder is that image's alone
            self._stem_prints[_is_in(stems, self._keys)] = 0

    def of(self, row: int) -> tuple[Path | None, str]:
        """The minutiae file of a row of the listing; and if it is not to be used, why."""
        key, named = self._keys[row].as_py(), self._named_files[row].as_py()
        prints = self._prints[row]
        if named:
            file: Path | None = self._root / named
        elif self._folder is None:
            file = _existing(self._root / key)
        else:
            file = None if key.startswith("/") else _existing(self._folder / key)  # absolute: not below the root
            if file is None and self._stem_prints[row]:
                file, prints = _existing(self._folder / key.rpartition("/")[2]), self._stem_prints[row]
        if file is None or prints == 1:
            return file, ""
        return file, f"minutiae: fits {prints} prints, one of them {self._paths[row]}, and is used for none"


def _existing(base: Path) -> Path | None:
    """The minutiae file that is called so but for its suffix."""
    for suffix in SUFFIXES:
        candidate = base.with_name(base.name + suffix)
        if candidate.is_file():
            return candidate
    return None


def _relative(paths: pa.Array, root: Path, base: Path) -> pa.Array:
    """Paths, absolute or relative to `root` -> the same relative to `base`; absolute where they do not lie in it."""
    here, there = (os.path.join(os.path.abspath(folder), "") for folder in (root, base))  # noqa: PTH100, PTH118
    dotted = pc.match_substring_regex(paths, r"//|(^|/)\.\.?(/|$)")
    if pc.any(dotted).as_py():  # only a csv has such paths
        plain = [os.path.normpath(os.path.join(here, path)) for path in paths.filter(dotted).to_pylist()]  # noqa: PTH118
        paths = pc.replace_with_mask(paths, dotted, pa.array(plain, pa.string()))
    absolute = pc.if_else(pc.starts_with(paths, "/"), paths, pc.binary_join_element_wise(here, paths, ""))
    return pc.if_else(pc.starts_with(absolute, there), pc.utf8_slice_codeunits(absolute, len(there)), absolute)


def _stem(paths: pa.Array) -> pa.Array:
    """Paths without their suffix, as `Path.stem` has it."""
    return pc.replace_substring_regex(paths, r"([^/])\.[^./]+$", r"\1")


def _name(paths: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(paths, r"^.*/", "")


def _counts(values: pa.Array) -> np.ndarray:
    """(N,) int32: how often each value occurs."""
    codes = values.dictionary_encode().indices.to_numpy()
    return np.bincount(codes)[codes].astype(np.int32)


def _is_in(values: pa.Array, others: pa.Array) -> np.ndarray:
    """(N,) bool."""
    return np.asarray(pc.is_in(values, others))
