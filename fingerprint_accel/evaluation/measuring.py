"""Error rates and thresholds of one way of comparing prints, with or without a centre taken from their templates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.extraction.calibration import Way
from fingerprint_accel.extraction.centring import centred, mean_template
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import Poses
from fingerprint_accel.metrics.curve import resolvable, sorted_curve
from fingerprint_accel.metrics.protocols import Pairs, Scores, score_protocol
from fingerprint_accel.metrics.sampling import sample_of_fingers
from fingerprint_accel.training.data import PrintSource

RATES = (1e-2, 1e-3, 1e-4, 1e-5)
PROTOCOL = "all-pairs"
DIGITS = 10_000  # thresholds are rounded up to four digits, so that the rate holds for what is kept
BATCH = 64


def thresholds(scores: Scores) -> dict[str, float]:
    """Lowest similarity to accept by false match rate ("0.001": 0.41); rates that the comparisons cannot resolve are
    left out."""
    curve = sorted_curve(scores.mated, scores.nonmated)
    return {f"{rate:g}": curve.threshold_at_fmr(rate) for rate in RATES if resolvable(rate, len(curve.nonmated))}


def embedded(
    extractor: FingerprintExtractor, prints: PrintSource, poses: Poses, most: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(N, P, D) float32 embeddings and (N,) fingers of prints to calibrate on.

    Args:
        extractor: the model, which works in float32 unless its `bf16` is set.
        prints: to embed.
        poses: to embed them in.
        most: prints, about; beyond, a fixed choice of whole fingers.
        progress: shows a progress bar.
    """
    rows = sample_of_fingers(prints.labels, most)
    parts = []
    title = "as they are" if len(poses) == 1 else f"in {len(poses)} poses"
    with tqdm(total=len(rows), desc=f"calibrating {title}", unit="print", disable=not progress) as bar:
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            images = prints.read(chosen, np.zeros_like(chosen)).image
            found = extractor(images.to(extractor.device), poses).cpu().numpy()
            parts.append(found.reshape(len(chosen), len(poses), -1))
            bar.update(len(chosen))
    return np.concatenate(parts), prints.labels[rows]


def measure(embeddings: np.ndarray, fingers: np.ndarray, cells: int, branches: int = 0) -> Way:
    """Error rates and thresholds of one way of comparing, over all pairs of prints.

    Args:
        embeddings: (N, P, D) float32 of unit length, the print as it is first.
        fingers: (N,) of each print.
        cells: of dense templates, else 0.
        branches: of the network where its templates are to be centred, else 0. The rates are then those of fingers
            that the centre does not come from, see `held_out`.

    Raises:
        UserError: no mated or no non-mated pair, or an embedding that is not finite.
    """

    def scored(vectors: np.ndarray, whose: np.ndarray) -> Scores:
        return score_protocol(PROTOCOL, vectors, whose, np.zeros_like(whose), cells=cells)

    poses = embeddings.shape[1]
    if not branches:
        return rates(scored(embeddings, fingers), poses)
    before = [scored(embeddings[half], fingers[half]) for half in halves(fingers)]
    after = [scored(vectors, whose) for vectors, whose in held_out(embeddings, fingers, cells, branches)]
    eer = rates(joined(before), poses).eer
    return dataclasses.replace(rates(joined(after), poses), eer_before=eer)


def halves(fingers: np.ndarray) -> list[np.ndarray]:
    """Two (N,) bool: each print in one of them, whole fingers, the large ones and the small ones shared out alike."""
    values, codes, sizes = np.unique(fingers, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(values))
    odd = rank[codes] % 2 == 1
    return [odd, ~odd]


def held_out(
    embeddings: np.ndarray, fingers: np.ndarray, cells: int, branches: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The prints of each half of the fingers, centred by the mean of the other half, and their fingers.

    A mean that the fingers themselves are in pushes them apart: the similarity of two of F fingers would be lower by
    about 1 / F, and a threshold measured so would accept too much.
    """
    for half in halves(fingers):
        center = torch.from_numpy(mean_template(embeddings[~half, 0], cells))
        vectors = torch.from_numpy(embeddings[half]).flatten(0, 1)
        yield centred(vectors, center, branches, cells).numpy().reshape(embeddings[half].shape), fingers[half]


def joined(parts: list[Scores]) -> Scores:
    """Scores of several sets of prints, one after the other."""
    starts = np.cumsum([0, *(len(part.fingers) for part in parts)])[:-1].tolist()
    mated, nonmated = (
        np.concatenate([getattr(part.pairs, name) + start for part, start in zip(parts, starts, strict=True)])
        for name in ("mated", "nonmated")
    )
    return Scores(
        np.concatenate([part.mated for part in parts]),
        np.concatenate([part.nonmated for part in parts]),
        Pairs(mated, nonmated, sum(part.pairs.nonmated_possible for part in parts)),
        np.concatenate([part.fingers for part in parts]),
    )


def rates(scores: Scores, poses: int) -> Way:
    """Error rates and thresholds of compared prints.

    Args:
        scores: of all comparisons.
        poses: in which prints were compared.
    """
    kept = {rate: math.ceil(value * DIGITS) / DIGITS for rate, value in thresholds(scores).items()}
    mated = scores.mated.astype(np.float64)  # as `decisions` compares
    return Way(
        poses=poses,
        prints=len(scores.fingers),
        fingers=len(np.unique(scores.fingers)),
        mated=len(scores.mated),
        nonmated=len(scores.nonmated),
        eer=round(sorted_curve(scores.mated, scores.nonmated).eer()[0], 5),
        thresholds=kept,
        fnmr={rate: round(float((mated < value).mean()), 5) for rate, value in kept.items()},
    )
