"""Search a gallery folder, and read its prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_files import read_facts, settled_parts
from fingerprint_accel.extraction.gallery_matches import having
from fingerprint_accel.extraction.gallery_parts import (
    FLOAT32,
    INT8,
    Known,
    NothingSelectedError,
    check_vectors,
    known_in,
    nothing_selected,
    positions_in,
    vectors_in,
)
from fingerprint_accel.extraction.gallery_search import RESCORED, Hits, nearest, rescored
from fingerprint_accel.extraction.protection import mismatch

BLOCK = {FLOAT32: 65_536, INT8: 2_048}  # embeddings that are read at a time; 2,048 fit into the cache as float32


class GalleryReader:
    """The prints of a gallery folder, to search and to read.

    Each print has a row index. Rows are numbered consecutively over all files, in the order of the files.

    Args:
        folder: folder of an existing gallery; `gallery.Gallery.open_or_create` creates one.

    Attributes:
        dims: dimension of the embeddings.
        model: identity of the model that computed the embeddings, and of the key that protects them (see `protection`);
            probes must come from the same model and be protected by the same key.
        cells: number of grid cells of a dense template (see `similarity`); 0 for other templates.
        template: how the embeddings are stored, "float32" or "int8". All methods take and return float32.
        part_names: names of the Arrow files in row order; each name contains a checksum of the file.

    Raises:
        UserError: if the folder is not a gallery, or one of its files is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        facts = read_facts(self.folder)
        if facts is None:
            raise UserError(f"{self.folder}: not a gallery folder; `fingerprint-accel enroll` makes one")
        self.dims, self.model, self.cells = facts["dims"], facts["model"], facts["cells"]
        self.template: str = facts["template"]
        self._facts = facts
        self._open: dict[str, pa.RecordBatch] = {}
        self._checked: set[str] = set()  # names of the files whose embeddings `blocks` has checked
        self._open_parts()

    def _open_parts(self) -> None:
        """Open the files of prints that the folder currently contains."""
        self._open = settled_parts(self.folder, self._facts, self._open)
        self.part_names, self._parts = list(self._open), list(self._open.values())
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def check_model(self, identity: str) -> None:
        """Raise a UserError unless the gallery contains templates of a given model, protected by the same key if any.

        Args:
            identity: `FingerprintExtractor.identity` of the model.
        """
        require(self.model == identity, f"{self.folder}: {mismatch(self.model, identity)}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def known(self, rows: np.ndarray) -> list[Known]:
        """Return the record of each print in `rows` (n,): name, person, finger position and source."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        return [
            known_in(self._parts[part], int(row - self._starts[part])) for part, row in zip(parts, rows, strict=True)
        ]

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the name of each print in `rows` (n,)."""
        return [known.name for known in self.known(rows)]

    def selected(self, position: int = 0, person: str = "") -> np.ndarray | None:
        """Select the prints that a `search` is restricted to.

        Args:
            position: finger position code of ANSI/NIST-ITL, for example 7 for the left index finger. Prints of this
                position and prints of unknown position are selected. 0 for all positions.
            person: person to whom the prints belong; empty for all prints.

        Returns:
            (N,) bool, true for the selected prints; the argument `among` of `search`. None for all prints.

        Raises:
            NothingSelectedError: if the gallery has no such print.
        """
        if not (position or person):
            return None
        among = np.ones(len(self), bool)
        if position:
            known = np.concatenate([np.empty(0, np.int16), *(positions_in(part) for part in self._parts)])
            among &= (known == position) | (known == 0)
        if person:
            among &= np.concatenate([np.empty(0, bool), *having(self._parts, "person", [person])[0]])
        if not among.any():
            raise NothingSelectedError(f"{self.folder}: {nothing_selected(position, person)}")
        return among

    def of_persons(self, persons: Sequence[str]) -> np.ndarray:
        """Return the rows (n,) int64 of all prints of the given persons, ascending."""
        masks = having(self._parts, "person", persons)[0]
        return np.flatnonzero(np.concatenate([np.empty(0, bool), *masks]))

    def count(self, among: np.ndarray | None) -> int:
        """Return the number of prints that a search compares; see `selected`."""
        return len(self) if among is None else int(among.sum())

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Read the embeddings of the prints in `rows` (n,) from the files; return (n, D) float32."""
        found = np.empty((len(rows), self.dims), np.float32)
        of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_row).tolist():
            here = of_row == number
            found[here] = vectors_in(self._parts[number], rows[here] - self._starts[number])
            check_vectors(found[here], self.folder / self.part_names[number])
        return found

    def check_probes(self, probes: np.ndarray) -> None:
        """Raise a UserError unless probes have unit length and the shape (M, D), or (M, P, D) in P poses.

        D is `dims`.
        """
        require(
            probes.ndim in (2, 3) and probes.shape[-1] == self.dims,
            f"{self.folder}: contains embeddings of {self.dims} numbers, the probes have {probes.shape[-1]}; "
            "use the model that filled the gallery",
        )
        check_vectors(probes, f"{self.folder}: the argument", "normalise the probes")

    def blocks(self, among: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over the embeddings of the gallery in blocks.

        The first iteration checks that the embeddings are finite and of unit length. For a million prints of 512
        numbers, this takes 70 ms.

        Args:
            among: (N,) bool, true for the prints to read; None for all.

        Yields:
            Rows of the prints in a block (n,) int64, ascending, and their embeddings (n, D) float32. Without `among`,
            float32 embeddings are a view of the memory-mapped file.

        Raises:
            UserError: if a file contains other embeddings.
        """
        for name, part, start in zip(self.part_names, self._parts, self._starts[:-1].tolist(), strict=True):
            chosen = None if among is None else np.flatnonzero(among[start : start + len(part)])
            count = len(part) if chosen is None else len(chosen)
            for first in range(0, count, BLOCK[self.template]):
                here = slice(first, min(first + BLOCK[self.template], count))
                block = vectors_in(part, here if chosen is None else chosen[here])
                if name not in self._checked:
                    check_vectors(block, self.folder / name)
                yield start + (np.arange(here.start, here.stop) if chosen is None else chosen[here]), block
            if chosen is None:
                self._checked.add(name)

    def search(
        self, probes: np.ndarray, k: int = 10, device: torch.device | str = "cpu", among: np.ndarray | None = None
    ) -> Hits:
        """Find the k enrolled prints that are most similar to each probe, by exact search.

        Args:
            probes: (M, D) float32 of unit length; or (M, P, D) with P poses of each probe, as returned by `extract`.
                With poses, the first pose selects `RESCORED` candidates (or k if k is larger). Only these candidates
                are compared in all poses, and the highest similarity over the poses is used.
            k: number of prints to return for each probe, limited to the number of prints that are searched.
            device: device that computes the matrix products.
            among: (N,) bool, true for the enrolled prints to search; None for all.

        Returns:
            Similarities and rows of the prints found, best first.

        Raises:
            UserError: if the gallery is empty, or the dimensions of the probes and the gallery embeddings differ.
        """
        require(len(self) > 0, f"{self.folder}: no print is enrolled yet; add prints with `fingerprint-accel enroll`")
        self.check_probes(probes)
        k = min(k, len(self) if among is None else int(among.sum()))
        if probes.ndim == 3:
            candidates = self.search(probes[:, 0], max(k, RESCORED), device, among).row
            return rescored(self.vectors, probes, candidates, k, self.cells)
        return nearest(lambda: self.blocks(among), probes, k, self.cells, device)
