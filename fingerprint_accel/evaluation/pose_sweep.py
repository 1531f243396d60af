"""How far a finger may be turned and shifted before it is no longer recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import MM_PER_INCH, UPRIGHT, Poses
from fingerprint_accel.metrics.protocols import MAX_NONMATED, Pairs, comparisons, score_pairs
from fingerprint_accel.metrics.verification import compute_metrics, sensible_fmr

ANGLES = (0.0, 15.0, 30.0, 45.0, 60.0)  # degrees
SHIFTS = (0.0, 2.0, 4.0)  # mm
MOST_PRINTS = 1000  # of a sweep; beyond, a seeded sample of the fingers
WHITE = 255


@dataclass(frozen=True)
class SweepCell:
    """Error rates with probes turned by up to `angle` degrees and shifted by up to `shift` mm."""

    angle: float
    shift: float
    eer: float
    fnmr: float | None


@dataclass(frozen=True)
class PoseSweep:
    """One cell for every angle and shift.

    Attributes:
        cells: shifts of the first angle, then those of the next.
        fmr: at which `SweepCell.fnmr` is stated; None where there are too few comparisons.
        prints: that were used.
    """

    cells: list[SweepCell]
    fmr: float | None
    prints: int

    def at(self, angle: float, shift: float) -> SweepCell:
        """The cell of an angle and a shift."""
        return next(cell for cell in self.cells if (cell.angle, cell.shift) == (angle, shift))


def moved(images: np.ndarray, degrees: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(N, S, S) uint8 canvases, each turned about its middle and then shifted, white coming in.

    Args:
        images: to move.
        degrees: (N,) counter-clockwise.
        shift: (N, 2) pixels to the right and down.
    """
    results = []
    for image, angle, (x, y) in zip(images, degrees.tolist(), shift.tolist(), strict=True):
        picture = Image.fromarray(image)
        if angle or x or y:
            picture = picture.rotate(angle, Image.Resampling.BICUBIC, translate=(x, y), fillcolor=WHITE)
        results.append(np.asarray(picture))
    return np.stack(results)


def random_moves(count: int, angle: float, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N,) degrees up to `angle` to either side, and (N, 2) shifts within a disc of radius `shift`, both uniform.

    Draws of one seed differ in nothing but their size, so that larger poses are larger for every print.
    """
    draws = np.random.default_rng(seed).uniform(size=(3, count))
    direction, distance = 2 * np.pi * draws[1], shift * np.sqrt(draws[2])
    return (2 * draws[0] - 1) * angle, np.stack([distance * np.cos(direction), distance * np.sin(direction)], axis=1)


def embed_moved(
    extractor: FingerprintExtractor,
    shards: Shards,
    rows: np.ndarray,
    degrees: np.ndarray,
    shift_mm: np.ndarray,
    batch_size: int = 64,
    poses: Poses = UPRIGHT,
    bar: tqdm | None = None,
) -> np.ndarray:
    """Embeddings of prints that are turned and shifted on their canvas first.

    Args:
        extractor: the model.
        shards: the dataset.
        rows: (N,) of it.
        degrees: (N,) counter-clockwise.
        shift_mm: (N, 2) to the right and down.
        batch_size: prints at a time.
        poses: that the extractor tries.
        bar: is moved on by every print.

    Returns:
        (N, D) float32 of unit length; (N, P, D) for P > 1 poses.
    """
    pixels = shift_mm * shards.info.ppi / MM_PER_INCH
    parts = []
    for start in range(0, len(rows), batch_size):
        here = slice(start, start + batch_size)
        images = np.stack([shards.image(row) for row in rows[here].tolist()])
        canvases = moved(images, degrees[here], pixels[here])
        parts.append(extractor(torch.from_numpy(canvases).to(extractor.device), poses).cpu().numpy())
        if bar is not None:
            bar.update(len(images))
    return np.concatenate(parts)


def sample_of_fingers(fingers: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Rows of all prints, or of a seeded choice of fingers with about `most` prints, at least two fingers."""
    if len(fingers) <= most:
        return np.arange(len(fingers))
    sizes = np.bincount(fingers)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")))]
    return np.flatnonzero(np.isin(fingers, chosen))


def pose_sweep(
    extractor: FingerprintExtractor,
    shards: Shards,
    batch_size: int = 64,
    angles: Sequence[float] = ANGLES,
    shifts: Sequence[float] = SHIFTS,
    most_prints: int = MOST_PRINTS,
    poses: Poses = UPRIGHT,
    progress: bool = True,
) -> PoseSweep:
    """Error rates over all pairs: the first print as it is, the second turned and shifted at random.

    Args:
        extractor: the model.
        shards: the dataset, which must fit it.
        batch_size: prints at a time.
        angles: degrees, largest turn to either side.
        shifts: mm, largest shift.
        most_prints: beyond, a sample of the fingers.
        poses: that are tried at comparison.
        progress: shows a progress bar.

    Raises:
        UserError: too few fingers or impressions.
    """
    rows = sample_of_fingers(shards.fingers, most_prints)
    fingers, impressions = shards.fingers[rows], shards.impressions[rows]
    pairs: Pairs = comparisons("all-pairs", fingers, impressions, MAX_NONMATED)
    fmr = sensible_fmr(len(pairs.nonmated))
    settings = [(angle, shift) for angle in angles for shift in shifts]
    still = np.zeros(len(rows)), np.zeros((len(rows), 2))
    cells = []
    total = len(rows) * (1 + sum(setting != (0, 0) for setting in settings))
    with tqdm(total=total, desc="turning and shifting", unit="print", disable=not progress) as bar:
        references = embed_moved(extractor, shards, rows, *still, batch_size, poses, bar)
        for angle, shift in settings:
            probes = references
            if angle or shift:
                moves = random_moves(len(rows), angle, shift)
                probes = embed_moved(extractor, shards, rows, *moves, batch_size, poses, bar)
            scores = score_pairs(references, pairs, fingers, probes=probes, cells=extractor.cells)
            metrics = compute_metrics(scores.mated, scores.nonmated)
            cells.append(SweepCell(angle, shift, metrics.eer, metrics.fnmr_at_fmr[fmr] if fmr else None))
    return PoseSweep(cells, fmr, len(rows))
