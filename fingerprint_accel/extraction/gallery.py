"""A gallery: a folder with the embeddings and names of enrolled prints.

A gallery consists of Arrow files, one for each enrolment. A file appears under its final name only when it is complete.
The name of each file contains the beginning of its SHA-256, and the schema of each file contains a copy of
`gallery.json`. A killed process, a full disk or two simultaneous enrolments therefore cannot damage a gallery. The
files are memory-mapped, so opening a gallery is fast and a gallery may be larger than memory. Deleting a print rewrites
the file that contains the print. The embeddings of an int8 gallery take a quarter of the space; see `int8_templates`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fingerprint_accel.durable import make_folder
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_files import (
    KIND,
    change_parts,
    changing,
    delete_drafts,
    misses_parts,
    read_facts,
    settled_parts,
    write_facts,
)
from fingerprint_accel.extraction.gallery_matches import conflicts, first_of_name, having
from fingerprint_accel.extraction.gallery_parts import (
    FLOAT32,
    INT8,
    Known,
    NothingSelectedError,
    as_facts,
    check_vectors,
    known_in,
    new_part,
    nothing_selected,
    part_files,
    part_number,
    positions_in,
    record_columns,
    vectors_in,
)
from fingerprint_accel.extraction.gallery_search import RESCORED, Hits, nearest, rescored
from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.extraction.protection import mismatch
from fingerprint_accel.outputs import check_folder

BLOCK = {FLOAT32: 65_536, INT8: 2_048}  # embeddings that are read at a time; 2,048 fit into the cache as float32


class Gallery:
    """A folder of enrolled prints: one embedding per print, its name, and optionally its person and finger position.

    Each print has a row index. Rows are numbered consecutively over all files, in the order of the files.

    Args:
        folder: folder of an existing gallery; `open_or_create` creates one.

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

    @classmethod
    def create(cls, folder: Path | str, dims: int, model: str, cells: int = 0, template: str = FLOAT32) -> Gallery:
        """Create an empty gallery in a folder, and return the gallery.

        Args:
            folder: path of the new gallery; either does not exist, or is an empty folder.
            dims: dimension of the embeddings.
            model: identity of the model that computes the embeddings, see `FingerprintExtractor.identity`.
            cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
            template: how embeddings are stored, "float32" or "int8".

        Raises:
            UserError: if the folder exists and is not empty.
        """
        folder = Path(folder)
        if folder.is_dir() and (part_files(folder) or read_facts(folder) is not None):
            raise UserError(f"{folder}: exists already; choose another folder")
        return cls.open_or_create(folder, dims, model, cells, template)

    @classmethod
    def open_or_create(
        cls, folder: Path | str, dims: int, model: str, cells: int = 0, template: str = FLOAT32
    ) -> Gallery:
        """Open a gallery, or create an empty one if the folder is missing or empty.

        A gallery without prints takes the model and the template of the call, other galleries keep their template. A
        folder that contains only the files that a killed call has left is treated as empty. The arguments are those of
        `create`.

        Raises:
            UserError: if the folder contains anything other than a gallery of this model.
        """
        folder = Path(folder)
        check_folder(folder, KIND)
        make_folder(folder)
        if not part_files(folder):
            with changing(folder):
                if not part_files(folder):
                    read_facts(folder)  # a damaged file may belong to somebody else, so it is not replaced
                    misses_parts(folder, [])
                    write_facts(folder, as_facts(dims, model, cells, template))
        gallery = cls(folder)
        gallery.check_model(model)
        return gallery

    def check_model(self, identity: str) -> None:
        """Raise a UserError unless the gallery contains templates of a given model, protected by the same key if any.

        Args:
            identity: `FingerprintExtractor.identity` of the model.
        """
        require(self.model == identity, f"{self.folder}: {mismatch(self.model, identity)}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def append(self, embeddings: np.ndarray, prints: Sequence[str | Known], replace: bool = False) -> int:
        """Enrol prints: either all of them or none.

        A print that is already enrolled with the same name and embedding is skipped, so an enrolment that was killed
        can be repeated.

        Args:
            embeddings: (N, D) float32 of unit length.
            prints: name of each print, or its `Known` record with name, person, finger position and source.
            replace: replace an enrolled print of the same name if its embedding or its record differs.

        Returns:
            Number of prints that were added, including prints that replaced enrolled ones.

        Raises:
            UserError: if an enrolled print has the same name but another embedding, and `replace` is not set; if two
                different prints in `prints` have the same name; if `embeddings` have another shape or are not of unit
                length; if a record is not valid; or if another process locks the gallery for more than a minute.
        """
        require(
            embeddings.shape == (len(prints), self.dims),
            f"{self.folder}: {len(prints)} names need embeddings ({len(prints)}, {self.dims}), not {embeddings.shape}",
        )
        known = [Known(each) if isinstance(each, str) else each for each in prints]
        check_vectors(embeddings, f"{self.folder}: the argument", "normalise them")
        record_columns(known)  # raises an error if a record is not valid
        if self.template == INT8:
            embeddings = dequantise(*quantise(embeddings))  # as enrolled ones are, to recognise equal prints
        with changing(self.folder):
            self._reopen()
            new = first_of_name(embeddings, known)
            replaced = conflicts(self._parts, embeddings, known, new, replace)
            rows = np.flatnonzero(np.concatenate([np.empty(0, bool), *replaced]))
            if len(rows) and not replace:
                raise UserError(
                    f"{self.names(rows[:1])[0]}: already enrolled from another image; --replace replaces it, "
                    f"`fingerprint-accel remove {self.folder} --name` deletes it"
                )
            if new.any():
                added = [each for each, is_new in zip(known, new, strict=True) if is_new]
                self._change(replaced, [new_part(embeddings[new], added, self._facts)])
        return int(new.sum())

    def remove(self, person: str = "", names: Iterable[str] = ()) -> int:
        """Delete all prints of a person, or the prints with the given names.

        The files that contain these prints are rewritten without them, and search indexes are deleted. If the process
        is killed, either all of the prints are deleted or none.

        Args:
            person: person to delete; empty to delete by name.
            names: names of prints to delete; ignored if `person` is given.

        Returns:
            Number of prints that were deleted.

        Raises:
            UserError: if the person or one of the names is not enrolled (nothing is deleted then), or if another
                process locks the gallery for more than a minute.
        """
        column = "person" if person else "name"
        with changing(self.folder):
            delete_drafts(self.folder)  # files of killed enrolments may contain prints of this person
            self._reopen()
            masks, missing = having(self._parts, column, [person] if person else names)
            require(not missing, f"{self.folder}: no print of {column} {', '.join(missing[:3])} is enrolled")
            self._change(masks, [])
        return sum(int(mask.sum()) for mask in masks)

    def _reopen(self) -> None:
        """Open the gallery again, because another process may have changed it; the caller must hold the lock.

        A missing or damaged `gallery.json` is written again.

        Raises:
            UserError: if another process has filled the gallery with templates of another model.
        """
        found = read_facts(self.folder)
        require(found in (None, self._facts), f"{self.folder}: was filled by another model in the meantime; try again")
        self._open_parts()
        write_facts(self.folder, self._facts)

    def _change(self, gone: list[np.ndarray], added: list[pa.RecordBatch]) -> None:
        """Add files, and rewrite existing files without some of their prints; the caller must hold the lock.

        Args:
            gone: one (n,) bool mask for each existing file, true for the prints to delete.
            added: contents of the new files.
        """
        touched = [number for number, mask in enumerate(gone) if mask.any()]
        new = []
        for number in touched:
            left = self._parts[number].filter(pa.array(~gone[number]))
            if len(left):
                new.append((part_number(self.part_names[number]), left))
        last = max((part_number(name) for name in self.part_names), default=-1)
        new += [(last + 1 + place, batch) for place, batch in enumerate(added)]
        change_parts(self.folder, new, [self.part_names[number] for number in touched])
        self._open_parts()

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
