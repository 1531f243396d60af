"""A gallery: a folder with the embeddings and names of enrolled prints.

A gallery consists of Arrow files, one for each enrolment. A file appears under its final name only when it is complete.
The name of each file contains the beginning of its SHA-256, and the schema of each file contains a copy of
`gallery.json`. A killed process, a full disk or two simultaneous enrolments therefore cannot damage a gallery. The
files are memory-mapped, so opening a gallery is fast and a gallery may be larger than memory. Deleting a print rewrites
the file that contains the print. The embeddings of an int8 gallery take a quarter of the space; see `int8_templates`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from fingerprint_accel.durable import make_folder
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_files import (
    KIND,
    change_parts,
    changing,
    delete_drafts,
    misses_parts,
    read_facts,
    write_facts,
)
from fingerprint_accel.extraction.gallery_matches import conflicts, first_of_name, having
from fingerprint_accel.extraction.gallery_parts import (
    FLOAT32,
    INT8,
    Known,
    as_facts,
    check_vectors,
    new_part,
    part_files,
    part_number,
    record_columns,
)
from fingerprint_accel.extraction.gallery_reader import GalleryReader
from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.outputs import check_folder


class Gallery(GalleryReader):
    """A folder of enrolled prints: one embedding per print, its name, and optionally its person and finger position.

    Rows, arguments, attributes and the methods to search are those of `gallery_reader.GalleryReader`.
    """

    @classmethod
    def create(cls, folder: Path | str, dims: int, model: str, cells: int = 0, template: str = FLOAT32) -> Self:
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
    def open_or_create(cls, folder: Path | str, dims: int, model: str, cells: int = 0, template: str = FLOAT32) -> Self:
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
            replaced = conflicts(self._parts, embeddings, known, new, replace, self.folder)
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
