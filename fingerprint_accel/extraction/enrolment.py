"""Enrolment: embed the prints of image files, folders, csv files and datasets, and add them to a gallery.

A gallery is a folder or a database with the embeddings and names of enrolled prints; see `galleries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.enrolment_inputs import PrintsToEnrol, PrintToEnrol, Wanted, canvas_of, listed_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.galleries import open_or_create
from fingerprint_accel.extraction.gallery_parts import Known
from fingerprint_accel.similarity import fused


@dataclass(frozen=True)
class Enrolled:
    """Result of an enrolment.

    Attributes:
        new: number of templates that were added, including those that replaced enrolled ones.
        replaced: number of enrolled templates that were replaced.
        there: number of templates that were already enrolled.
        prints: number of prints that were embedded.
        skipped: number of prints that could not be enrolled.
        others: number of files and records that do not show a finger.
        total: number of templates in the gallery after the enrolment.
    """

    new: int
    replaced: int
    there: int
    prints: int
    skipped: int
    others: int
    total: int

    def told(self, fuse: bool) -> str:
        """Return a one-line summary for the user.

        Args:
            fuse: whether the enrolment stored one template per finger instead of one per print.
        """
        what = f"fingers enrolled from {self.prints:,} prints" if fuse else "prints enrolled"
        more = [f"{self.replaced:,} replaced"] if self.replaced else []
        more += [f"{self.there:,} already enrolled"] if self.there else []
        noted = f" ({', '.join(more)})" if more else ""
        text = f"{self.new:,} {what}{noted}, {self.total:,} in the gallery"
        text += f"; {self.skipped:,} skipped" if self.skipped else ""
        return text + (f"; {self.others:,} other files or records ignored" if self.others else "")


def enroll_prints(
    gallery: Path | str, paths: Sequence[Path], extractor: FingerprintExtractor, ppi: int, wanted: Wanted
) -> Enrolled:
    """Embed prints and add them to a gallery, which is created if necessary.

    Args:
        gallery: gallery folder, or URL of a PostgreSQL database.
        paths: image files, ANSI/NIST files, folders of such files, csv files of `import --layout csv`, or dataset
            folders.
        extractor: model that embeds the prints.
        ppi: resolution of images that do not state theirs, pixels per inch.
        wanted: options of the enrolment.

    Raises:
        UserError: if a print cannot be enrolled and `skip_bad` is not set, or if there is nothing to enrol. In both
            cases the gallery is not changed.
    """
    found = listed_prints(paths, extractor, wanted)
    embeddings, quality, prints = _embedded(found, extractor, ppi)
    known = [each.known._replace(quality=value) for each, value in zip(prints, quality, strict=True)]
    if wanted.fuse:
        embeddings, known = _fused(embeddings, prints, extractor.cells)
    size, cells = embeddings.shape[1], extractor.cells
    opened = open_or_create(gallery, size, extractor.identity, cells, wanted.template)
    before = len(opened)
    new = opened.append(embeddings, known, wanted.replace)
    total = len(opened)
    replaced = replaced_of(new, before, total, wanted)
    return Enrolled(new, replaced, len(known) - new, len(prints), found.skipped, found.others, total)


def replaced_of(new: int, before: int, total: int, wanted: Wanted) -> int:
    """Return how many of the templates that were added replaced enrolled ones.

    With `wanted.replace`, the number is inexact if other commands change the gallery at the same time.

    Args:
        new: number of templates that were added.
        before: number of templates in the gallery before the enrolment.
        total: number of templates in the gallery after it.
        wanted: options of the enrolment.
    """
    return min(new, max(0, before + new - total)) if wanted.replace else 0


@torch.inference_mode()
def _embedded(
    found: PrintsToEnrol, extractor: FingerprintExtractor, ppi: int
) -> tuple[np.ndarray, list[float], list[PrintToEnrol]]:
    """Embed the collected prints, except those that cannot be enrolled.

    Args:
        found: the prints.
        extractor: model that embeds the prints.
        ppi: resolution of images that do not state theirs, pixels per inch.

    Returns:
        Embeddings (n, D) float32 of unit length, quality of each print, 0 to 1, and the n prints that were embedded.

    Raises:
        UserError: if none of the prints can be enrolled, or if one cannot and `skip_bad` is not set.
    """
    batches, quality, kept, canvases = [], list[float](), list[PrintToEnrol](), list[np.ndarray]()
    protection = extractor.protection
    for each in tqdm(found.prints, desc="extracting", unit="print"):
        try:
            canvases.append(canvas_of(each, extractor, ppi))
            kept.append(each)
        except UserError as error:
            found.refuse(str(error))
        if canvases and (len(canvases) == found.wanted.batch_size or each is found.prints[-1]):
            images = torch.from_numpy(np.stack(canvases)).to(extractor.device)
            embeddings, values = extractor.with_quality(images)
            vectors = embeddings.cpu().numpy()
            batches.append(protection.apply(vectors, extractor.cells) if protection else vectors)
            quality += [round(value, 3) for value in values.tolist()]
            canvases = []
    if not batches:
        raise UserError("none of the prints could be enrolled; see the reasons above")
    return np.concatenate(batches), quality, kept


def _fused(embeddings: np.ndarray, prints: list[PrintToEnrol], cells: int) -> tuple[np.ndarray, list[Known]]:
    """Fuse the embeddings of each finger into one template, and make one gallery record per finger.

    Args:
        embeddings: (n, D) float32 of unit length.
        prints: the n prints.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Returns:
        Templates (F, D) float32, and the record of each of the F fingers. A record contains a person and a position
        only if all prints of the finger agree on them.
    """
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
    """Fuse the embeddings of each finger into one template; see `similarity.fused`.

    Args:
        embeddings: (N, D) float32 of unit length.
        fingers: name of the finger of each print.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Returns:
        Templates (F, D) float32, and the names of the F fingers in order of first occurrence.
    """
    rows: dict[str, list[int]] = {}
    for row, finger in enumerate(fingers):
        rows.setdefault(finger, []).append(row)
    return np.stack([fused(embeddings[here], cells) for here in rows.values()]), list(rows)
