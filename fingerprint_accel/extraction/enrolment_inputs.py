"""Collect the prints to enrol from image files, folders, csv files and datasets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fingerprint_accel.data.captures import join_name
from fingerprint_accel.data.image_record import shows_no_finger
from fingerprint_accel.data.listing import Listing, list_files, list_paths, list_prints
from fingerprint_accel.data.persons import person_in
from fingerprint_accel.data.print_file import ImageFile
from fingerprint_accel.data.shard_writing import INFO
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.walking import is_nothing_to_read
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery_parts import FLOAT32, Known
from fingerprint_accel.text import printable


@dataclass(frozen=True)
class Wanted:
    """Options of an enrolment.

    Attributes:
        names: regular expression that extracts finger, subject and position from file names; see `layouts.NamePattern`.
        key: fields of ANSI/NIST files that identify the person, for example "1.009".
        person: name to store as the person of all prints; empty to take the person from files, file names or csv files.
        fuse: store one template per finger instead of one per print.
        skip_bad: skip prints that cannot be enrolled; otherwise the first such print raises a UserError.
        replace: replace enrolled prints that have the same name as a new print; see `Gallery.append`.
        batch_size: number of prints per batch.
        template: how a new gallery stores templates, "float32" or "int8"; an existing gallery keeps its way.
    """

    names: str = ""
    key: Sequence[str] = ()
    person: str = ""
    fuse: bool = False
    skip_bad: bool = False
    replace: bool = False
    batch_size: int = 64
    template: str = FLOAT32


@dataclass(frozen=True)
class PrintToEnrol:
    """A print to enrol, from an image file or from a dataset.

    Attributes:
        known: record that the gallery stores, with name, person, finger position and source.
        finger: name of the finger; with `fuse`, prints with the same finger name form one template.
        file: image file; None for a print of a dataset.
        shards: dataset that contains the print; None for an image file.
        row: row of the print in the dataset.
    """

    known: Known
    finger: str
    file: ImageFile | None
    shards: Shards | None = None
    row: int = 0


@dataclass
class PrintsToEnrol:
    """Collects the prints to enrol, and counts the prints that are skipped.

    Attributes:
        wanted: options of the enrolment.
        prints: prints to enrol, in order.
        skipped: number of prints that could not be enrolled.
        others: number of files and records that do not show a finger.
    """

    wanted: Wanted
    prints: list[PrintToEnrol] = field(default_factory=list)
    skipped: int = 0
    others: int = 0

    def refuse(self, line: str) -> None:
        """Raise a UserError for a print that cannot be enrolled, or skip the print if `skip_bad` is set.

        A skipped print is counted, and the message is printed.

        Args:
            line: message that names the print and the reason.
        """
        if not self.wanted.skip_bad:
            raise UserError(f"{line}; --skip-bad enrols the others")
        tqdm.write(f"skipped: {line}", sys.stderr)
        self.skipped += 1

    def add_listing(self, listing: Listing) -> None:
        """Add the prints of files that `data.listing` has listed, and count the files that do not show a finger."""
        for path, reason in listing.rejected:
            if is_nothing_to_read(reason) or shows_no_finger(reason):
                self.others += 1
            else:
                self.refuse(f"{listing.root / path}: {reason}")
        self.others += len(listing.templates)
        for row in listing.table.to_pylist():
            path = listing.root / row["path"]
            name = printable(join_name(str(path), row["record"], row["cut"]))  # names of files need not be UTF-8
            is_named = row["finger_key"] != row["path"]  # if not, the folder names the finger
            folder = printable(str(path.parent if path.parent.name else Path.cwd().name))
            finger = row["finger_key"] if is_named else folder
            file = ImageFile(path, row["ppi"], record=row["record"], cut=row["cut"], slap=row["slap"], name=name)
            person = self.wanted.person or row["person"]
            known = Known(name, person, row["position"], name, row["impression"])
            self.prints.append(PrintToEnrol(known, finger, file))

    def add_dataset(self, folder: Path, extractor: FingerprintExtractor) -> None:
        """Add all prints of a dataset folder; the name of a print is FINGER/IMPRESSION.

        The person and the finger position are read from finger keys such as `anna_07`.

        Raises:
            UserError: if the dataset cannot be opened, or its prints do not have the format that the model needs.
        """
        shards = open_dataset(folder)
        extractor.check_dataset(shards)
        keys, sources = (shards.table[column].to_pylist() for column in ("finger_key", "source"))
        for row, (key, source) in enumerate(zip(keys, sources, strict=True)):
            (person, position), impression = person_in(key), int(shards.impressions[row])
            known = Known(f"{key}/{impression}", self.wanted.person or person, position, source, impression)
            self.prints.append(PrintToEnrol(known, key, None, shards, row))


def listed_prints(paths: Sequence[Path], extractor: FingerprintExtractor, wanted: Wanted) -> PrintsToEnrol:
    """Collect the prints of all paths (files, folders, csv files and datasets), in their order.

    Args:
        paths: paths to read.
        extractor: model that will embed the prints; datasets must have its format.
        wanted: options of the enrolment.
    """
    found = PrintsToEnrol(wanted)
    for group in _runs_of_files(paths):
        try:
            if isinstance(group, list):
                found.add_listing(list_paths(group, wanted.names, wanted.key))
            elif group.suffix.lower() == ".csv":
                found.add_listing(list_files(group, "csv", key=wanted.key))
            elif (group / INFO).is_file():
                found.add_dataset(group, extractor)
            else:
                found.add_listing(list_prints(group, names=wanted.names, key=wanted.key))
        except UserError as error:
            if not wanted.skip_bad:
                raise
            found.refuse(str(error))
    return found


def _runs_of_files(paths: Sequence[Path]) -> Iterator[Path | list[Path]]:
    """Yield each folder and each csv file as a path, and consecutive other files together as a list.

    The files of one list are read together, so that equal names can be told apart: ANSI/NIST records are named by
    transaction numbers, and two files may have the same number.
    """
    run: list[Path] = []
    for path in paths:
        if path.is_dir() or path.suffix.lower() == ".csv":
            if run:
                yield run
            run = []
            yield path
        else:
            run.append(path)
    if run:
        yield run


def canvas_of(each: PrintToEnrol, extractor: FingerprintExtractor, ppi: int) -> np.ndarray:
    """Read a print as the canvas that the model needs: a square image (S, S) uint8, ridges dark.

    Args:
        each: print to read.
        extractor: model that will embed the print.
        ppi: resolution of images that do not state theirs, pixels per inch.

    Raises:
        UserError: if the print cannot be enrolled.
    """
    if each.file is not None:
        return extractor.on_canvas(each.file, ppi)
    assert each.shards is not None, "a print comes from a file or from a dataset"
    canvas = each.shards.image(each.row)
    extractor.check_area(canvas, f"{each.shards.folder}: {each.known.name}")
    return canvas
