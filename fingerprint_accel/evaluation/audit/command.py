"""The command `fingerprint-accel inspect DATASET --audit`, which finds prints that are probably wrong and lists them.

A suspect is one finding: one or several prints that are probably wrong, with a reason. Finger keys are the names of the
fingers in the dataset.
"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.audit.bars import Bars, bar_of_fingers, find_bars
from fingerprint_accel.evaluation.audit.labels import (
    Hit,
    Prints,
    fingers_of_split,
    joined_fingers,
    references_of,
    split_fingers,
    wrong_fingers,
)
from fingerprint_accel.evaluation.audit.pictures import ALIKE, copies, digest
from fingerprint_accel.evaluation.audit.sheet import suspect_sheet
from fingerprint_accel.evaluation.audit.suspects import KINDS, Suspect
from fingerprint_accel.evaluation.audit.templates import Reuse, fit, misfits
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.bulk import extract_all
from fingerprint_accel.extraction.embeddings_folder import open_embeddings
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.outputs import check_file, check_picture, mark
from fingerprint_accel.privacy import private_files
from fingerprint_accel.similarity import similarity
from fingerprint_accel.temporary import temporary_folder
from fingerprint_accel.text import aligned

LIST = "audit"
"""Name of the file type of the list of suspects, for `outputs.mark`."""
EXACT_UP_TO = 20_000
"""Largest number of prints for exact search. In larger datasets a FAISS index selects the prints to compare."""
MOST_MATES, OTHERS = 100, 8
"""Number of results of each search: at most `MOST_MATES` for prints of the same finger, plus `OTHERS` for others."""
BATCH = 256
SOON = 2.0  # a progress bar appears after this many seconds


@dataclass(frozen=True)
class Audit:
    """Results of an audit.

    Attributes:
        suspects: findings, ordered by kind with the most suspicious of each kind first.
        basis: sentences that state the thresholds and how they were derived.
        quality: (N,) quality of each print, from 0 to 1.
    """

    suspects: list[Suspect]
    basis: list[str]
    quality: np.ndarray


@private_files()
def audit_command(dataset: Path, model: str, out: Path) -> None:
    """Audit a dataset, write an image and a list of the suspects, and print a summary.

    Args:
        dataset: dataset folder.
        model: name or path of the model, as in `FingerprintExtractor.from_pretrained`.
        out: PNG file to write. The list has the same name with the suffix .jsonl.

    Raises:
        UserError: if `out` cannot be written, or for the reasons that `audit` lists.
    """
    listed = out.with_suffix(".jsonl")
    check_picture(out)
    check_file(listed, LIST)
    shards = open_dataset(dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.parent, ".audit.") as work:
        found = audit(shards, model, work)
    head = {"kind": "audit", "made_by": mark(LIST), "dataset": str(dataset), "model": model, "basis": found.basis}
    lines = [head, *(suspect.values(shards, found.quality) for suspect in found.suspects)]
    write_file(listed, "".join(json.dumps(line) + "\n" for line in lines))
    write_file(out, suspect_sheet(shards, found.suspects))
    print(summary(shards, found))
    print(f"contact sheet: {out}\nsuspects: {listed}")


def summary(shards: Shards, found: Audit) -> str:
    """Return the numbers of suspects of each kind, and the thresholds of the audit, as text."""
    rows = [["suspects", "number", "prints"]]
    for kind, (words, _) in KINDS.items():
        those = [suspect for suspect in found.suspects if suspect.kind == kind]
        named = {row for suspect in those for row in suspect.rows[: suspect.at_fault or None]}
        rows.append([words, f"{len(those):,}", f"{len(named):,} ({len(named) / len(shards):.1%})"])
    return "\n".join([aligned(rows, 1), "", *(f"- {line}" for line in found.basis)])


def audit(shards: Shards, model: str, work: Path, progress: bool = True) -> Audit:
    """Find prints that are probably wrong: copies, wrong finger keys, and minutiae that do not fit their print.

    Args:
        shards: the dataset.
        model: name or path of the model, as in `FingerprintExtractor.from_pretrained`.
        work: empty folder for embeddings and search indexes, about 4 KB for each print.
        progress: show progress bars.

    Raises:
        UserError: if the model is missing or does not fit the prints, or if the dataset is large and FAISS is not
            installed.
    """
    if len(shards) > EXACT_UP_TO and importlib.util.find_spec("faiss") is None:
        raise UserError(
            f"{shards.folder}: an audit of more than {EXACT_UP_TO:,} prints needs FAISS: "
            "pip install 'fingerprint_accel[faiss]'"
        )
    extract_all(shards.folder, work / "embeddings", model, device="auto", progress=progress)
    known = open_embeddings(work / "embeddings")
    extractor = open_extractor(model)
    order = np.argsort(shards.fingers, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(shards.fingers))[:-1])
    prints = Prints(known.vectors(), extractor.cells, shards.fingers, known.quality, rows_of)
    digests, fits, reuse = _look(shards, progress)
    mated, best_mated = _mated(prints)
    usable = np.flatnonzero(prints.usable)
    bars = find_bars(prints.embeddings[usable], shards.fingers[usable], best_mated, prints.cells, extractor.notes)
    everything = prints.embeddings, prints.fingers, prints.cells
    hits = _hits(*everything, min(bars.same, ALIKE), work / "gallery", extractor, progress)
    alike = [(a, b) for a, b, score in [*mated, *hits] if score >= ALIKE]
    suspects, picture = copies(shards, digests, np.array(alike, np.int64).reshape(-1, 2), progress)

    def reconsider(some: list[int], others: list[int]) -> np.ndarray:
        images = torch.from_numpy(np.stack([shards.image(row) for row in [*some, *others]]))
        posed = extractor(images.to(extractor.device), extractor.usual_poses).cpu().numpy()
        return similarity(posed[: len(some)], posed[len(some) :], prints.cells)

    split = split_fingers(prints, bars, picture, reconsider, progress)
    labels, lines = _labels(prints, bars, picture, hits, split, suspects, work, extractor, progress)
    fits[~prints.usable] = np.nan
    suspects += [*labels, *misfits(fits), *reuse.suspects(picture)]
    places = {kind: place for place, kind in enumerate(KINDS)}
    suspects.sort(key=lambda suspect: (places[suspect.kind], -suspect.badness))
    return Audit(suspects, [*bars.lines, *lines, *_about_templates(shards, suspects)], known.quality)


def _labels(
    prints: Prints,
    bars: Bars,
    picture: np.ndarray,
    hits: list[Hit],
    split: list[Suspect],
    copied: list[Suspect],
    work: Path,
    extractor: FingerprintExtractor,
    progress: bool,
) -> tuple[list[Suspect], list[str]]:
    """Find single prints with a wrong finger key, and then groups of finger keys that stand for the same finger.

    Prints that probably have a wrong key are left out when whole fingers are compared.

    Args:
        prints: embeddings and fingers of the dataset.
        bars: thresholds.
        picture: (N,) identifier of the original image of each print; copies of one image have the same identifier.
        hits: pairs of similar prints of different fingers.
        split: results of `split_fingers`.
        copied: suspects that are copies of one image.
        work: folder for search indexes.
        extractor: model that computed the embeddings.
        progress: show progress bars.

    Returns:
        The suspects, and sentences that state how additional thresholds were derived.
    """
    wrong = wrong_fingers(prints, bars, hits, split)
    outside = {row for suspect in [*split, *wrong] for row in suspect.rows[: suspect.at_fault]}
    doubtful = {row for suspect in copied if suspect.kind == "same-picture-two-fingers" for row in suspect.rows}
    references, finger = references_of(prints, outside | doubtful)
    if math.isinf(bars.same):
        return [], []
    named = {suspect.rows[0] for suspect in wrong}
    unnamed = [suspect for suspect in split if not named.issuperset(suspect.rows[: suspect.at_fault])]
    found = [each for each in fingers_of_split(prints, bars, unnamed, references, finger) if each.rows[0] not in named]
    named |= {suspect.rows[0] for suspect in found}
    split = [suspect for suspect in unnamed if not named.issuperset(suspect.rows[: suspect.at_fault])]
    bar, lines = bar_of_fingers(references, prints.cells)
    together = []
    if not math.isinf(bar):
        pairs = _hits(references, finger, prints.cells, bar, work / "fingers", extractor, progress)
        for first, second, score in pairs:
            rows, others = prints.rows_of[finger[first]], prints.rows_of[finger[second]]
            scores = similarity(prints.embeddings[rows], prints.embeddings[others], prints.cells)
            i, j = np.unravel_index(scores.argmax(), scores.shape)
            together.append((int(rows[i]), int(others[j]), score))
    joined = joined_fingers(prints, bars, picture, hits, outside | doubtful, together)
    return [*joined, *wrong, *found, *split], lines


def _look(shards: Shards, progress: bool) -> tuple[list[bytes], np.ndarray, Reuse]:
    """Read all prints of a dataset once, and compute image hashes and the results of two checks of minutiae.

    Returns:
        Three values: a hash of the image of each print; an (N, 2) array that states how well minutiae fit their
        prints, see `templates.fit`; and an object that finds minutia templates that occur in several prints.
    """
    digests: list[bytes] = []
    fits, reuse = np.full((len(shards), 2), np.nan), Reuse()
    side = shards.info.canvas
    with tqdm(total=len(shards), desc="reading prints", unit="print", delay=SOON, disable=not progress) as bar:
        for start in range(0, len(shards), BATCH):
            rows = np.arange(start, min(start + BATCH, len(shards)))
            images = np.empty((len(rows), side, side), np.uint8)
            shards.read(rows, images)
            digests += [digest(image) for image in images]
            minutiae, counts = shards.minutiae(rows)
            if counts.any():
                fits[rows] = fit(torch.from_numpy(images), shards.info.ppi, minutiae, counts)
                for row, points, count in zip(rows.tolist(), minutiae, counts.tolist(), strict=True):
                    reuse.add(row, points[:count])
            bar.update(len(rows))
    return digests, fits, reuse


def _mated(prints: Prints) -> tuple[list[Hit], np.ndarray]:
    """Compare the prints of each finger with each other.

    Returns:
        Two values: a list of pairs of prints that may be copies, with their similarities; and the highest similarity of
        each print to another print of its finger. The second value leaves out prints of low quality and fingers with a
        single print.
    """
    alike, best = [], []
    for finger, rows in enumerate(prints.rows_of):
        if len(rows) > 1:
            scores = prints.within(finger)
            np.fill_diagonal(scores, -1)
            best.append(scores.max(axis=1)[prints.usable[rows]])
            for i, j in np.argwhere(np.triu(scores >= ALIKE, 1)).tolist():
                alike.append((int(rows[i]), int(rows[j]), float(scores[i, j])))
    return alike, np.concatenate(best) if best else np.empty(0, np.float32)


def _hits(
    embeddings: np.ndarray,
    fingers: np.ndarray,
    cells: int,
    bar: float,
    folder: Path,
    extractor: FingerprintExtractor,
    progress: bool,
) -> list[Hit]:
    """Find all pairs of embeddings of different fingers whose similarity is at least `bar`.

    Args:
        embeddings: (N, D) float32 embeddings with unit norm.
        fingers: (N,) finger of each row.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
        bar: lowest similarity.
        folder: folder to create for the search index.
        extractor: model that computed the embeddings.
        progress: show a progress bar.

    Returns:
        A tuple (lower row, higher row, similarity) for each pair.
    """
    count = len(fingers)
    gallery = Gallery.create(folder, embeddings.shape[1], extractor.identity, cells)
    gallery.append(embeddings, [str(row) for row in range(count)])
    index = ApproximateSearch(gallery, quick=True) if count > EXACT_UP_TO else None
    most = min(MOST_MATES, int(np.unique(fingers, return_counts=True)[1].max())) + OTHERS
    found: dict[tuple[int, int], float] = {}
    with tqdm(total=count, desc="searching", unit="print", delay=SOON, disable=not progress) as bar_of_progress:
        for start in range(0, count, BATCH):
            probes = embeddings[start : start + BATCH]
            hits = index.search(probes, most) if index else gallery.search(probes, most, extractor.device)
            for i, j in np.argwhere(hits.similarity >= bar).tolist():
                row, other = start + i, int(hits.row[i, j])
                if fingers[row] != fingers[other]:
                    found[min(row, other), max(row, other)] = float(hits.similarity[i, j])
            bar_of_progress.update(len(probes))
    return [(a, b, score) for (a, b), score in sorted(found.items())]


def _about_templates(shards: Shards, suspects: list[Suspect]) -> list[str]:
    """State in sentences how minutia templates were checked, and warn if many of them do not fit their prints."""
    if not shards.info.with_minutiae:
        return ["no print has minutiae, so no minutia template was checked"]
    wrong = sum(suspect.kind in ("template-off-ridges", "template-against-flow") for suspect in suspects)
    if wrong > shards.info.with_minutiae / 10:
        return [
            f"{wrong:,} of {shards.info.with_minutiae:,} minutia templates do not fit their prints; probably they "
            "belong to other images, or have another convention or resolution: import again (--minutiae, --xyt-kind)"
        ]
    return ["minutia templates are compared with the ridges of their print; many templates of other fingers also fit"]
