"""Enrolment: prints of any mixture of files, folders, lists and datasets, embedded and put into a gallery."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.data.captures import join_name
from fingerprint_accel.data.image_record import shows_no_finger
from fingerprint_accel.data.listing import Listing, list_files, list_paths, list_prints
from fingerprint_accel.data.print_file import ImageFile
from fingerprint_accel.data.shard_writing import INFO
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.walking import is_nothing_to_read
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_files import Known
from fingerprint_accel.similarity import fused


@dataclass(frozen=True)
class Wanted:
    """How `enroll` takes prints.

    Attributes:
        names: regular expression that reads the names of images, as of `layouts.NamePattern`.
        key: fields of ANSI/NIST files that name the person.
        person: whose prints all of them are; empty: as files, names and lists state.
        fuse: one template for each finger.
        skip_bad: go on behind a print that cannot be enrolled.
        replace: as of `Gallery.append`.
        batch_size: prints at a time.
    """

    names: str = ""
    key: Sequence[str] = ()
    person: str = ""
    fuse: bool = False
    skip_bad: bool = False
    replace: bool = False
    batch_size: int = 64


@dataclass(frozen=True)
class Enrolled:
    """What came of it: templates enrolled, those among them that replaced others, and those that were there already;
    prints embedded, prints skipped; other files and records met, and templates in the gallery."""

    new: int
    replaced: int
    there: int
    prints: int
    skipped: int
    others: int
    total: int

    def told(self, fuse: bool) -> str:
        """In one line."""
        what = f"fingers enrolled from {self.prints:,} prints" if fuse else "prints enrolled"
        more = [f"{self.replaced:,} replaced others"] if self.replaced else []
        more += [f"{self.there:,} were there already"] if self.there else []
        noted = f" ({', '.join(more)})" if more else ""
        text = f"{self.new:,} {what}{noted}, {self.total:,} in all"
        text += f"; {self.skipped:,} skipped" if self.skipped else ""
        return text + (f"; {self.others:,} other files or records passed over" if self.others else "")


@dataclass(frozen=True)
class _Print:
    """A print to enrol: what is known of it, its finger, and its file or its row of a dataset."""

    known: Known
    finger: str
    file: ImageFile | None
    shards: Shards | None = None
    row: int = 0


@dataclass
class _Found:
    """Prints to enrol; how many were skipped, and how many files and records show no finger."""

    wanted: Wanted
    prints: list[_Print] = field(default_factory=list)
    skipped: int = 0
    others: int = 0

    def refuse(self, line: str) -> None:
        """A print that cannot be enrolled: the end, or a line."""
        if not self.wanted.skip_bad:
            raise UserError(f"{line}; --skip-bad enrols the others")
        tqdm.write(f"skipped: {line}", sys.stderr)
        self.skipped += 1

    def add_listing(self, listing: Listing) -> None:
        """Files and records."""
        for path, reason in listing.rejected:
            if is_nothing_to_read(reason) or shows_no_finger(reason):
                self.others += 1
            else:
                self.refuse(f"{listing.root / path}: {reason}")
        self.others += len(listing.templates)
        for row in listing.table.to_pylist():
            path = listing.root / row["path"]
            name = join_name(str(path), row["record"], row["cut"])
            is_named = row["finger_key"] != row["path"]  # else nothing tells the finger but the folder
            finger = row["finger_key"] if is_named else str(path.parent if path.parent.name else Path.cwd().name)
            file = ImageFile(path, row["ppi"], record=row["record"], cut=row["cut"], slap=row["slap"], name=name)
            person = self.wanted.person or row["person"]
            self.prints.append(_Print(Known(name, person, row["position"], name), finger, file))

    def add_dataset(self, folder: Path, extractor: FingerprintExtractor) -> None:
        """All prints of a dataset, named FINGER/IMPRESSION."""
        shards = open_dataset(folder)
        extractor.check_dataset(shards)
        keys, sources = (shards.table[column].to_pylist() for column in ("finger_key", "source"))
        for row, (key, source) in enumerate(zip(keys, sources, strict=True)):
            known = Known(f"{key}/{shards.impressions[row]}", self.wanted.person, 0, source)
            self.prints.append(_Print(known, key, None, shards, row))


def enroll_prints(
    gallery: Path, paths: Sequence[Path], extractor: FingerprintExtractor, ppi: int, wanted: Wanted
) -> Enrolled:
    """Embeds prints and adds them to a gallery, all of them or, with `skip_bad`, all that can be; makes the gallery.

    Args:
        gallery: its folder.
        paths: images, containers, folders of them, csv files as of `import --layout csv`, dataset folders.
        extractor: the model.
        ppi: of images that do not state theirs, pixels per inch.
        wanted: how.

    Raises:
        UserError: a print that cannot be enrolled, without `skip_bad`; or nothing to enrol. The gallery is as before.
    """
    found = _listed(paths, extractor, wanted)
    embeddings, prints = _embedded(found, extractor, ppi)
    known = [each.known for each in prints]
    if wanted.fuse:
        embeddings, known = _fused(embeddings, prints, extractor.cells)
    opened = Gallery.open_or_create(gallery, embeddings.shape[1], extractor.identity, extractor.cells)
    before = len(opened)
    new = opened.append(embeddings, known, wanted.replace)
    replaced = before + new - len(opened)
    return Enrolled(new, replaced, len(known) - new, len(prints), found.skipped, found.others, len(opened))


def _listed(paths: Sequence[Path], extractor: FingerprintExtractor, wanted: Wanted) -> _Found:
    """The prints of everything that was given, in its order."""
    found = _Found(wanted)
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
    """Folders and csv files one by one, other files that follow each other together: their records are numbered by
    transactions, and two may have one number."""
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


@torch.inference_mode()
def _embedded(found: _Found, extractor: FingerprintExtractor, ppi: int) -> tuple[np.ndarray, list[_Print]]:
    """Templates (n, D) float32 of the prints that can be enrolled, and these; at least one."""
    batches, kept, canvases = [], list[_Print](), list[np.ndarray]()
    for each in tqdm(found.prints, desc="extracting", unit="print"):
        try:
            canvases.append(_canvas(each, extractor, ppi))
            kept.append(each)
        except UserError as error:
            found.refuse(str(error))
        if canvases and (len(canvases) == found.wanted.batch_size or each is found.prints[-1]):
            images = torch.from_numpy(np.stack(canvases)).to(extractor.device)
            batches.append(extractor(images).cpu().numpy())
            canvases = []
    if not batches:
        raise UserError("none of the prints could be enrolled: see the reasons above")
    return np.concatenate(batches), kept


def _canvas(each: _Print, extractor: FingerprintExtractor, ppi: int) -> np.ndarray:
    """(S, S) uint8; UserError where a print cannot be enrolled."""
    if each.file is not None:
        return extractor.on_canvas(each.file, ppi)
    assert each.shards is not None, "a print comes from a file or from a dataset"
    canvas = each.shards.image(each.row)
    extractor.check_area(canvas, f"{each.shards.folder}: {each.known.name}")
    return canvas


def _fused(embeddings: np.ndarray, prints: list[_Print], cells: int) -> tuple[np.ndarray, list[Known]]:
    """`fused_by_finger`, and what is known of each finger: what all of its prints say."""
    templates, fingers = fused_by_finger(embeddings, [each.finger for each in prints], cells)
    of_finger: dict[str, list[Known]] = {finger: [] for finger in fingers}
    for each in prints:
        of_finger[each.finger].append(each.known)
    known = []
    for finger, some in of_finger.items():
        persons, positions = {each.person for each in some}, {each.position for each in some}
        person, position = (values.pop() if len(values) == 1 else "" for values in (persons, positions))
        known.append(Known(finger, str(person), int(position or 0), " + ".join(each.source for each in some)))
    return templates, known


def fused_by_finger(embeddings: np.ndarray, fingers: list[str], cells: int) -> tuple[np.ndarray, list[str]]:
    """embeddings (N, D) float32 of unit length, and the finger of each print -> (F, D), one template for each finger
    (see `similarity.fused`), and the F fingers in the order in which they come first."""
    rows: dict[str, list[int]] = {}
    for row, finger in enumerate(fingers):
        rows.setdefault(finger, []).append(row)
    return np.stack([fused(embeddings[here], cells) for here in rows.values()]), list(rows)
