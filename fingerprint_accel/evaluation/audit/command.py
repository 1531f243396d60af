"""`fingerprint-accel inspect DATASET --audit`: finds prints that are probably wrong, and lists them."""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
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
from fingerprint_accel.similarity import similarity
from fingerprint_accel.text import aligned

LIST = "audit"
"""Kind of the list of suspects, as in `outputs.mark`."""
EXACT_UP_TO = 20_000
"""Largest number of prints that are all compared with each other. In larger sets an index proposes comparisons."""
MOST_MATES, OTHERS = 100, 8
"""Results of each search: room for prints of the same finger, and for prints of other fingers."""
BATCH = 256
SOON = 2.0  # seconds after which a progress bar appears


@dataclass(frozen=True)
class Audit:
    """Results of an audit.

    Attributes:
        suspects: suspects, ordered by kind with the worst of each kind first.
        basis: descriptions of the thresholds and of their basis.
        quality: (N,) quality of each print, from 0 to 1.
    """

    suspects: list[Suspect]
    basis: list[str]
    quality: np.ndarray


def audit_command(dataset: Path, model: str, out: Path) -> None:
    """Audit a dataset, write a contact sheet and a list of suspects, and print a summary.

    Args:
        dataset: dataset folder.
        model: model, as in `FingerprintExtractor.from_pretrained`.
        out: PNG file to write. The list has the same name with the suffix .jsonl.

    Raises:
        UserError: `out` cannot be written, or as in `audit`.
    """
    listed = out.with_suffix(".jsonl")
    check_picture(out)
    check_file(listed, LIST)
    shards = open_dataset(dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".tmp", ".audit.", out.parent) as work:
        found = audit(shards, model, Path(work))
    head = {"kind": "audit", "made_by": mark(LIST), "dataset": str(dataset), "model": model, "basis": found.basis}
    lines = [head, *(suspect.values(shards, found.quality) for suspect in found.suspects)]
    write_file(listed, "".join(json.dumps(line) + "\n" for line in lines))
    write_file(out, suspect_sheet(shards, found.suspects))
    print(summary(shards, found))
    print(f"contact sheet: {out}\nsuspects: {listed}")


def summary(shards: Shards, found: Audit) -> str:
    """Return the numbers of suspects of each kind, and the basis of the audit, as text."""
    rows = [["suspects", "number", "prints"]]
    for kind, (words, _) in KINDS.items():
        those = [suspect for suspect in found.suspects if suspect.kind == kind]
        named = {row for suspect in those for row in suspect.rows[: suspect.at_fault or None]}
        rows.append([words, f"{len(those):,}", f"{len(named):,} ({len(named) / len(shards):.1%})"])
    return "\n".join([aligned(rows, 1), "", *(f"- {line}" for line in found.basis)])


def audit(shards: Shards, model: str, work: Path, progress: bool = True) -> Audit:
    """Find prints that are probably wrong.

    Args:
        shards: the dataset.
        model: model, as in `FingerprintExtractor.from_pretrained`.
        work: folder for embeddings and an index, 4 KB for each print.
        progress: show progress bars.

    Raises:
        UserError: the model is missing or does not fit the prints, or the dataset is large and FAISS is not installed.
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
    """Return suspects with wrong finger keys and their basis: single prints, then fingers without these prints."""
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
    """Read all canvases once: return their digests, the (N, 2) fit of their minutiae, and the reuse of templates."""
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
    """Compare the prints of each finger.

    Returns:
        Pairs that may be copies, with their similarity, and the highest similarity of each usable print to another
        print of its finger.
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
    """Return the pairs of rows of different fingers whose similarity is at least `bar`, with the lower row first."""
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
    """Describe the basis of the suspects among minutia templates."""
    if not shards.info.with_minutiae:
        return ["no print has minutiae, so no minutia template was checked"]
    wrong = sum(suspect.kind in ("template-off-ridges", "template-against-flow") for suspect in suspects)
    if wrong > shards.info.with_minutiae / 10:
        return [
            f"{wrong:,} of {shards.info.with_minutiae:,} minutia templates do not fit their prints; probably they "
            "belong to other images, or have another convention or resolution: import again (--minutiae, --xyt-kind)"
        ]
    return ["minutia templates are compared with the ridges of their print; many templates of other fingers also fit"]
